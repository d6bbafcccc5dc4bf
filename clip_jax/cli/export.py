"""`python -m clip_jax export`: a model as StableHLO programs.

python -m clip_jax export runs/mine exported
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from clip_jax.cli.common import CommandParser, guesses_as_notes
from clip_jax.errors import UserError, megabytes
from clip_jax.models.model_config import DTYPES

_SIDES = ("image", "text")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    command = "python -m clip_jax export"
    p = CommandParser(
        prog=command,
        description="Writes the towers of a model as StableHLO programs of jax.export, with their "
        "parameters and export.json. clip_jax.inference.exported.load_exported runs them.",
        epilog=f"example: {command} ViT-B/32 exported --weights ViT-B-32.pt --normalized",
        allow_abbrev=False,
    )
    p.add_argument(
        "source",
        metavar="SOURCE",
        help="a run, a folder of transformers or of open_clip, a file of weights, or with "
        "--weights the name of a model",
    )
    p.add_argument("dest", metavar="DEST", help="the folder of the programs")
    p.add_argument("--weights", metavar="FILE", help="a file of OpenAI, open_clip or transformers")
    p.add_argument("--sides", default=",".join(_SIDES), help="image, text, or both (the default)")
    p.add_argument(
        "--batch", type=int, metavar="N", help="rows of a batch (default: programs take any number)"
    )
    p.add_argument("--normalized", action="store_true", help="scale features to length one")
    p.add_argument(
        "--dtype", choices=DTYPES, help="of the products (default: as trained, or float32)"
    )
    p.add_argument(
        "--params",
        default="float32",
        choices=("float32", "bfloat16", "float16", "keep"),
        help="the dtype of the parameters (default: %(default)s)",
    )
    p.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        help="where the programs run: cpu, cuda, rocm, tpu (default: %(default)s)",
    )
    p.add_argument("--ema", action="store_true", help="the averaged weights of a run")
    p.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    sides = [side for side in args.sides.split(",") if side]
    if not sides or set(sides) - set(_SIDES):
        raise UserError(f"--sides {args.sides} must be image, text or image,text")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch {args.batch} must be at least 1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave accelerators to others

    from absl import logging

    from clip_jax.inference import exported, pretrained

    folder = Path(args.dest).expanduser()
    if (folder / exported.MANIFEST).exists() and not args.overwrite:
        raise UserError(f"{folder} holds an export already: --overwrite replaces it")
    logging.set_verbosity("error")  # without orbax's warning that a checkpoint is only read
    with guesses_as_notes():
        source, model, preprocess, _ = pretrained.load_source(
            args.source, args.weights, dtype=args.dtype, params=args.params, ema=args.ema
        )
    sizes = exported.export_model(
        model,
        folder,
        sides=sides,
        batch=args.batch,
        normalized=args.normalized,
        platforms=[platform for platform in args.platforms.split(",") if platform],
        preprocess=preprocess,
        tokenizer=source.tokenizer,
    )
    if args.json:
        print(json.dumps({"model": str(model), "files": sizes}))
        return 0
    print(f"read {args.source}: {model}")
    for name, size in sizes.items():
        print(f"wrote {folder / name}  {megabytes(size)}")
    return 0
