"""Asks a trained model what pictures show.

python -m clip_jax.classify --checkpoint runs/quickstart cat.png --labels "a cat,a dog"
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_jax.errors import DamageWarning, GuessedWarning, UserError
from clip_jax.main import LinesParser, report

_SAID = (GuessedWarning, DamageWarning)  # warnings that are lines of the command's


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = LinesParser(
        prog="python -m clip_jax.classify",
        description="Says which of some labels pictures show, best first.",
        epilog="example: python -m clip_jax.classify --checkpoint runs/quickstart cat.png "
        '--labels "a cat,a dog"',
        allow_abbrev=False,
    )
    p.add_argument("images", nargs="+", metavar="IMAGE", help="pictures (png, jpg, webp, …)")
    p.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="the folder of a run, of transformers or of open_clip, or with --weights a model's "
        "name such as ViT-B/32",
    )
    p.add_argument("--weights", metavar="FILE", help="OpenAI's, open_clip's or transformers' file")
    p.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="what a lone file computes: gelu for open_clip's own models (default: quick_gelu, as "
        "OpenAI's)",
    )
    p.add_argument(
        "--labels",
        required=True,
        help="labels between commas, or @FILE: a JSON list or a label a line",
    )
    p.add_argument(
        "--templates",
        default="{}",
        help="prompts with {} for the label, between |; their features are averaged (default {})",
    )
    p.add_argument("--top", type=int, default=5, help="how many labels to show (default 5)")
    p.add_argument("--json", action="store_true", help="a JSON list a picture, for machines")
    return p


def read_labels(value: str) -> list[str]:
    """Labels of `a,b`, or of `@FILE` (a JSON list or a label a line).

    Raises:
      UserError: no label, one twice, or no such file.
    """
    if value.startswith("@"):
        try:
            text = Path(value[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--labels: {value[1:]} cannot be read ({error})") from None
        try:
            labels = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
        except json.JSONDecodeError as error:
            raise UserError(f"--labels: {value[1:]} is not JSON ({error})") from None
    else:
        labels = value.split(",")
    labels = [str(label).strip() for label in labels if str(label).strip()]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if not labels or twice:
        raise UserError(
            f"--labels: {twice[0]!r} stands there twice" if twice else "--labels is empty"
        )
    return labels


def classify(
    checkpoint: str,
    images: Sequence[str],
    labels: Sequence[str],
    templates: Sequence[str] = ("{}",),
    weights: str | None = None,
    activation: str | None = None,
) -> list[list[dict[str, Any]]]:
    """For each picture `[{"label": …, "score": …}, …]`, best first."""
    from clip_jax.data.images import read

    decoded = [read(path) for path in images]

    from absl import logging

    from clip_jax import pretrained

    logging.set_verbosity("error")  # orbax warns that a checkpoint is only read
    with warnings.catch_warnings(record=True) as said:
        for kind in _SAID:
            warnings.simplefilter("always", kind)
        classifier = pretrained.pipeline(model=checkpoint, weights=weights, activation=activation)
    for warning in said:
        if issubclass(warning.category, _SAID):
            print(warning.message, file=sys.stderr)
    return classifier(decoded, labels, templates)


def run(argv: Sequence[str]) -> int:
    """The whole command; returns the exit code."""
    args = parser().parse_args(argv)
    if args.top < 1:
        raise UserError(f"--top {args.top} must be at least 1")
    labels = read_labels(args.labels)
    templates = args.templates.split("|")
    if wrong := [t for t in templates if "{}" not in t]:
        raise UserError(f"--templates: {wrong[0]!r} has no {{}} for the label")
    answers = classify(
        args.checkpoint, args.images, labels, templates, args.weights, args.activation
    )
    for path, scores in zip(args.images, answers, strict=True):
        shown = scores[: args.top]
        if args.json:
            print(json.dumps(shown))
            continue
        if len(args.images) > 1:
            print(path)
        for item in shown:
            print(f"{item['score']:7.2%}  {item['label']}")
    return 0


if __name__ == "__main__":
    report(run, sys.argv[1:])
