"""The results of an evaluation: `report.json` in numbers, `report.html` to look at."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from clip_jax.data.images.lettering import encodable
from clip_jax.distributed import multihost
from clip_jax.evaluation import report, user_code
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators import EVALUATORS, Evaluator, Result
from clip_jax.evaluation.report.section import Section
from clip_jax.evaluation.serialization import thumbnails_in
from clip_jax.io import files
from clip_jax.io.files import JsonObject

VERSION = 1
JSON, PAGE = "report.json", "report.html"
EMA = "ema"  # the prefix of the metrics of averaged weights, and the folder of their report
_POINTS = 400  # of a curve
_NO_SHARES = ("/loss", "_loss", "/perplexity", "/cider")  # endings of metrics that are no shares
_RUN_CURVES = ("loss", "learning_rate", "images_per_second", "mfu")

Curves = dict[str, list[list[float]]]


class Finding(NamedTuple):
    """The result of an evaluator on a dataset.

    Attributes:
      evaluator: the name of the evaluator.
      dataset: the dataset.
      result: the result.
    """

    evaluator: str
    dataset: Dataset
    result: Result


@dataclasses.dataclass(frozen=True)
class Missing:
    """A dataset or an evaluator that could not be evaluated.

    Attributes:
      set: the dataset, the evaluator, or `DATASET: EVALUATOR`.
      why: the reason, and what to do.
      evaluator: the evaluator; empty for a dataset.
    """

    set: str
    why: str
    evaluator: str = ""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that the report shows.

    Attributes:
      name: the name of the architecture or of the path.
      checkpoint: the path of the checkpoint or of the weights.
      step: the training step; None for weights that are no checkpoint.
      parameters: the number of parameters.
      image_size: the side of the model's images, in pixels.
      dtype: the dtype of matrix products.
    """

    name: str
    checkpoint: str
    step: int | None
    parameters: int
    image_size: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class SuiteResults:
    """The results of a suite.

    Attributes:
      evaluators: the evaluators that were asked for, in order.
      datasets: the datasets, in order.
      findings: the results, in the order in which they were computed.
      missing: what could not be evaluated.
    """

    evaluators: Sequence[Evaluator[Any]]
    datasets: Sequence[Dataset]
    findings: Sequence[Finding]
    missing: Sequence[Missing]

    def metrics(self) -> dict[str, float]:
        """Returns the metrics as in metrics.jsonl: `zero_shot/NAME/top1`, `retrieval/NAME/…/r1`, ….

        Undefined metrics are left out.
        """
        metrics: dict[str, float] = {}
        for name, dataset, result in self.findings:
            with user_code.one_line(self._evaluator(name), f"metrics of {dataset.name}"):
                metrics |= {
                    f"{name}/{dataset.name}/{metric}": float(value)
                    for metric, value in result.flat_metrics().items()
                    if value is not None
                }
        return metrics

    def _evaluator(self, name: str) -> Evaluator[Any]:
        return next(evaluator for evaluator in self.evaluators if evaluator.name == name)

    def _by_dataset(self, evaluator: str) -> JsonObject:
        return {
            finding.dataset.name: finding.result
            for finding in self.findings
            if finding.evaluator == evaluator
        }

    def document(self) -> JsonObject:
        """Returns the part of report.json with `sets`, `missing` and comparisons of datasets."""
        sets = {dataset.name: _facts(dataset) for dataset in self.datasets}
        top: JsonObject = {}
        # what compares datasets comes first at the top
        for evaluator in sorted(self.evaluators, key=lambda evaluator: not evaluator.reference):
            results = self._by_dataset(evaluator.name)
            document = user_code.document(evaluator, results, sanitize)
            for dataset, part in document.datasets.items():
                sets[dataset][evaluator.name] = part
            top |= document.top
        missing = [{"set": item.set, "why": item.why} for item in self.missing]
        return {"sets": sets, "missing": missing, **top}

    def thumbnails(self) -> dict[str, bytes]:
        """Returns the encoded thumbnails that the document names, by name."""
        return thumbnails_in([finding.result for finding in self.findings])

    def sections(self) -> list[Section]:
        """Returns the evaluators' sections of the report page."""
        return [
            section
            for evaluator in self.evaluators
            for section in user_code.sections(evaluator, self._by_dataset(evaluator.name))
        ]

    def sheets(self) -> Iterator[tuple[str, Image.Image]]:
        """Yields images of the results for the log of a run, each with a distinct name."""
        names: set[str] = set()
        for evaluator, dataset, result in self.findings:
            with user_code.one_line(self._evaluator(evaluator), f"sheet of {dataset.name}"):
                sheet = result.sheet(dataset)
            if sheet:
                name = dataset.name if dataset.name not in names else f"{dataset.name}-{evaluator}"
                names.add(name)
                yield name, sheet


