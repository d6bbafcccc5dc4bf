"""Accuracy of the classifier that the objective `classification` trained into the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clip_jax.data.class_index import ClassIndex
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.evaluators.zero_shot import blocks
from clip_jax.evaluation.metrics.scores import Score, Scorer
from clip_jax.evaluation.report import probes
from clip_jax.evaluation.report.section import Section, without_thumbnails


@dataclasses.dataclass(frozen=True)
class ClassifierResult(Result):
    """The result of a model's classifier on a dataset.

    Attributes:
      metric: the name of the dataset's official metric.
      score: the value of the official metric; None if the classifier does not know the classes.
      metrics: the values of all metrics that the dataset has, see `Scorer.metrics`.
      note: why there is no score; empty if there is one.
    """

    metric: str
    score: Score | None
    metrics: dict[str, float | None]
    note: str = ""

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns all metrics, the mean per class only where it is the official one."""
        hidden = () if self.metric == "mean_per_class" else ("mean_per_class",)
        return {name: value for name, value in self.metrics.items() if name not in hidden}


class Classifier(Evaluator[ClassifierResult]):
    """Classifies each image by the classifier of the model, among the classes of the dataset.

    The classes of the dataset are found among the labels of the classifier by their names.
    """

    name = "classifier"
    result = ClassifierResult
    curves = ("top1",)

    def needs(self, dataset: Dataset) -> str:
        """Needs classes."""
        return "" if dataset.target is not None else "classes"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str] | None:
        """Depends on the labels of the classifier; why there is no score is said each time."""
        labels = context.encoder.labels
        return None if _columns(labels, dataset)[1] else labels

    def run(self, context: EvalContext, dataset: Dataset) -> ClassifierResult:
        """Computes the scores of the dataset; none if the classifier lacks one of its classes."""
        columns, note = _columns(context.encoder.labels, dataset)
        if note:
            context.say(f"{dataset.name}: {note}")
            return ClassifierResult(dataset.metric, None, {}, note)
        assert dataset.target is not None
        images = context.encode(dataset.name, dataset.source).features
        scorer = Scorer(dataset.metric, len(dataset.labels))
        for rows in blocks(len(images), len(context.encoder.labels)):
            logits = context.encoder.class_logits(images[rows])[:, columns]
            counts = None if dataset.counts is None else dataset.counts[rows]
            scorer.add(logits, dataset.target[rows], counts)
        return ClassifierResult(dataset.metric, scorer.result(), scorer.metrics())

    def sections(self, results: Mapping[str, ClassifierResult]) -> Iterable[Section]:
        """Returns the accuracy beside that of zero-shot classification."""
        draw = without_thumbnails(probes.trained_classifier)
        yield Section("classifier", "Classifier of the model", draw)


def _columns(labels: Sequence[str], dataset: Dataset) -> tuple[np.ndarray, str]:
    """Returns the column of each class of a dataset in the logits, or why there is none."""
    none = np.empty(0, np.int64)
    if not labels:
        return none, "the model has no classifier: the objective classification trains one"
    if list(labels) == dataset.labels:
        return np.arange(len(labels)), ""
    index = ClassIndex(labels)
    numbers = [index.find_name(name) for name in dataset.labels]
    for name, number in zip(dataset.labels, numbers, strict=True):
        if number is None:
            return none, f"{name!r:.80} is no class of the model's classifier"
    if len(set(numbers)) < len(numbers):
        return none, "two of its classes are one of the model's classifier"
    return np.array(numbers), ""
