"""`python -m clip_jax soup`: the average of several models of one architecture.

python -m clip_jax soup runs/a runs/b runs/c --out soup --greedy --metric zero_shot/held/top1
"""

from __future__ import annotations

import argparse
import os
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
    from clip_jax.models.clip import Variables


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax soup",
        description="Writes the average of several models: of all, or greedily of those that raise "
        "a metric (Wortsman et al. 2022, Model soups).",
        epilog="example: python -m clip_jax soup runs/a runs/b runs/c --out soup --greedy "
        "--metric zero_shot/held/top1 --sets held=/data/held",
        allow_abbrev=False,
    )
    p.add_argument(
        "models", nargs="+", metavar="MODEL", help="runs, their checkpoints/STEP, or weights"
    )
    add_output_flags(p)
    p.add_argument(
        "--greedy",
        action="store_true",
        help="begin with the best model, and add each next one if the metric does not fall",
    )
    p.add_argument(
        "--metric",
        default="",
        metavar="NAME",
        help="of --greedy, such as zero_shot/held/top1; -NAME: the lower the better",
    )
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    flags, overrides = split_overrides(argv)
    args = parser().parse_args(flags)
    mapping_of(args.to, "--to")
    if len(args.models) < 2:
        raise UserError("a soup needs two models or more")
    if args.greedy != bool(args.metric):
        raise UserError("--greedy and --metric NAME belong together: give both or neither")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from clip_jax.inference import mixtures

    models = mixtures.open_models(args.models, print_note)
    if args.greedy:
        variables = _greedy(args, models, open_config(args.config, overrides))
    else:
        average = mixtures.Average(mixtures.read_variables(models[0]))
        for model in models[1:]:
            average = average.with_one_more(mixtures.read_variables(model))
        variables = average.variables()
    write_mixture(mixtures.as_source(models[0], variables, on_disk(args.out)), args)
    return 0


def _greedy(args: argparse.Namespace, models: Sequence[ModelSource], config: Config) -> Variables:
    """Returns the variables of the greedy soup; prints each decision."""
    from clip_jax.evaluation.mixtures import MixtureEvaluation
    from clip_jax.inference import mixtures

    folder = on_disk(args.out)
    evaluation = MixtureEvaluation(config, models[0], folder, args.suite, args.sets)
    sign, name = (-1, args.metric[1:]) if args.metric.startswith("-") else (1, args.metric)

    def value(variables: Variables) -> float:
        metrics = evaluation.metrics(mixtures.as_source(models[0], variables, folder))
        if name not in metrics:
            raise UserError(f"no metric {name!r:.80}: there are {', '.join(metrics):.400}")
        return sign * metrics[name]

    alone = [value(mixtures.read_variables(model)) for model in models]
    order = sorted(range(len(models)), key=lambda i: -alone[i])
    average, best = mixtures.Average(mixtures.read_variables(models[order[0]])), alone[order[0]]
    print(f"{models[order[0]].path}: {name} {sign * best:.6g}, the best alone")
    for i in order[1:]:
        candidate = average.with_one_more(mixtures.read_variables(models[i]))
        reached = value(candidate.variables())
        decision = "added" if reached >= best else "left out"
        print(f"{models[i].path}: {sign * reached:.6g} with it, {decision}")
        if reached >= best:
            average, best = candidate, reached
    print(f"the soup of {average.count}: {name} {sign * best:.6g}")
    return average.variables()
