"""A run small enough for tests: a config file, its command, its results."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.io.buckets import is_bucket
from clip_jax.training.metric_files import read_metrics
from support import QUICK, write_pairs

ROOT = Path(__file__).parent.parent

CONFIG = '''"""A run of seconds."""
from configs import common
from ml_collections import ConfigDict

def get_config():
    c = common.get_config()
    c.batch_size = 8
    c.steps = 12
    c.dtype = "float32"
    c.remat = "none"
    c.tokenizer = "sentencepiece:embedded:emoji/emoji.model"
    c.model.embed_dim = 8
    c.model.vision.update(image_size=16, patch_size=8, width=16, layers=2, heads=2)
    c.model.vision.patch_dropout = 0.5
    c.model.text.update(vocab_size=2100, context_length=8, width=16, layers=1, heads=2)
    c.data.train = {train!r}
    c.data.augment.flip = 0.5
    c.optimizer.warmup_steps = 2
    c.log.every = 1
    c.checkpoint.every = 4
    c.evaluate.every = 6
    c.evaluate.batch_size = 8
    c.evaluate.pictures = 2
    c.evaluate.sets.held = ConfigDict(dict(data={train!r}, labels={labels!r}, label="caption"))
    return c
'''


def write_config(folder: Path, train: Path, pairs: int) -> Path:
    """A config that trains on a tar of `tar_factory` and evaluates on it too."""
    labels = folder / "labels.json"
    labels.write_text(json.dumps([f"picture {i}" for i in range(pairs)]))
    path = folder / "config.py"
    path.write_text(CONFIG.format(train=str(train), labels=str(labels)))
    return path


def small_run(folder: Path, pairs: int) -> Path:
    """`write_config` for that many random pairs in the same folder."""
    return write_config(folder, write_pairs(folder / "pairs.tar", pairs), pairs)


def command(config: Path, workdir: Path, *flags: str) -> list[str]:
    """The command of the README on this config."""
    return [
        *(sys.executable, "-m", "clip_jax.main", "--config", str(config)),
        *("--workdir", str(workdir), *flags),
    ]


def environment(**more: str) -> dict[str, str]:
    """One device, this tree's code."""
    return {**os.environ, "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT), **more}


def run(config: Path, workdir: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        command(config, workdir, *flags),
        env=environment(**env),
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=240,
    )


def run_until(config: Path, workdir: Path, step: int, how: signal.Signals, *flags: str) -> Any:
    """The command, sent a signal once `step` is logged; returns the process and its stderr."""
    process = subprocess.Popen(
        command(config, workdir, *flags),
        env=environment(),
        cwd=config.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= step for line in lines(workdir)):
            process.send_signal(how)
            break
        time.sleep(0.005)
    _, stderr = process.communicate(timeout=200)
    return process, stderr


Meanwhile = Callable[[list[subprocess.Popen[bytes]]], Any]


def together(
    argv: Sequence[str],
    processes: int,
    *,
    devices: int = 1,
    each: Callable[[int], Sequence[str]] = lambda _: (),
    meanwhile: Meanwhile = lambda _: None,
    timeout: float = 240,
) -> list[subprocess.CompletedProcess[str]]:
    """A command as that many processes, which meet at a free port; none is left behind.

    `each` gives process I flags of its own; `meanwhile` is called with all once they have started.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = environment(XLA_FLAGS=f"{flags} {QUICK}")
    started: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i in range(processes):
                where = (f"--coordinator=127.0.0.1:{port}", f"--processes={processes}")
                met = (*where, f"--process={i}") if processes > 1 else ()
                with open(f"{folder}/{i}.out", "w") as out, open(f"{folder}/{i}.err", "w") as err:
                    command = [*argv, *met, *each(i)]
                    started.append(
                        subprocess.Popen(command, env=env, cwd=folder, stdout=out, stderr=err)
                    )
            meanwhile(started)
            for process in started:
                process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            for process in started:
                process.kill()
                process.wait()
        return [
            subprocess.CompletedProcess(
                process.args,
                process.returncode,
                Path(folder, f"{i}.out").read_text(),
                Path(folder, f"{i}.err").read_text(),
            )
            for i, process in enumerate(started)
        ]


def once_logged(workdir: Path, step: int, act: Meanwhile) -> Meanwhile:
    """Waits until a run has logged a step, or one of its processes ended, and acts on them."""

    def meanwhile(started: list[subprocess.Popen[bytes]]) -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and all(p.poll() is None for p in started):
            if any(line["step"] >= step for line in lines(workdir)):
                act(started)
                return
            time.sleep(0.005)

    return meanwhile


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics."""
    if is_bucket(workdir):
        return read_metrics(workdir / "metrics.jsonl")
    path = workdir / "metrics.jsonl"
    raw = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in raw]


SPEEDS = ("images_per_second", "tflops_per_second", "mfu")


def values(workdir: Path) -> dict[tuple[int, str], float]:
    """(step, name) → value, for all that does not tell the time; fails on one logged twice."""
    metrics: dict[tuple[int, str], float] = {}
    for line in lines(workdir):
        step = line.pop("step")
        for name, value in line.items():
            assert (step, name) not in metrics, f"{name} of step {step} stands there twice"
            metrics[step, name] = value
    return {key: v for key, v in metrics.items() if key[1] not in SPEEDS}


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint's parameters by path."""
    import jax
    from flax import nnx

    from clip_jax.inference import pretrained

    model, _, _ = pretrained.load(workdir)
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
