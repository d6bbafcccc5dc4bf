"""Multi-host runs: the processes connect, agree, and end together.

Every host runs the same command. `cluster_env.detect_process` tells whether there are other
processes; `process_group` connects to them before JAX touches a device. A process that fails
reports the reason to the others. If one dies without a report, process 0 misses its heartbeats. In
a single process all of this does nothing. JAX is imported only if there are other processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from clip_jax.distributed import jax_internals
from clip_jax.distributed.cluster_env import ProcessInfo
from clip_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

T = TypeVar("T")
CONNECT_TIMEOUT, HEARTBEAT_TIMEOUT = 300.0, 60.0  # seconds
AGAIN = "start the same command again, it resumes"
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"
_LINGER = 3.0  # seconds that process 0, the coordinator, stays alive after a failure is reported
_SHARED, _BEATS, _FAILURE, _END = (
    f"clip_jax/{key}" for key in ("shared", "heartbeats", "failure", "end")
)
_OF_A_PEER = re.compile(
    r"gloo|nccl|peer|socket|connection|unavailable|deadline|barrier|coordination", re.IGNORECASE
)


@contextlib.contextmanager
def process_group(
    process_info: ProcessInfo | None,
    connect_timeout: float = CONNECT_TIMEOUT,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
) -> Iterator[None]:
    """Connects to the other processes; a failure inside the context ends all of them.

    Args:
      process_info: the place of this process; None: there are no others, and nothing is done.
      connect_timeout: seconds in which all processes must connect.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.

    Raises:
      UserError: the processes cannot connect.
    """
    global _group
    if process_info is None:
        yield
        return
    _group = _Group(*_connect(process_info, connect_timeout, heartbeat_timeout), heartbeat_timeout)
    try:
        yield
    except BaseException as error:
        _group.report(error)
        raise
    _group.finish()


def exit_process(code: int) -> NoReturn:
    """Ends this process. After a failure it does not wait for the others."""
    if _group and not _group.finished:
        sys.stdout.flush()
        _group.end("", code)
    sys.exit(code)


def is_multi_process() -> bool:
    """Returns whether there is more than one process."""
    return _group is not None


def is_first() -> bool:
    """Returns whether this is the process that writes files and messages for all."""
    return _group is None or _group.index == 0


def say_first(line: str) -> None:
    """Prints a line to stderr, on the first process only."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def broadcast_from_first(make: Callable[[], T]) -> T:
    """Calls `make` on the first process, and returns its result in all processes; the others wait.

    Args:
      make: returns a JSON value.
    """
    return _group.broadcast_from_first(make) if _group else make()


def sum_over_processes(numbers: Any) -> Any:
    """Returns the sum of an array over all processes, which must all call this."""
    if not is_multi_process():
        return numbers
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(numbers).sum(0)


class MaxOverProcesses:
    """Computes the maximum of a number over the processes, asynchronously on the devices.

    All processes call it once in each step.
    """

    def __init__(self, mesh: Mesh) -> None:
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        self._shape = (mesh.size,)
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> Any:
        """Starts the computation, and returns its result, an int32 scalar array."""
        import jax
        import numpy as np

        own = np.full(self._shape, number, np.int32)
        return self._max(jax.make_array_from_callback(own.shape, self._split, own.__getitem__))


def _connect(process_info: ProcessInfo, timeout: float, heartbeat: float) -> tuple[Any, int, int]:
    """Starts `jax.distributed`; returns the client, the index of this process and their number."""
    import jax

    global_state = jax_internals.distributed_state()
    _check_port(process_info)
    # the training loop handles SIGTERM
    jax.config.update("jax_enable_preemption_service", False)
    _handle_abort()
    late = threading.Timer(timeout, lambda: _too_late(global_state, process_info, timeout))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            process_info.coordinator,
            process_info.processes,
            process_info.process,
            cluster_detection_method="deactivate" if process_info.known else None,
            # JAX aborts after its timeouts: ours come first
            coordinator_bind_address=_bind_address(process_info),
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=int(2 * heartbeat) + 60,
            shutdown_timeout_seconds=int(heartbeat) + 1,
        )
    except (RuntimeError, ValueError) as error:
        where = global_state.coordinator_address or process_info.coordinator
        raise UserError(f"the processes cannot meet at {where}: {error}") from None
    finally:
        late.cancel()
    return global_state.client, global_state.process_id, global_state.num_processes


