"""One ViT-B/32 training step on this CPU, compared with open_clip's.

    python benchmarks/step.py                # clip_jax alone, if open_clip is not installed
    pip install open_clip_torch && python benchmarks/step.py

Both do the same: forward of 32 pairs, symmetric cross-entropy, backward, AdamW (0.9, 0.98), fp32,
the temperature clamped, on fixed random data. With `--dtype mixed` or `bfloat16` open_clip computes
under bfloat16 autocast. Each side has a process of its own and they alternate, so that a machine
that slows down slows both. The result is the median of the ratios of neighbouring steps.

As in training, clip_jax cuts off the columns after a batch's longest caption, which changes no
result of a causal tower; open_clip has no such thing. `--captions full` leaves nothing to cut. Both
run with the heap settings of `clip_jax.main`; with `--heap ours` open_clip runs without them.
With `--row 2` each side does two steps in a row and the second counts: after a pause, memory that a
step allocates can be slow for the first time. `--where` profiles one step of clip_jax instead and
prints the times of its operations.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import importlib.util
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

import peers

from clip_jax.cli import allocator
from clip_jax.models.model_config import DTYPES

MODEL = "ViT-B/32"
ADAM = {"b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 0.2, "clip_norm": 0.0}
RATE = 5e-4


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of both sides."""

    batch_size: int
    dtype: str
    remat: str  # only for clip_jax
    captions: str


def rows(setting: Setting) -> tuple[Any, Any]:
    """Random pixels uint8 [n, 224, 224, 3] and token ids int32 [n, 77].

    The captions fill all 77 places at random, or are those of the embedded images.
    """
    import numpy as np

    from clip_jax import tokenizers
    from clip_jax.data.captions import fill
    from clip_jax.data.sources import open_source

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (setting.batch_size, 224, 224, 3), np.uint8)
    if setting.captions == "emoji":
        source = open_source("embedded:emoji/train-*.tar")
        chosen = rng.choice(len(source), setting.batch_size, replace=False)
        pairs = (source[int(i)] for i in chosen)
        texts = [fill("an emoji of {name}, {keywords}", pair.text, pair.name) for pair in pairs]
        return image, tokenizers.load("clip", 77)(texts, truncate=True)
    tokens = rng.integers(1, 49_406, (setting.batch_size, 77), np.int32)
    tokens[:, 0], tokens[:, -1] = 49_406, 49_407
    return image, tokens


def ours(setting: Setting) -> Callable[[], float]:
    """A function that does one step of clip_jax and returns the loss."""
    from flax import nnx

    from clip_jax import optim
    from clip_jax.distributed import sharding
    from clip_jax.distributed.global_batch import global_batch
    from clip_jax.losses.contrastive.objective import Contrastive
    from clip_jax.models.architectures import ARCHITECTURES
    from clip_jax.models.clip import abstract_model, specs_of
    from clip_jax.tokenizers import packing
    from clip_jax.training import train_step as step

    config = ARCHITECTURES[MODEL]
    mesh = sharding.make_mesh({"data": -1})
    optimizer = optim.make_optimizer(ADAM, lambda _: RATE, specs_of(config))
    state = step.init_state(config, optimizer, 0, mesh)
    graph = nnx.graphdef(abstract_model(config, setting.dtype, setting.remat))
    train_step = step.compile_step(
        step.make_train_step(graph, Contrastive("dense"), optimizer, 0), state, mesh
    )
    image, tokens = rows(setting)
    batch = global_batch({"image": image, "tokens": packing.trim(tokens)}, mesh)

    def run_step() -> float:
        nonlocal state
        state, metrics = train_step(state, batch)
        return float(metrics["loss"])

    return run_step


