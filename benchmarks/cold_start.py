"""The first answer of a fresh process, compared with open_clip: ViT-B/32, one image, three labels.

    pip install open_clip_torch && python benchmarks/cold_start.py

Python starts, imports, reads the same safetensors file, compiles, and answers with probabilities.
The file has open_clip's layout and random numbers; it is written once and read once, so it comes
from the page cache. `cold` is clip_jax with an empty compilation cache, `warm` with a cache that an
earlier process filled. The sides alternate, and the result is the median of the ratios of
neighbouring runs. Seconds are measured from outside the process, from its start to its end, so they
exceed the sum of the parts that it reports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import load_weights
import numpy as np
import peers
from PIL import Image

MODEL = "ViT-B/32"
LABELS = ["a diagram", "a dog", "a cat"]
SIDES = ("cold", "warm", "open_clip")


class Clock:
    """Times the consecutive parts of a process, in seconds."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, part: str) -> None:
        """Ends the current part and records its time."""
        now = time.perf_counter()
        self.parts[part], self._last = now - self._last, now


def ours(weights: str, picture: str) -> tuple[Clock, Any]:
    """Computes the probabilities with clip_jax."""
    clock = Clock()
    import clip_jax.inference.pretrained

    clock("import")
    model, preprocess, tokenize = clip_jax.load(MODEL, weights=weights)
    clock("load")
    pixels = preprocess(Image.open(picture))[None]
    image = model.encode_image(pixels, normalized=True).block_until_ready()
    clock("image")
    text = model.encode_text(tokenize(LABELS), normalized=True).block_until_ready()
    clock("text")
    # in NumPy, as clip_jax.pipeline does it
    logits = np.asarray(model.scale) * np.asarray(image) @ np.asarray(text).T
    shares = np.exp(logits - logits.max())
    clock("softmax")
    return clock, (shares / shares.sum())[0].tolist()


def theirs(weights: str, picture: str) -> tuple[Clock, Any]:
    """Computes the probabilities with open_clip."""
    clock = Clock()
    peers.import_torchvision()
    import open_clip
    import torch

    clock("import")
    name = MODEL.replace("/", "-") + "-quickgelu"
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights)
    model.eval()
    tokenize = open_clip.get_tokenizer(name)
    clock("load")
    with torch.no_grad():
        image = model.encode_image(preprocess(Image.open(picture))[None], normalize=True)
        clock("image")
        text = model.encode_text(tokenize(LABELS), normalize=True)
        clock("text")
        answer = (model.logit_scale.exp() * image @ text.T).softmax(dim=-1)[0].tolist()
    clock("softmax")
    return clock, answer


def write(folder: Path) -> tuple[str, str]:
    """Writes random weights in open_clip's layout, and a random image."""
    rng = np.random.default_rng(0)
    weights = load_weights.write(MODEL, folder, "open_clip")
    picture = folder / "picture.png"
    Image.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8)).save(picture)
    return str(weights), str(picture)


def measure(side: str, files: tuple[str, str], cache: str) -> dict[str, Any]:
    """Measures one answer of a fresh process."""
    command = [sys.executable, __file__, "--worker", side, "--files", *files]
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{side} failed: see above")
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def show(what: str, rows: list[dict[str, Any]]) -> None:
    """Prints a line of medians."""
    middle = statistics.median(row["seconds"] for row in rows)
    parts = {key: statistics.median(row["parts"][key] for row in rows) for key in rows[0]["parts"]}
    parts_text = "  ".join(f"{key} {value:.2f}" for key, value in parts.items())
    print(f"{what:18} {middle:5.2f} s   of these {parts_text}", flush=True)


def main() -> None:
    """Alternates the sides and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        clock, answer = (theirs if args.worker == "open_clip" else ours)(*args.files)
        return print(json.dumps({"parts": clock.parts, "answer": answer}))
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        files, warm = write(Path(folder)), f"{folder}/warm"
        measure("warm", files, warm)  # fills the cache
        for i in range(args.repeats):
            for side, measured in rows.items():
                cache = warm if side == "warm" else f"{folder}/{side}-{i}"
                measured.append(measure(side, files, cache))
                show(f"{side} {i}", measured[-1:])
    for side, measured in rows.items():
        show(f"{side}, median", measured)
    answers = [row["answer"] for measured in rows.values() for row in measured]
    if not np.allclose(answers, answers[0], atol=1e-3):
        raise SystemExit(f"the sides answered otherwise: {answers}")
    for side in ("cold", "warm"):
        ratios = [
            b["seconds"] / a["seconds"] for a, b in zip(rows[side], rows["open_clip"], strict=True)
        ]
        print(f"{side}: clip_jax is {statistics.median(ratios):.2f} times as fast as open_clip")


if __name__ == "__main__":
    main()