def _check_port(process_info: ProcessInfo) -> None:
    if process_info.process == 0 and process_info.coordinator and not os.environ.get(_BIND):
        try:
            host, port = _split(_bind_address(process_info) or process_info.coordinator)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            host = host if _bind_address(process_info) else ""
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            raise UserError(
                f"process 0 cannot let the others meet at {process_info.coordinator} "
                f"({error.strerror}): choose another port"
            ) from None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _bind_address(process_info: ProcessInfo) -> str | None:
    """Returns the address at which process 0 listens, if the coordinator's is one of this host.

    None: JAX listens on all interfaces. This is so for addresses that a cluster gives, if
    JAX_COORDINATOR_BIND_ADDRESS is set, and for a name that means a loopback address on this host
    only, as a host's own name does in Debian's /etc/hosts.
    """
    if process_info.process != 0 or not process_info.coordinator or os.environ.get(_BIND):
        return None
    host, port = _split(process_info.coordinator)
    try:
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        numbers = ipaddress.ip_address(address.partition("%")[0])
        named = address == host or host == "localhost"
        if numbers.is_unspecified or (numbers.is_loopback and not named):
            return None
        family = socket.AF_INET6 if numbers.version == 6 else socket.AF_INET
        socket.create_server((address, 0), family=family).close()
    except (OSError, ValueError):
        return None  # the address of a router in front of this host
    return f"[{address}]:{port}" if numbers.version == 6 else f"{address}:{port}"


def _too_late(state: Any, process_info: ProcessInfo, timeout: float) -> None:
    address = state.coordinator_address or process_info.coordinator or "the cluster's first host"
    why = f"not all of the {state.num_processes} processes came"
    if state.process_id:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 3).close()
        except (OSError, ValueError) as error:
            why = f"process 0 does not answer ({error})"
    _exit(
        f"waited {timeout:g} s for the other processes at {address}: {why}; is every one "
        "started, with the same address, and its port open between them?",
        1,  # a restart helps if a host was only late
    )