def _facts(dataset: Dataset) -> JsonObject:
    facts: JsonObject = {
        "title": dataset.title,
        "split": dataset.split_name,
        "images": len(dataset),
        "classes": len(dataset.labels),
        "paper": dataset.paper,
    }
    return facts | ({"note": dataset.note} if dataset.note else {})


def write_sheets(results: SuiteResults, folder: Path) -> None:
    """Writes the sheets of the results as `NAME.png`, on the first process only."""
    if multihost.is_first():
        for name, sheet in results.sheets():
            with files.atomic_write(folder / f"{name}.png") as file:
                sheet.save(file, "PNG")


def curves(lines: Sequence[Mapping[str, Any]], evaluators: Iterable[Evaluator[Any]] = ()) -> Curves:
    """Returns the curves of a run's metrics, thinned to some hundred points.

    The first and the last point of each curve stay.

    Args:
      lines: the lines of metrics.jsonl.
      evaluators: evaluators whose curves are shown besides those of the registry.

    Returns:
      Name of the metric → [[step, value], …].
    """
    endings = {name: EVALUATORS.get(name).curves for name in EVALUATORS.names}
    endings |= {evaluator.name: evaluator.curves for evaluator in evaluators}
    points: Curves = {}
    for line in lines:
        for name, value in line.items():
            kind = name.partition("/")[0]
            shown = name.startswith(_RUN_CURVES) or name.endswith(endings.get(kind, ()))
            if shown and isinstance(value, int | float) and math.isfinite(value):
                points.setdefault(name, []).append([int(line["step"]), float(value)])
    return {name: _thin(sorted(curve)) for name, curve in points.items()}


def average_lines(lines: Sequence[Mapping[str, Any]]) -> list[JsonObject]:
    """Returns lines of metrics.jsonl in which values of averaged weights replace the live ones."""
    prefix = f"{EMA}/"
    return [
        {**line, **{k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}}
        for line in lines
        if "loss" in line or any(name.startswith(prefix) for name in line)
    ]


def _thin(points: list[list[float]]) -> list[list[float]]:
    if len(points) <= _POINTS:
        return points
    step = (len(points) - 1) / (_POINTS - 1)
    return [points[round(i * step)] for i in range(_POINTS)]


def sanitize(value: Any) -> Any:
    """Returns a copy of a value that JSON in UTF-8 can represent.

    NumPy's numbers become Python's, numbers that are not finite become None, and texts lose halves
    of surrogate pairs.
    """
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(str(key)): sanitize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize(item) for item in value]
    if hasattr(value, "tolist"):
        return sanitize(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_report(
    folder: Path, results: SuiteResults, model: ModelFacts, curves: Curves, seconds: float
) -> Path:
    """Writes `report.json` and `report.html`.

    Args:
      folder: the folder for both files.
      results: the results of the suite.
      model: the facts about the model.
      curves: the curves of the run, see `curves`.
      seconds: the duration of the evaluation.

    Returns:
      The path of the page.
    """
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {
        "version": VERSION,
        **results.document(),
        "model": {**dataclasses.asdict(model), "created": created},
        "curves": curves,
        "seconds": seconds,
    }
    return write_document(folder, document, results.thumbnails(), results.sections())


def write_document(
    folder: Path,
    document: Mapping[str, Any],
    thumbnails: Mapping[str, bytes],
    sections: Iterable[Section],
) -> Path:
    """Writes a document as `report.json` and the page that shows it.

    Args:
      folder: the folder for both files.
      document: the content of `report.json`.
      thumbnails: encoded images, by the names that the document gives them.
      sections: the sections of the page.

    Returns:
      The path of the page.
    """
    document = sanitize(document)
    with files.atomic_write(folder / JSON) as file:
        file.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    page = folder / PAGE
    with files.atomic_write(page) as file:
        file.write(report.render(document, thumbnails, sections).encode())
    return page


def table(metrics: Mapping[str, float]) -> str:
    """Formats metrics as lines of text: shares in percent, other numbers unchanged."""
    width = max(map(len, metrics), default=0)
    return "\n".join(
        f"  {name:<{width}}  {_format_value(name, value)}" for name, value in metrics.items()
    )


def _format_value(name: str, value: float) -> str:
    is_share = abs(value) <= 1 and not name.endswith(_NO_SHARES)
    return f"{value:7.2%}" if is_share else f"{value:8.6g}"
