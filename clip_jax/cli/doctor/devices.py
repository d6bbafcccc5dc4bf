"""The devices that JAX uses, asked for in a process of its own.

A driver can hang or crash, and a TPU that is part of a slice waits for the other hosts. Then this
process ends, and the command goes on. JAX also stays out of the command, which starts faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from clip_jax.cli.doctor.facts import Device, DeviceQuery

_CODE = "from clip_jax.cli.doctor.devices import answer; answer()"
_TELLING = re.compile(
    r"(?i)error|exception|fail|unable|abort|unknown|could not|not found|in use|incompatible|"
    r"not compatible"
)
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception): \S")
_PREFIX = re.compile(r"^[IWEF]\d{4} [\d:. ]+\S+\] ")  # of a log line of XLA
_MAX_LINES = 20


def answer() -> None:
    """Prints the local devices as JSON after a small product on each, which shows they work."""
    import jax
    import jax.numpy as jnp

    from clip_jax.distributed.hardware import chip_of_device

    devices = []
    for device in jax.local_devices():
        ones = jax.device_put(jnp.ones((64, 64), jnp.bfloat16), device)
        if float((ones @ ones)[0, 0]) != 64:
            raise ArithmeticError(f"{device} computes wrong products")
        memory, chip = device.memory_stats() or {}, chip_of_device(device)
        devices.append(
            {
                "kind": device.device_kind,
                "platform": device.platform,
                "memory": memory.get("bytes_limit"),
                "used": memory.get("bytes_in_use"),
                "chip": chip.name if chip else "",
                "peak": chip.peak if chip else 0.0,
            }
        )
    print(json.dumps({"devices": devices, "hosts": jax.process_count()}))


def start(timeout: float) -> Callable[[], DeviceQuery]:
    """Starts the process.

    Args:
      timeout: the seconds after which it is ended.

    Returns:
      A function that waits for its answer.
    """
    began = time.monotonic()
    # as little memory of GPUs as possible: a training may run on them
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )

    def wait() -> DeviceQuery:
        code: int | None = None
        try:
            output, errors = process.communicate(
                timeout=max(0.1, timeout - (time.monotonic() - began))
            )
            code = process.returncode
        except subprocess.TimeoutExpired as late:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)  # a driver can keep it from ending
            output, errors = late.stdout or b"", late.stderr or b""
        seconds = time.monotonic() - began
        return parse(
            output.decode(errors="replace"), errors.decode(errors="replace"), code, seconds
        )

    return wait


def parse(output: str, errors: str, code: int | None, seconds: float) -> DeviceQuery:
    """Returns the answer of the process.

    Args:
      output: what it printed.
      errors: what it and its libraries printed as errors.
      code: its exit code; None if it was ended because it did not answer.
      seconds: how long it took.
    """
    lines = [_PREFIX.sub("", line.strip()) for line in errors.splitlines()]
    unique = dict.fromkeys(line for line in lines if not line.startswith("File "))
    telling = [line for line in unique if _TELLING.search(line)]
    telling.sort(key=lambda line: bool(_EXCEPTION.match(line)))
    answers = [line for line in output.splitlines() if line.startswith('{"devices"')]
    if code != 0 or not answers:
        if code and code < 0:
            telling.append(f"the process died of signal {-code}")
        last = [line for line in lines if line][-1:]
        return DeviceQuery((), 1, seconds, code is None, tuple(telling or last)[-_MAX_LINES:])
    found: dict[str, Any] = json.loads(answers[-1])
    devices = tuple(Device(**device) for device in found["devices"])
    return DeviceQuery(devices, found["hosts"], seconds, False, tuple(telling[-_MAX_LINES:]))
