"""ONNX programs: time beside JAX and open_clip's torch, and what 8 bits cost in zero-shot.

    python benchmarks/onnx_export.py speed --model ViT-B-32 --batch 1,32
    python benchmarks/onnx_export.py zero-shot --run runs/quickstart

`speed` alternates between ONNX Runtime, the same in 8 bits, `jax.jit` and open_clip, all in one
process with random weights and the same number of threads, and prints the median of the rounds.
`zero-shot` classifies the embedded emoji with a run and with its exports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def speed(name: str, batches: list[int], rounds: int, threads: int) -> None:
    """Prints the milliseconds of each side and tower."""
    import jax.numpy as jnp
    import onnxruntime
    import peers
    import torch
    from flax import nnx

    from clip_jax.inference import exported
    from clip_jax.inference.programs import build_programs
    from clip_jax.models import architectures
    from clip_jax.models.clip import CLIP

    peers.import_torchvision()
    import open_clip

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = CLIP(architectures.find_architecture(name), rngs=nnx.Rngs(0))
    theirs = open_clip.create_model(name).eval()
    size, text = model.config.vision.image_size, model.config.text
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        for quantize in (None, "int8"):
            folder = Path(place) / str(quantize)
            sizes = exported.export_model(model, folder, form="onnx", quantize=quantize)
            print(quantize or "float32", {n: f"{b / 1e6:.0f} MB" for n, b in sizes.items()})
        for program in build_programs(model, ("image", "text")):
            sessions = {
                kind: onnxruntime.InferenceSession(
                    Path(place) / kind / f"{program.name}.onnx", options
                )
                for kind in ("None", "int8")
            }
            for batch in batches:
                if program.name == "image":
                    rows = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
                    given = torch.randn(batch, 3, size, size)
                    encode = theirs.encode_image
                else:
                    shape = (batch, text.context_length)
                    rows = rng.integers(1, text.vocab_size - 1, shape, dtype=np.int32)
                    given = torch.from_numpy(rows.astype(np.int64))
                    encode = theirs.encode_text
                sides = _sides(program, sessions, jnp.asarray(rows), rows, encode, given)
                _report(f"{program.name} × {batch}", sides, rounds)


def _sides(
    program: Any, sessions: Any, on_device: Any, rows: np.ndarray, encode: Any, given: Any
) -> dict[str, Any]:
    import jax
    import torch

    compiled = jax.jit(program.run)
    name = sessions["None"].get_inputs()[0].name

    def torch_side() -> None:
        with torch.inference_mode():
            encode(given)

    return {
        "ONNX": lambda: sessions["None"].run(None, {name: rows}),
        "ONNX int8": lambda: sessions["int8"].run(None, {name: rows}),
        "open_clip": torch_side,
        "clip_jax": lambda: compiled(program.parameters, on_device).block_until_ready(),
    }


def _report(what: str, sides: dict[str, Any], rounds: int) -> None:
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            before = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - before)
    medians = {side: 1000 * statistics.median(own) for side, own in times.items()}
    base = medians["open_clip"]
    print(what, *(f"| {side} {t:.1f} ms ({base / t:.2f}×)" for side, t in medians.items()))


def zero_shot(run: str) -> None:
    """Prints top-1 and top-5 of a run and of its exports on both embedded tests."""
    import clip_jax
    from clip_jax.evaluation.datasets.dataset_loader import open_dataset
    from clip_jax.inference import exported

    model, preprocess, tokenize = clip_jax.load(run)
    with tempfile.TemporaryDirectory() as place:
        sides: dict[str, Any] = {"clip_jax": model}
        for name, quantize in (("ONNX", None), ("ONNX int8", "int8")):
            folder = Path(place) / name
            exported.export_model(model, folder, form="onnx", quantize=quantize)
            sides[name] = exported.load_exported(folder)
        for test in ("unseen_drawing", "unseen_concept"):
            values = {
                "data": f"embedded:emoji/{test}-*.tar",
                "labels": "embedded:emoji/labels.json",
                "label": "name",
            }
            dataset = open_dataset(test, values, "", templates=("{}",), caption="{name}")
            assert dataset.target is not None
            images = np.stack([preprocess(dataset.source[i].image) for i in range(len(dataset))])
            tokens = tokenize(dataset.labels, truncate=True)
            for name, side in sides.items():
                features = [_unit(_encode(side.encode_image, images))]
                features.append(_unit(_encode(side.encode_text, tokens)))
                order = np.argsort(-(features[0] @ features[1].T), axis=1)
                hits = order[:, :5] == dataset.target[:, None]
                top1, top5 = 100 * hits[:, 0].mean(), 100 * hits.any(1).mean()
                print(f"{test}: {name:9} top-1 {top1:.2f} %, top-5 {top5:.2f} %")


def _encode(encode: Any, rows: np.ndarray) -> np.ndarray:
    parts = [np.asarray(encode(rows[i : i + 128])) for i in range(0, len(rows), 128)]
    return np.concatenate(parts)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "zero-shot"))
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--run", default="runs/quickstart")
    args = parser.parse_args()
    if args.what == "speed":
        batches = [int(batch) for batch in args.batch.split(",")]
        speed(args.model, batches, args.rounds, args.threads)
    else:
        zero_shot(args.run)


if __name__ == "__main__":
    main()