def theirs(setting: Setting) -> Callable[[], float]:
    """A function that does one step of open_clip and returns the loss."""
    peers.import_torchvision()
    import open_clip
    import torch

    model = open_clip.create_model(MODEL.replace("/", "-") + "-quickgelu").train()
    loss_fn = open_clip.ClipLoss()
    gains = [p for n, p in model.named_parameters() if p.ndim < 2 or "bias" in n or "ln" in n]
    chosen = {id(p) for p in gains}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": gains, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
    image, tokens = rows(setting)
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.27)
    pixels, ids = pixels.contiguous(), torch.from_numpy(tokens).long()
    half = torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype != "float32")

    def run_step() -> float:
        optimizer.zero_grad()
        with half:
            output = model(pixels, ids)
            image_features, text_features, scale = (
                (output["image_features"], output["text_features"], output["logit_scale"])
                if isinstance(output, dict)
                else output[:3]
            )
            loss = loss_fn(image_features, text_features, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return loss.item()

    return run_step


def where(run_step: Callable[[], float]) -> None:
    """Profiles one step: seconds of XLA's operations by kind; two may run at a time."""
    import jax

    run_step()
    run_step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            run_step()
            wall = time.perf_counter() - began
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        with gzip.open(trace) as file:
            events = json.load(file)["traceEvents"]
    taken: collections.Counter[str] = collections.Counter()
    for event in events:
        if name := event.get("args", {}).get("hlo_op"):
            kind = re.sub(r"(\.\d+)+$", "", name)
            taken["products" if kind in ("ynn_fusion", "dot") else kind] += event["dur"]
    print(f"a step: {wall:.2f} s")
    for kind, microseconds in taken.most_common(12):
        if not kind.startswith("while"):  # which contains the others
            print(f"{microseconds / 1e6:8.2f} s  {kind}")


class Side:
    """One of the two sides, in a process that does a step on request."""

    def __init__(self, name: str, heap: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLIBC_TUNABLES": heap},
        )

    def step(self) -> dict[str, float]:
        """Seconds and loss of one step."""
        assert self.process.stdin and self.process.stdout
        print("step", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side died: see above")
        return json.loads(line)


def work(run_step: Callable[[], float]) -> None:
    """Answers each line of standard input with one timed step."""
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = run_step()
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


def main() -> None:
    """Alternates the sides and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=7, help="counted steps of each")
    parser.add_argument(
        "--row", type=int, default=1, help="steps of a side in a row, of which the last counts"
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--remat", default="none", choices=["none", "dots", "full"])
    parser.add_argument(
        "--captions", default="full", choices=["full", "emoji"],
        help="full: all 77 places taken; emoji: the embedded pictures' captions",
    )  # fmt: skip
    parser.add_argument(
        "--heap", default="both", choices=["both", "ours"],
        help="who runs with the heap settings of clip_jax.main: open_clip by itself has none",
    )  # fmt: skip
    parser.add_argument("--where", action="store_true", help="what a step of ours consists of")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    setting = Setting(args.batch_size, args.dtype, args.remat, args.captions)
    if args.worker:
        return work({"ours": ours, "theirs": theirs}[args.worker](setting))
    if args.where:
        allocator.tune_allocator()
        return where(ours(setting))
    names = ["ours"]
    if importlib.util.find_spec("open_clip"):
        names.append("theirs")
    else:
        print("open_clip is not installed (pip install open_clip_torch): timing clip_jax alone")
    own = allocator.heap_settings()
    heaps = {"ours": own, "theirs": own if args.heap == "both" else ""}
    sides = {name: Side(name, heaps[name]) for name in names}
    for name, side in sides.items():
        print(f"{name}: warm-up {side.step()['seconds']:.1f} s, {side.step()['seconds']:.1f} s")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.steps):
        for name, side in sides.items():
            seconds[name].append([side.step()["seconds"] for _ in range(args.row)][-1])
        print("  ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    print(
        f"{MODEL}, batch {args.batch_size}, {args.dtype}, remat {args.remat}, "
        f"captions {args.captions}, heap settings {args.heap}"
    )
    for name, values in seconds.items():
        print(f"{name}: median {statistics.median(values):.2f} s, best {min(values):.2f} s")
    if "theirs" in seconds:
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
        print(f"clip_jax is {statistics.median(ratios):.2f} times as fast as open_clip")


if __name__ == "__main__":
    main()
