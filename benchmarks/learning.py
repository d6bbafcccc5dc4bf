"""What a small CLIP learns in clip_jax and in open_clip from the same pairs and hyperparameters.

    pip install -e '.[parity]'
    python benchmarks/learning.py same --small          # 50 losses side by side, four models
    python benchmarks/learning.py own --seeds 3 --out learning.jsonl
    python benchmarks/learning.py own --seeds 3 --learning-rates 3e-4,1e-3,3e-3 --out sweep.jsonl
    python benchmarks/learning.py own --data /data/flickr8k --caption '{caption:each}' --label ''

`same`: both sides start from the same weights (those of clip_jax, exported as by
`python -m clip_jax convert`) and read the same batches in fp32. The losses must agree to `--bar` at
every step, otherwise the exit code is 1. Models: a vision Transformer and CLIP's ResNet, each with
the softmax and the sigmoid loss. `--control` adds open_clip in float64, which shows the effect of
rounding alone on a run. `--float64` compares both sides in float64, where nothing but a difference
in a formula is left.

`own`: each side starts from its own initial values, by seed. Printed for each learning rate: test
loss in batches of 128, recall both ways, zero-shot accuracy if the images have labels, and the
logit scale; means over the seeds with 95 % intervals (Student's t), and the difference for equal
seeds. `--out` keeps the figures of each run, and the same command resumes an interrupted series.

The data are the embedded emoji, or anything that `config.data.train` accepts. Without `--test`
every tenth pair of `--data` is test data. Both sides compute on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import double_precision

if "--float64" in sys.argv:
    double_precision.install()  # before the package is imported

import jax
import learning_data
import numpy as np
import parity
import peers

from clip_jax import tokenizers
from clip_jax.data.images import augmentation, decoding
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from clip_jax.models.clip import abstract_model
from clip_jax.models.model_config import CLIPConfig

EMOJI = "embedded:emoji/train-*.tar"
EMOJI_TEST = "embedded:emoji/unseen_drawing-*.tar"
SIDES = ("clip_jax", "open_clip")
SIZES = {
    "image_size": 64, "patch_size": 8, "vision_width": 192, "vision_layers": 6, "text_width": 192,
    "text_layers": 3, "head_width": 64, "context_length": 32, "embed_dim": 192,
}  # fmt: skip
SMALL = {
    "vision_width": 64, "vision_layers": 2, "text_width": 64, "text_layers": 2, "head_width": 32,
    "embed_dim": 64, "batch_size": 32,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("mode", choices=["same", "own"])
    data = p.add_argument_group("data")
    data.add_argument("--data", default=EMOJI, help="tars, a folder or a table (default: emoji)")
    data.add_argument("--test", default="", help="the same for the test of `own`")
    data.add_argument(
        "--caption", default="", help="template over a pair's fields (default: {caption}; of the "
        "emoji {name}, {keywords})",
    )  # fmt: skip
    data.add_argument("--label", default="name", help="field with a picture's label; '': none")
    data.add_argument("--prompt", default="{}", help="zero-shot prompt; {} is the label")
    data.add_argument(
        "--batches", default="ours", choices=["ours", "own"], help="`own` mode: both read the "
        "batches of clip_jax's pipeline, or open_clip reads rows of its own order and crops",
    )  # fmt: skip
    data.add_argument(
        "--crop", default="fit", choices=augmentation.CROPS, help="of clip_jax's pipeline"
    )
    model = p.add_argument_group("model")
    model.add_argument("--towers", nargs="+", choices=["vit", "rn"], help="default: same: both; "
                       "own: vit")  # fmt: skip
    model.add_argument("--losses", nargs="+", choices=["softmax", "sigmoid"], help="default: "
                       "same: both; own: softmax")  # fmt: skip
    model.add_argument("--small", action="store_true", help=f"sets {SMALL}")
    for name, value in SIZES.items():
        model.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    training = p.add_argument_group("training")
    training.add_argument("--batch-size", type=int, default=128)
    training.add_argument("--steps", type=int, help="default: same: 50; own: 702")
    training.add_argument(
        "--learning-rates",
        type=_numbers,
        metavar="A,B,…",
        help="default: same: 5e-4 (open_clip's); own: 1e-3",
    )
    training.add_argument("--warmup-steps", type=int, help="default: a tenth of the steps")
    training.add_argument("--schedule", default="cosine", choices=["cosine", "constant"])
    training.add_argument("--b1", type=float, default=0.9)
    training.add_argument("--b2", type=float, help="default: .98; of a ResNet .999 (open_clip's)")
    training.add_argument("--eps", type=float, help="default: 1e-6; of a ResNet 1e-8")
    training.add_argument("--weight-decay", type=float, default=0.2)
    training.add_argument("--clip-norm", type=float, default=0.0, help="0: none")
    training.add_argument("--seeds", type=int, default=1, help="of `own`: 0, 1, …")
    training.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, help="of `own`")
    p.add_argument("--bar", type=float, default=1e-4, help="greatest difference of losses in same")
    p.add_argument("--control", action="store_true", help="same: open_clip in float64 too")
    p.add_argument("--float64", action="store_true", help="same: both sides in float64")
    p.add_argument("--out", type=Path, help="JSON lines of the runs of `own`; runs in it are kept")
    p.add_argument("--every", type=int, default=50, help="steps between two lines of progress")
    return p


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def hyperparameters(
    args: argparse.Namespace, model: CLIPConfig, learning_rate: float
) -> parity.Hyperparameters:
    """The hyperparameters of a run; by default those of open_clip for the tower."""
    usual = {"b2": 0.999, "eps": 1e-8} if model.vision.kind == "resnet" else {}
    names = {field.name for field in dataclasses.fields(parity.Hyperparameters)}
    from_flags = {k: v for k, v in vars(args).items() if k in names and v is not None}
    return parity.Hyperparameters(**{**usual, **from_flags, "learning_rate": learning_rate})


def models(args: argparse.Namespace) -> Iterator[tuple[str, CLIPConfig]]:
    """The architectures to compare, by name."""
    sizes = {key: value for key, value in vars(args).items() if key in SIZES}
    for tower, loss in itertools.product(args.towers, args.losses):
        yield f"{tower} {loss}", parity.architecture(tower, loss, **sizes)


class Data:
    """Training and test pairs, tokenizer and captions, according to the flags."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.caption = args.caption or (
            "{name}, {keywords}" if args.data.startswith("embedded:emoji") else "{caption}"
        )
        self.tokenizer = tokenizers.load("clip", args.context_length)
        augment = augmentation.Augment.from_dict({"crop": args.crop})
        decode = decoding.Decoder(cache_mib=1024)
        self.prepare = Prepare(self.tokenizer, args.image_size, (self.caption,), augment, decode)
        self.training: Any = open_source(args.data)
        test = args.test or (EMOJI_TEST if args.data == EMOJI else "")
        if test:
            self.test: Any = open_source(test)
        else:
            self.training, self.test = learning_data.split(self.training, 10)

    def ours(self, seed: int) -> Iterator[Any]:
        """Batches of clip_jax's pipeline."""
        return learning_data.our_batches(self.training, self.prepare, self.args.batch_size, seed)

    def of_side(self, side: str, model: CLIPConfig, seed: int) -> Iterator[Any]:
        """The batches that a side reads in `own`."""
        if side == "clip_jax" or self.args.batches == "ours":
            return self.ours(seed)
        return learning_data.open_clip_batches(
            self.training, self.caption, self.tokenizer, model, self.args.batch_size, seed
        )

    def test_set(self) -> learning_data.TestSet:
        """Reads the whole test set."""
        a = self.args
        test = learning_data.read_test_set(
            self.test, self.caption, self.tokenizer, a.image_size, a.label, a.prompt
        )
        labels = "no" if test.label_tokens is None else f"{len(test.label_tokens):,}"
        print(f"test: {len(test.image):,} pictures, {len(test.tokens):,} texts, {labels} labels")
        return test


