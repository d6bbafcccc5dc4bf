"""Ways to fine-tune on labelled pictures, side by side: what the own task gains, what is lost.

    python benchmarks/finetuning.py --base runs/quickstart --data data/stamps --seeds 3

Each way is a run of configs/finetune_labels.py with other keys. The table has the accuracy on the
own test, that on both tests of the emoji, which the base model was trained for, the wall time of
the command and its greatest memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CONTRASTIVE = (
    "--config.objective.name=contrastive",
    "--config.loss.multi_positive=True",
    "--config.data.label=label",
)
WAYS: dict[str, tuple[str, ...]] = {
    "linear probe": (
        "--config.optimizer.freeze=vision",
        "--config.data.cache_features=True",
        "--config.optimizer.layer_decay.vision=1.0",
        "--config.optimizer.learning_rate=3e-3",
    ),
    "LoRA, rank 8": (
        "--config.lora.rank=8",
        "--config.lora.targets=vision/.*/(attention|mlp)/\\w+/kernel",
        "--config.optimizer.layer_decay.vision=1.0",
        "--config.optimizer.learning_rate=3e-3",
    ),
    "all, layer decay 0.65": (),
    "all": ("--config.optimizer.layer_decay.vision=1.0",),
    "probe, then all": (
        "--config.optimizer.groups=({'pattern': 'vision/.*', 'learning_rate': 0.1},)",
        "--config.optimizer.learning_rate=1e-3",
        "--config.optimizer.layer_decay.vision=1.0",
    ),
    "text tower on the locked image tower (LiT)": (
        *CONTRASTIVE,
        "--config.optimizer.freeze=vision",
        "--config.data.cache_features=True",
        "--config.optimizer.layer_decay.vision=1.0",
    ),
    "both towers on the labels' prompts (FLYP)": (*CONTRASTIVE,),
}
SETS = ("mine", "unseen_drawing", "unseen_concept")


def run(command: Sequence[str]) -> tuple[float, float]:
    """Runs a command; returns its seconds and its greatest memory in GiB."""
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_maxrss / 2**20


def metrics_of(workdir: Path) -> dict[str, float]:
    """Returns the last metrics of a run."""
    metrics: dict[str, float] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        metrics |= {k: v for k, v in json.loads(line).items() if "/" in k}
    return metrics


def row(name: str, results: Sequence[dict[str, float]], seconds: float, gib: float) -> str:
    """Formats a row of the table, with means over the seeds."""
    cells = []
    for which in SETS:
        keys = [f"{kind}/{which}/top1" for kind in ("classifier", "zero_shot")]
        key = next(k for k in keys if k in results[0])
        values = [100 * result[key] for result in results]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} | {gib:.2f} |"


def main() -> None:
    """Runs all ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="ways whose names begin so")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    train = [sys.executable, "-m", "clip_jax.main", "--config", "configs/finetune_labels.py"]
    common = [
        f"--config.data.train={args.data / 'train'}",
        f"--config.evaluate.sets.mine.data={args.data / 'test'}",
        "--config.log.tensorboard=False",
    ]
    print(
        "| way | own test | unseen drawings | unseen concepts | s | GiB |\n"
        "|---|---|---|---|---|---|"
    )
    for name, flags in WAYS.items():
        if not name.startswith(args.only):
            continue
        results, seconds, memory = [], [], []
        for seed in range(args.seeds):
            workdir = args.out / f"{re.sub('[^a-z]+', '_', name.lower())}-{seed}"
            base = args.base
            if name == "probe, then all":
                base = args.out / f"linear_probe-{seed}"
            elapsed, gib = run(
                [
                    *(*train, *common, f"--workdir={workdir}", f"--config.weights.path={base}"),
                    *(f"--config.seed={seed}", *flags),
                ]
            )
            seconds.append(elapsed)
            memory.append(gib)
            results.append(metrics_of(workdir))
        print(row(name, results, statistics.mean(seconds), max(memory)), flush=True)


if __name__ == "__main__":
    main()
