"""`python -m clip_jax interpolate`: mixtures of two models of one architecture.

python -m clip_jax interpolate runs/base runs/mine --alpha 0:1:0.1 --out mixed --sets cifar10
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clip_jax.cli.common import CommandParser, split_overrides
from clip_jax.cli.mixing import add_output_flags, open_config, print_note, write_mixture
from clip_jax.errors import UserError
from clip_jax.io.buckets import on_disk
from clip_jax.weights.param_mapping import mapping_of

if TYPE_CHECKING:
    from clip_jax.config import Config
    from clip_jax.inference.model_source import ModelSource

MOST = 1000  # values of alpha


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax interpolate",
        description="Mixes the weights of two models, (1 - alpha)·A + alpha·B (WiSE-FT). One value "
        "of alpha writes the mixture; several are evaluated, and a report draws the curve.",
        epilog="example: python -m clip_jax interpolate runs/base runs/mine --alpha 0:1:0.1 "
        "--out mixed --sets mine=/data/test,cifar10 --own mine",
        allow_abbrev=False,
    )
    for name in ("a", "b"):
        p.add_argument(
            name, metavar=name.upper(), help="a run, its checkpoints/STEP, or anybody's weights"
        )
    p.add_argument("--alpha", required=True, help="0.5, or 0,0.5,1, or START:END:STEP")
    add_output_flags(p)
    p.add_argument("--own", default="", metavar="SET", help="the set of the own task (the first)")
    p.add_argument(
        "--metric",
        default="zero_shot/top1",
        metavar="EVALUATOR/NAME",
        help="the metric that is drawn (default: %(default)s)",
    )
    return p


def parse_alphas(text: str) -> list[float]:
    """Parses the value of `--alpha`: a number, numbers between commas, or START:END:STEP.

    Raises:
      UserError: it is malformed, or a value is not from 0 to 1.
    """
    try:
        if ":" in text:
            start, end, step = map(float, text.split(":"))
            count = (end - start) / step
            if step <= 0 or not 0 <= count < MOST:
                raise ValueError
            values = [round(start + i * step, 9) for i in range(int(count + 1e-6) + 1)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"--alpha {text!r:.80} must be a number, numbers between commas, or START:END:STEP"
        ) from None
    if wrong := [value for value in values if not 0 <= value <= 1]:
        raise UserError(f"--alpha {wrong[0]:g} must be from 0 to 1")
    return values


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    flags, overrides = split_overrides(argv)
    args = parser().parse_args(flags)
    mapping_of(args.to, "--to")
    values = parse_alphas(args.alpha)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from clip_jax.inference import mixtures

    models = mixtures.open_models([args.a, args.b], print_note)
    folder = on_disk(args.out)
    if len(values) == 1:
        a, b = map(mixtures.read_variables, models)
        variables = mixtures.interpolate(a, b, values[0])
        write_mixture(mixtures.as_source(models[0], variables, folder), args)
        return 0
    _evaluate(args, models, values, open_config(args.config, overrides))
    return 0


def _evaluate(
    args: argparse.Namespace,
    models: Sequence[ModelSource],
    values: Sequence[float],
    config: Config,
) -> None:
    """Evaluates all mixtures, prints the table and writes the report."""
    from clip_jax.evaluation import mixtures as evaluated
    from clip_jax.inference import mixtures

    began = time.monotonic()
    folder = on_disk(args.out)
    evaluation = evaluated.MixtureEvaluation(config, models[0], folder, args.suite, args.sets)
    a, b = map(mixtures.read_variables, models)
    points = []
    for alpha in values:
        source = mixtures.as_source(models[0], mixtures.interpolate(a, b, alpha), folder)
        points.append(evaluated.Mixture(alpha, evaluation.metrics(source)))
        # each time, because a set or metric that does not exist must not cost all evaluations
        curve = evaluated.curve_of(points, args.own, args.metric)
    page = evaluated.write_report(folder, curve, models, began)
    print(evaluated.table(curve))
    print(f"look at {page}", file=sys.stderr)
