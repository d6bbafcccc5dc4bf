"""Evaluating mixtures of models on the sets of a config, and their report."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clip_jax.config.checks import check
from clip_jax.config.schema import Config
from clip_jax.distributed import multihost, sharding
from clip_jax.errors import UserError
from clip_jax.evaluation import results as results_lib
from clip_jax.evaluation.evaluate import check_not_empty, load_encoder, load_tokenizer
from clip_jax.evaluation.evaluators import load_evaluators
from clip_jax.evaluation.report import charts, formats, tables
from clip_jax.evaluation.report.cards import card, grid
from clip_jax.evaluation.report.charts import Frame, Point, Series
from clip_jax.evaluation.report.markup import Markup, join
from clip_jax.evaluation.report.scales import scale_around
from clip_jax.evaluation.report.section import Section, without_thumbnails
from clip_jax.evaluation.report.tables import Cell, Column
from clip_jax.evaluation.suite import Suite
from clip_jax.inference.model_source import ModelSource


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of two models and its metrics.

    Attributes:
      alpha: the weight of the second model, from 0 to 1.
      metrics: the values of the metrics, by name.
    """

    alpha: float
    metrics: Mapping[str, float]


class MixtureEvaluation:
    """An evaluation of models of one architecture on the datasets of a config.

    Args:
      c: the config.
      model: the model whose tokenizer and preprocessing are used.
      folder: the folder where results are stored, so that they are reused.
      suite: as for `evaluate.evaluate`.
      sets: as for `evaluate.evaluate`.

    Raises:
      UserError: there is nothing to evaluate on.
    """

    def __init__(
        self, c: Config, model: ModelSource, folder: Path, suite: str = "", sets: str = ""
    ) -> None:
        self._config = c = check(c)
        self._folder = folder
        self._tokenizer = load_tokenizer(model, c)
        evaluators = load_evaluators(suite or c.evaluate.suite, "--suite")
        self._suite = Suite(
            c.evaluate,
            self._tokenizer,
            model.preprocess,
            evaluators,
            explicit=bool(suite),
            sets=sets,
        )
        check_not_empty(self._suite)
        if self._suite.needs_training:
            raise UserError("overlap looks at training images, not at mixtures: leave it out")
        self._mesh = sharding.make_mesh(c.mesh.to_dict())

    def metrics(self, model: ModelSource) -> dict[str, float]:
        """Evaluates a model and returns its metrics by name."""
        c = self._config
        dtype = c.evaluate.dtype or model.dtype or "float32"
        encoder, scale, _ = load_encoder(
            model, dtype, self._tokenizer.pad_id, self._mesh, c.evaluate.batch_size
        )
        results = self._suite.evaluate(
            encoder, scale, self._folder / "evaluation", say=multihost.say_first
        )
        return results.metrics()


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric of each mixture on the dataset of the own task and on the other datasets.

    Attributes:
      own: the name of the metric on the own dataset.
      others: the names of the metric on the other datasets.
      mixtures: the mixtures, in order of alpha.
    """

    own: str
    others: tuple[str, ...]
    mixtures: tuple[Mixture, ...]

    def mean_of_others(self, mixture: Mixture) -> float:
        """Returns the mean of the metric over the other datasets."""
        return sum(mixture.metrics[name] for name in self.others) / len(self.others)


def curve_of(mixtures: Sequence[Mixture], own: str, metric: str) -> Curve:
    """Returns the curve of one metric over the mixtures.

    Args:
      mixtures: the evaluated mixtures, in any order.
      own: the name of the own task's dataset; empty: the first dataset that has the metric.
      metric: the metric as EVALUATOR/NAME, such as `zero_shot/top1`.

    Raises:
      UserError: no dataset, or not `own`, has the metric.
    """
    evaluator, _, name = metric.partition("/")
    start, end = f"{evaluator}/", f"/{name}"
    names = [key for key in mixtures[0].metrics if key.startswith(start) and key.endswith(end)]
    own_name = f"{start}{own}{end}" if own else next(iter(names), "")
    if own_name not in names:
        known = ", ".join(mixtures[0].metrics)
        raise UserError(f"no metric {own_name or metric!r}: there are {known:.400}")
    others = tuple(key for key in names if key != own_name)
    return Curve(own_name, others, tuple(sorted(mixtures, key=lambda m: m.alpha)))


def table(curve: Curve) -> str:
    """Formats a curve as lines of text, one per mixture."""
    names = (curve.own, *curve.others)
    lines = ["alpha  " + "  ".join(names)]
    for mixture in curve.mixtures:
        values = (f"{mixture.metrics[name]:>{len(name)}.2%}" for name in names)
        lines.append(f"{mixture.alpha:5.3g}  " + "  ".join(values))
    return "\n".join(lines)


def _section(curve: Curve, _: Mapping[str, Any]) -> Markup:
    """Returns both charts and the table."""
    names = (curve.own, *curve.others)
    series = [Series(curve.own, [(m.alpha, m.metrics[curve.own]) for m in curve.mixtures])]
    if curve.others:
        means = [(m.alpha, curve.mean_of_others(m)) for m in curve.mixtures]
        series.append(Series("mean of the other sets", means, "c2"))
    values = [y for line in series for _, y in line.points]
    frame = Frame(scale_around([0, 1]), scale_around(values, share=True), "alpha", "")
    drawn = [card("By alpha", charts.lines("By alpha", frame, series), "")]
    if curve.others:
        points = [
            Point(f"{m.alpha:.3g}", curve.mean_of_others(m), m.metrics[curve.own])
            for m in curve.mixtures
        ]
        x = scale_around([point.x for point in points], share=True)
        y = scale_around([point.y for point in points], share=True)
        frame = Frame(x, y, "mean of the other sets", curve.own)
        line = [(point.x, point.y) for point in points]
        chart = charts.scatter("Mixtures", frame, points, line=line, diagonal=False)
        drawn.append(card("Own task against others", chart, ""))
    rows = [
        [Cell(f"{m.alpha:.3g}"), *(Cell(formats.percent(m.metrics[name])) for name in names)]
        for m in curve.mixtures
    ]
    columns = [Column("alpha"), *(Column(name) for name in names)]
    return join(grid(drawn), tables.table("Mixtures", columns, rows))


def write_report(folder: Path, curve: Curve, models: Sequence[ModelSource], began: float) -> Path:
    """Writes `report.json` and the report page.

    Args:
      folder: the folder for both files.
      curve: the metric of the mixtures.
      models: the models that were mixed.
      began: the start of the evaluation, in seconds of `time.monotonic`.

    Returns:
      The path of the page.
    """
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    facts = {"name": models[0].name, "checkpoint": " and ".join(str(m.path) for m in models)}
    document = {
        "version": results_lib.VERSION,
        "model": {**facts, "created": created},
        "sets": {},
        "mixtures": [dataclasses.asdict(mixture) for mixture in curve.mixtures],
        "seconds": time.monotonic() - began,
    }
    draw = without_thumbnails(partial(_section, curve))
    section = Section("mixtures", "Mixtures of two models", draw)
    return results_lib.write_document(folder, document, {}, [section])