def run_same(args: argparse.Namespace) -> int:
    """Compares losses from equal weights and batches; returns the exit code."""
    data, worst = Data(args), {}
    for name, model in models(args):
        hyper = hyperparameters(args, model, args.learning_rates[0])
        ours = parity.Ours(model, hyper)
        weights = parity.exported(model, ours.variables)
        sides: dict[str, Any] = {
            "clip_jax": ours,
            "open_clip": parity.Theirs(model, hyper, weights, double=args.float64),
        }
        if args.control:
            sides["float64"] = parity.Theirs(model, hyper, weights, double=True)
        print(
            f"\n{name}: {abstract_model(model)}\n{'step':>5}"
            + "".join(f"{side:>12}" for side in sides)
        )
        all_losses: list[list[float]] = []
        for step, batch in zip(range(args.steps), data.ours(0), strict=False):
            all_losses.append([trainer.step(batch) for trainer in sides.values()])
            print(f"{step:>5}" + "".join(f"{loss:>12.6f}" for loss in all_losses[-1]), flush=True)
        losses = dict(zip(sides, np.array(all_losses).T, strict=True))
        worst[name] = {
            (a, b): float(np.abs(losses[a] - losses[b]).max())
            for a, b in itertools.combinations(losses, 2)
        }
    print(f"\nlargest differences of losses in {args.steps} steps (bar {args.bar:g})")
    agree = True
    for name, apart in worst.items():
        print(f"{name:<14}" + "".join(f"{a} and {b} {x:.1e}   " for (a, b), x in apart.items()))
        # a NaN fails every comparison
        agree &= apart["clip_jax", "open_clip"] <= args.bar
    return 0 if agree else 1