class _Group:
    """Communication with the other processes by the key-value store of jax.distributed."""

    def __init__(self, client: Any, index: int, count: int, timeout: float) -> None:
        self.index, self.count = index, count
        self._client, self._timeout = client, timeout
        self._shared, self._reporting, self._ended = 0, False, threading.Event()
        watches = [
            self._listen,
            self._send_heartbeats,
            *([self._check_heartbeats] if index == 0 else []),
        ]
        self._threads = [threading.Thread(target=watch, daemon=True) for watch in watches]
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> bool:
        """Whether all processes have ended without a failure."""
        return self._ended.is_set()

    def broadcast_from_first(self, make: Callable[[], Any]) -> Any:
        key = f"{_SHARED}/{self._shared}"
        self._shared += 1
        if self.index == 0:
            value = make()
            self._client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(self._client.blocking_key_value_get(key, 1 << 40))

    def report(self, error: BaseException) -> None:
        """Reports a failure to the others; if another process caused it, waits for its report."""
        if not isinstance(error, (UserError, KeyboardInterrupt)) and _OF_A_PEER.search(str(error)):
            time.sleep(self._timeout * 1.5 + 5)  # `_listen` ends this process before
        self._reporting = True
        line = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}"
        self._report(self.index, line, 2 if isinstance(error, UserError) else 1)

    def finish(self) -> None:
        """Ends without a failure, once all processes have arrived."""
        try:
            self._client.wait_at_barrier(_END, int(self._timeout * 1000))
        except RuntimeError:
            time.sleep(self._timeout / 2)
            raise UserError("the other processes did not end with this one") from None
        self._ended.set()
        import jax

        jax.distributed.shutdown()
        for thread in self._threads:  # a thread in C++ at the interpreter's end would abort
            thread.join()
        _at_signal(signal.SIGABRT, signal.SIG_DFL)

    def end(self, line: str, code: int) -> NoReturn:
        """Ends this process at once."""
        _exit(line, code, _LINGER if self.index == 0 else 0)

    def _report(self, index: int, reason: str, code: int = 1) -> None:
        with contextlib.suppress(RuntimeError):  # there is a report already, or no coordinator
            self._client.key_value_set(_FAILURE, json.dumps([index, reason, code]))

    def _listen(self) -> None:
        try:
            report = self._client.blocking_key_value_get(_FAILURE, 1 << 40)
            index, reason, code = json.loads(report)
        except RuntimeError as error:
            if self.finished:
                return
            line = str(error).splitlines()[0]
            index, reason, code = 0, f"died or cannot be reached ({line}): {AGAIN}", 1
        if not self._reporting:
            self.end(f"process {index} of {self.count} {reason}", code)

    def _send_heartbeats(self) -> None:
        with contextlib.suppress(RuntimeError):  # `_listen` reports it
            while not self.finished:
                mark = f"{socket.gethostname()} {time.monotonic()}"
                self._client.key_value_set(f"{_BEATS}/{self.index}", mark, allow_overwrite=True)
                self._ended.wait(self._timeout / 6)

    def _check_heartbeats(self) -> None:
        """Reports a process whose heartbeats are missing."""
        now = time.monotonic()
        last_beats = dict.fromkeys(range(1, self.count), ("", now))
        while not self.finished:
            before, now = now, time.monotonic()
            if now - before > self._timeout / 2:  # this process itself was suspended
                last_beats = {i: (mark, now) for i, (mark, _) in last_beats.items()}
            try:
                heartbeats = self._client.key_value_dir_get(_BEATS)
            except RuntimeError:
                return
            for key, mark in heartbeats:
                i = int(key.rpartition("/")[2])
                if i in last_beats and last_beats[i][0] != mark:
                    last_beats[i] = mark, now
            for i, (mark, when) in last_beats.items():
                if now - when > self._timeout and not self.finished:
                    host = mark.rpartition(" ")[0] or "of an unknown host"
                    reason = f"({host}) died or hangs, no sign of life for {self._timeout:g} s"
                    return self._report(i, f"{reason}: {AGAIN}")
            self._ended.wait(self._timeout / 6)


_group: _Group | None = None
_exit_lock = threading.Lock()


def _exit(line: str, code: int, linger: float = 0) -> NoReturn:
    """Prints a line and ends this process and its children; only the first call does it."""
    _exit_lock.acquire()  # never released: a second thread waits here for the end
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide what the runtime prints from now on
    if line:
        os.write(stderr, f"error: {' '.join(line.split())}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    if linger:
        for number in (signal.SIGINT, signal.SIGTERM):  # of a launcher that saw the others end
            _at_signal(number, signal.SIG_IGN)
        time.sleep(linger)
    os._exit(code)


def _at_signal(number: int, handler: Any) -> None:
    """Sets the handler of a signal, as `signal.signal` does, but from any thread."""
    if isinstance(handler, signal.Handlers):
        handler = ctypes.c_void_p(handler)
    ctypes.CDLL(None).signal(number, handler)


def _handle_abort() -> None:
    """Prints one line if the runtime aborts, as it does when process 0 is gone."""

    def aborted(_: int) -> None:
        _exit(
            "process 0, where all processes meet, died or cannot be reached, or this one was "
            f"aborted: {AGAIN}",
            1,
        )

    global _on_abort
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _at_signal(signal.SIGABRT, _on_abort)


_on_abort: Any = None  # C does not keep a reference
