"""`python -m clip_jax export`: a model as programs for other runtimes, StableHLO or ONNX.

python -m clip_jax export runs/mine exported
python -m clip_jax export runs/mine exported --format onnx --labels "a cat,a dog"
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from clip_jax.cli.common import CommandParser, guesses_as_notes
from clip_jax.cli.labels import read_labels, read_templates
from clip_jax.cli.loading import add_loading_flags, check_sizes
from clip_jax.errors import UserError, megabytes
from clip_jax.io.buckets import on_disk
from clip_jax.models.model_config import DTYPES

_SIDES = ("image", "text")
_FORMATS = ("stablehlo", "onnx")
_IMAGES = ("uint8", "any-size", "float32")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    command = "python -m clip_jax export"
    p = CommandParser(
        prog=command,
        description="Writes the towers of a model as programs, StableHLO of jax.export or ONNX, "
        "with their parameters and export.json. clip_jax.inference.exported.load_exported runs "
        "them.",
        epilog=f"example: {command} ViT-B/32 exported --weights ViT-B-32.pt --format onnx",
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
    p.add_argument("--format", default="stablehlo", choices=_FORMATS, help="(default: %(default)s)")
    p.add_argument(
        "--sides",
        default="both",
        help="image, text, both (the default), or none, with --labels",
    )
    p.add_argument(
        "--batch", type=int, metavar="N", help="rows of a batch (default: programs take any number)"
    )
    p.add_argument(
        "--images",
        default="uint8",
        choices=_IMAGES,
        help="what programs take: uint8 [batch, size, size, 3] (the default); any-size: uint8 "
        "[batch, height, width, 3], which the program resizes and crops; float32: [batch, 3, size, "
        "size], normalised as by the preprocessing of transformers and open_clip",
    )
    p.add_argument("--normalized", action="store_true", help="scale features to length one")
    p.add_argument(
        "--labels",
        metavar="A,B | @FILE",
        help="also write a program that gives the probabilities of these labels for images",
    )
    p.add_argument(
        "--templates",
        metavar="A|B",
        help="with --labels: prompts with {} for the label, separated by | (default: the label)",
    )
    p.add_argument(
        "--quantize",
        choices=("int8",),
        help="for ONNX: matrix products and tables of words in 8 bits, quantised as programs run",
    )
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
        help="where StableHLO programs run: cpu, cuda, rocm, tpu (default: %(default)s)",
    )
    add_loading_flags(p)
    p.add_argument("--ema", action="store_true", help="the averaged weights of a run")
    p.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    check_sizes(args)
    sides = {"none": [], "both": list(_SIDES)}.get(args.sides, args.sides.split(","))
    if set(sides) - set(_SIDES):
        raise UserError(f"--sides {args.sides} must be image, text, both or none")
    if args.batch is not None and args.batch < 1:
        raise UserError(f"--batch {args.batch} must be at least 1")
    _check_format(args)
    labels = _read_labels(args)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave accelerators to others

    from absl import logging

    from clip_jax.inference import exported

    folder = on_disk(args.dest)
    earlier = exported.earlier_files(folder)
    if earlier and not args.overwrite:
        raise UserError(f"{folder} holds {', '.join(earlier)} already: --overwrite replaces them")
    logging.set_verbosity("error")  # without orbax's warning that a checkpoint is only read
    with guesses_as_notes():
        model, options = _load(args, *labels)
    sizes = exported.export_model(
        model,
        folder,
        form=args.format,
        sides=sides,
        batch=args.batch,
        normalized=args.normalized,
        images=args.images,
        quantize=args.quantize,
        platforms=[platform for platform in args.platforms.split(",") if platform],
        **options,
    )
    if args.json:
        print(json.dumps({"model": str(model), "files": sizes}))
        return 0
    print(f"read {args.source}: {model}")
    for name, size in sizes.items():
        print(f"wrote {folder / name}  {megabytes(size)}")
    return 0


def _read_labels(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns the labels, none without --labels, and the templates of their prompts."""
    if args.labels is None:
        if args.sides == "none":
            raise UserError("--sides none needs --labels: nothing else is left to write")
        if args.templates is not None:
            raise UserError("--templates are prompts for --labels: give these, too")
        return [], []
    templates = read_templates(args.templates)
    return read_labels(args.labels), templates


def _load(
    args: argparse.Namespace, names: list[str], templates: list[str]
) -> tuple[Any, dict[str, Any]]:
    """Returns the model, and what `export_model` takes of its preprocessing, words and labels."""
    from clip_jax.inference import pretrained
    from clip_jax.inference.programs import Labels
    from clip_jax.inference.zero_shot import ZeroShotClassifier, unique_labels

    source, model, preprocess, tokenize = pretrained.load_source(
        args.source,
        args.weights,
        dtype=args.dtype,
        params=args.params,
        ema=args.ema,
        image_size=args.image_size,
        context_length=args.context_length,
        keep_positions=args.keep_positions,
        max_num_patches=args.max_num_patches,
        tokenizer=args.tokenizer,
    )
    labels = None
    if names:
        by_words = "text" in source.untrained
        classifier = ZeroShotClassifier(model, preprocess, tokenize, by_words=by_words)
        unique = unique_labels(names)
        labels = Labels(tuple(unique), classifier.label_features(unique, templates))
    tokenizer = args.tokenizer or source.tokenizer
    return model, {"preprocess": preprocess, "tokenizer": tokenizer, "labels": labels}


def _check_format(args: argparse.Namespace) -> None:
    """Raises UserError for a flag that the format has no use for."""
    if args.format != "onnx":
        if args.quantize:
            raise UserError("--quantize needs --format onnx")
        return
    if args.dtype not in (None, "float32") or args.params != "float32":
        raise UserError(
            "ONNX programs compute in float32 and hold float32 (or --quantize int8): leave --dtype "
            "and --params out"
        )
    args.dtype = "float32"