def train(
    side: Any, batches: Iterator[Any], args: argparse.Namespace, title: str
) -> dict[str, float]:
    """Trains a side; returns its mean loss over the last tenth of the steps, and the seconds."""
    losses, began = [], time.monotonic()
    for step, batch in zip(range(1, args.steps + 1), batches, strict=False):
        losses.append(side.step(batch))
        if not math.isfinite(losses[-1]):
            break
        if step % args.every == 0 or step == args.steps:
            seconds = time.monotonic() - began
            recent = float(np.mean(losses[-args.every :]))
            print(f"{title} {step:>5}/{args.steps}: loss {recent:.4f}, {seconds:.0f} s", flush=True)
    last = losses[-max(1, args.steps // 10) :]
    return {"train loss": float(np.mean(last)), "seconds": time.monotonic() - began}


def run_own(args: argparse.Namespace) -> int:
    """Runs both sides from their own initial values; returns the exit code."""
    data = Data(args)
    test = data.test_set()
    results = _read_results(args.out)
    for name, model in models(args):
        figures: dict[tuple[str, float], dict[int, dict[str, float]]] = {}
        for rate in args.learning_rates:
            hyper = hyperparameters(args, model, rate)
            settings = _settings(args, name, hyper)
            ours: parity.Ours | None = None  # compiles its step once for all seeds
            for seed, side in itertools.product(range(args.seeds), args.sides):
                key = json.dumps([side, seed, settings], sort_keys=True)
                if key not in results:
                    if side == "clip_jax":
                        ours = ours or parity.Ours(model, hyper)
                        ours.start(seed)
                        trained: Any = ours
                    else:
                        trained = parity.Theirs(model, hyper, seed=seed)
                    title = f"{name} {rate:g} seed {seed} {side:<9}"
                    curve = train(trained, data.of_side(side, model, seed), args, title)
                    sigmoid = model.logit_bias is not None
                    results[key] = curve | learning_data.evaluate(trained, test, sigmoid)
                    _append(args.out, key, results[key])
                    print(title, _line(results[key]), flush=True)
                figures.setdefault((side, rate), {})[seed] = results[key]
        print_table(name, figures, args)
    return 0


def _settings(args: argparse.Namespace, name: str, hyper: parity.Hyperparameters) -> dict[str, Any]:
    """All settings besides side and seed that a run's figures depend on."""
    keys = (*SIZES, "data", "test", "caption", "label", "prompt", "batches", "crop")
    return {"model": name, **dataclasses.asdict(hyper), **{key: vars(args)[key] for key in keys}}


def _read_results(path: Path | None) -> dict[str, dict[str, float]]:
    """The runs in a file of JSON lines, by settings, side and seed."""
    if path is None or not path.is_file():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {json.dumps(record["run"], sort_keys=True): record["figures"] for record in lines}


def _append(path: Path | None, key: str, figures: dict[str, float]) -> None:
    if path is not None:
        with path.open("a") as file:
            print(json.dumps({"run": json.loads(key), "figures": figures}), file=file)


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def print_table(name: str, figures: dict[Any, Any], args: argparse.Namespace) -> None:
    """Prints means and intervals by learning rate and side, and differences of equal seeds."""
    print(f"\n{name}: means of {args.seeds} seeds, ± 95 % (Student's t)")
    metrics = list(next(iter(next(iter(figures.values())).values())))
    print("| learning rate | side | " + " | ".join(metrics) + " |")
    print("|---" * (2 + len(metrics)) + "|")

    def row(rate: float, title: str, runs: Callable[[str], list[float]]) -> None:
        cells = []
        for metric in metrics:
            mean, half = learning_data.mean_and_interval(runs(metric))
            cells.append(f"{mean:.4g}" + ("" if math.isnan(half) else f" ± {half:.2g}"))
        print(f"| {rate:g} | {title} | " + " | ".join(cells) + " |")

    for rate in args.learning_rates:
        sides = [figures[side, rate] for side in args.sides]
        for side, runs in zip(args.sides, sides, strict=True):
            row(rate, side, lambda metric, runs=runs: [run[metric] for run in runs.values()])
        if len(sides) == 2:
            pairs = [(sides[0][seed], sides[1][seed]) for seed in sides[0]]
            row(
                rate,
                f"{args.sides[0]} less {args.sides[1]}",
                lambda metric, pairs=pairs: [a[metric] - b[metric] for a, b in pairs],
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the mode that is asked for."""
    args = parser().parse_args(argv)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    is_same = args.mode == "same"
    if args.small:
        vars(args).update(SMALL)
    args.steps = args.steps or (50 if is_same else 702)
    args.warmup_steps = args.steps // 10 if args.warmup_steps is None else args.warmup_steps
    args.learning_rates = args.learning_rates or [5e-4 if is_same else 1e-3]
    args.towers = args.towers or (["vit", "rn"] if is_same else ["vit"])
    args.losses = args.losses or (["softmax", "sigmoid"] if is_same else ["softmax"])
    peers.import_torchvision()
    return run_same(args) if is_same else run_own(args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
