"""Loading ViT-L/14 (fp32, 1.7 GB) from a transformers folder, compared with transformers.

    pip install torch transformers && python benchmarks/load_weights.py

The weights are random. They are written once into a temporary folder and read once, so they come
from the page cache. Every load has a fresh process; the sides alternate, and the result is the
median of the ratios of neighbouring runs. Memory is the peak resident size of the process, minus
the size before loading, over the size of the file.

transformers maps the file and leaves its tensors there: nothing is read before it is used. So both
sides then touch every parameter once (the sums are compared, too), and times are given without and
with that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers

from clip_jax.weights.param_mapping import Library


def write(name: str, folder: Path, library: Library) -> Path:
    """Writes a random model in a library's format, reads it once, and returns its path."""
    import jax

    from clip_jax.models import architectures
    from clip_jax.models.clip import abstract_model, variables
    from clip_jax.weights import export

    rng = np.random.default_rng(0)
    config = architectures.find_architecture(name)
    shapes = variables(abstract_model(config))
    arrays = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes)
    file = export.write(folder, arrays, config, library)
    file.read_bytes()
    return file


def ours() -> tuple[Callable[[str], Any], Callable[[Any], float]]:
    """clip_jax.load, and a function that sums all parameters."""
    import jax
    from flax import nnx

    import clip_jax.inference.pretrained

    def total(loaded: Any) -> float:
        leaves = jax.tree.leaves(nnx.state(loaded[0], nnx.Param))
        return sum(float(np.asarray(leaf).sum()) for leaf in leaves)

    return clip_jax.inference.pretrained.load, total


def theirs() -> tuple[Callable[[str], Any], Callable[[Any], float]]:
    """transformers' from_pretrained, and a function that sums all parameters."""
    import torch

    peers.import_torchvision()
    from transformers import CLIPModel

    def total(model: Any) -> float:
        with torch.no_grad():
            return sum(float(p.sum()) for p in model.parameters())

    return CLIPModel.from_pretrained, total


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes; the peak that getrusage reports is inherited."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) << 10


def work(side: str, folder: str) -> dict[str, float]:
    """One load in this process: seconds and bytes."""
    began = time.perf_counter()
    load, total = {"ours": ours, "theirs": theirs}[side]()
    imported, before = time.perf_counter(), memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    arrays = load(folder)
    loaded, peak = time.perf_counter(), memory("VmHWM")
    checksum = total(arrays)
    touched = time.perf_counter()
    return {
        "import": imported - began,
        "load": loaded - imported,
        "load and touch": touched - imported,
        "import, load and touch": touched - began,
        "memory": peak - before,
        "memory, touched": memory("VmHWM") - before,
        "sum": checksum,
    }


def measure(side: str, folder: str) -> dict[str, float]:
    """`work` in a fresh process."""
    command = [sys.executable, __file__, "--worker", side, "--folder", folder]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=offline)
    if done.returncode:
        raise SystemExit(f"{side} failed: see above")
    return json.loads(done.stdout.splitlines()[-1])


def show(what: str, rows: list[dict[str, float]], size: int) -> None:
    """Prints a line of medians."""
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(
        f"{what:12}  import {middle['import']:5.2f} s   load {middle['load']:5.2f} s   "
        f"and touch {middle['load and touch']:5.2f} s   memory {middle['memory'] / size:.2f}, "
        f"touched {middle['memory, touched'] / size:.2f} of the file"
    )


def main() -> None:
    """Alternates the sides and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-L/14")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return print(json.dumps(work(args.worker, args.folder)))
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as folder:
        size = write(args.model, Path(folder), "hugging_face").stat().st_size
        print(f"{args.model}, {size / 1e9:.2f} GB")
        for i in range(args.repeats):
            for side, measured in rows.items():
                measured.append(measure(side, folder))
                show(f"{side} {i}", measured[-1:], size)
    for side, measured in rows.items():
        show(f"{side}, median", measured, size)
    sums = [row["sum"] for measured in rows.values() for row in measured]
    if not np.allclose(sums, sums[0], rtol=1e-3):
        raise SystemExit(f"the sides loaded other numbers: sums {sums}")
    for key in ("load", "load and touch", "import, load and touch"):
        ratios = [b[key] / a[key] for a, b in zip(rows["ours"], rows["theirs"], strict=True)]
        print(f"{key}: clip_jax is {statistics.median(ratios):.2f} times as fast as transformers")


if __name__ == "__main__":
    main()
