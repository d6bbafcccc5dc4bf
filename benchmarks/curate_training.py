"""What curation is worth: a noisy pool, what curation selects of it, and what an oracle would.

    python benchmarks/curate_training.py --out runs/noisy

The pool is made of the embedded emoji: 20,000 pairs of which 35 % are good, and the others are
mislabelled, repeated, cut to a corner, stretched or tiny. A small model learns on 1,500 clean pairs
and scores the pool, as a data filtering network does. Models of one config and number of samples
then learn on the whole pool, on what curation selects, and on the pairs that are known to be good.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clip_jax.data.sources import open_source, read_pair

# The share of the pool's pairs of each kind.
KINDS = {
    "good": 0.35,
    "mislabelled": 0.35,
    "repeated": 0.1,
    "corner": 0.1,
    "stretched": 0.05,
    "tiny": 0.05,
}
POOL, CLEAN, SIDE = 20_000, 1_500, 72  # pairs of the pool, of the clean set, pixels of an image
STEPS, FILTER_STEPS = 600, 400
KEEP = 0.5  # the share of the pool that scores leave
SETS = ("unseen_drawing", "unseen_concept")


def encoded(image: Image.Image) -> bytes:
    """Returns an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a member to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def spoiled(kind: str, image: Image.Image, rng: random.Random) -> Image.Image:
    """Returns an image as a kind of pair has it."""
    if kind == "corner":
        side, x, y = SIDE // 3, rng.choice((0, 2)), rng.choice((0, 2))
        box = (x * side, y * side, (x + 1) * side, (y + 1) * side)
        return image.crop(box).resize((SIDE, SIDE))
    if kind == "stretched":
        return image.resize((SIDE * 4, SIDE))
    return image.resize((SIDE // 6, SIDE // 6)) if kind == "tiny" else image


def make(out: Path) -> None:
    """Writes the clean set, the pool, and the pool's good pairs."""
    source = open_source("embedded:emoji/train-*.tar")
    rng = random.Random(0)
    order = list(range(len(source)))
    rng.shuffle(order)
    with tarfile.open(out / "clean.tar", "w") as file:
        for n, i in enumerate(order[:CLEAN]):
            pair = read_pair(source, i)
            add(file, f"{n:06}.json", json.dumps(pair.text).encode())
            add(file, f"{n:06}.webp", pair.image)
    rest = order[CLEAN:]
    kinds = [kind for kind, share in KINDS.items() for _ in range(round(share * POOL))]
    rng.shuffle(kinds)
    seen: list[int] = []
    with (
        tarfile.open(out / "pool.tar", "w") as pool,
        tarfile.open(out / "oracle.tar", "w") as oracle,
    ):
        at = 0
        for n, kind in enumerate(kinds):
            if kind == "good" and at < len(rest):
                i = rest[at]
                at += 1
                seen.append(i)
            else:
                kind = "repeated" if kind == "good" else kind
                i = rng.choice(seen or rest)
            pair = read_pair(source, i)
            text = pair.text if kind != "mislabelled" else read_pair(source, rng.choice(rest)).text
            with Image.open(io.BytesIO(pair.image)) as opened:
                image = opened.convert("RGBA").resize((SIDE, SIDE))
            content = encoded(spoiled(kind, image, rng))
            fields = json.dumps({**text, "kind": kind}).encode()
            for file in (pool, oracle) if kind == "good" else (pool,):
                add(file, f"{n:06}.json", fields)
                add(file, f"{n:06}.png", content)


def call(*arguments: str) -> None:
    """Runs a command of clip_jax."""
    print("$ python -m clip_jax", " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "clip_jax", *arguments], check=True)


def train(out: Path, name: str, seed: int, steps: int, *flags: str) -> dict[str, float]:
    """Trains a model, or goes on with it; returns its accuracies."""
    run = out / f"{name}-{seed}"
    call(
        *("train", "--config=quickstart", f"--config.workdir={run}", f"--config.seed={seed}"),
        *(f"--config.steps={steps}", f"--config.evaluate.every={steps}"),
        *("--config.optimizer.warmup_steps=60", f"--config.checkpoint.every={steps}"),
        *flags,
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {key: value for row in rows for key, value in row.items()}
    return {name: float(values[f"zero_shot/{name}/top1"]) for name in SETS}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, help="the folder of everything")
    p.add_argument("--seeds", type=int, default=3)
    args = p.parse_args(argv)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pool.tar").exists():
        make(out)
    pool, model = str(out / "pool.tar"), str(out / "filter-0")
    train(out, "filter", 0, FILTER_STEPS, f"--config.data.train={out / 'clean.tar'}")
    call("curate", "score", model, pool, "--out", str(out / "scores"), "--captions", "{name}")
    call(
        *("curate", pool, "--out", str(out / "curated"), "--captions", "{name}"),
        *("--min-side=32", "--aspect-below=3", "--duplicates=image", "--near-duplicates=0"),
        *("--annotations", str(out / "scores"), f"--top-share=clip_score={KEEP}"),
    )
    print_kinds(out)
    arms = {
        "the whole pool": (f"--config.data.train={pool}",),
        "what curation selects": (
            f"--config.data.train={pool}",
            f"--config.data.selection={out / 'curated'}",
        ),
        "the good pairs": (f"--config.data.train={out / 'oracle.tar'}",),
    }
    for title, flags in arms.items():
        name = title.replace(" ", "_")
        scores = [train(out, name, seed, STEPS, *flags) for seed in range(args.seeds)]
        for key in SETS:
            values = [100 * score[key] for score in scores]
            listed = ", ".join(f"{value:.1f}" for value in values)
            print(f"{title}: {key} {statistics.mean(values):.1f} % ({listed})", flush=True)


def print_kinds(out: Path) -> None:
    """Prints how many pairs of each kind the pool has, and how many curation keeps."""
    from clip_jax.data.selection import SelectedPairs, Selection

    source = open_source(str(out / "pool.tar"))
    selected = SelectedPairs(source, Selection.open(str(out / "curated")))
    before, after = (
        Counter(part.text(i)[0]["kind"] for i in range(len(part))) for part in (source, selected)
    )
    for kind in KINDS:
        print(f"{kind}: {before[kind]:,} pairs, {after[kind]:,} kept", flush=True)


if __name__ == "__main__":
    main()
