"""What linear probes and few-shot classifiers learn from and are tested on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.metrics import scores
from clip_jax.evaluation.metrics.linear_probe import Metric


class Rows(NamedTuple):
    """The rows of a split.

    Attributes:
      features: features before the projection, [n, width].
      target: the classes of the rows.
    """

    features: np.ndarray
    target: np.ndarray


class ProbeRows(NamedTuple):
    """The rows of every split; `validation` is (None, None) for a dataset without such a split."""

    train: Rows
    validation: Rows | tuple[None, None]
    test: Rows


def probe_rows(context: EvalContext, dataset: Dataset) -> ProbeRows:
    """Encodes the splits of a dataset and returns their rows."""

    def rows(name: str, source: Source, target: np.ndarray) -> Rows:
        return Rows(np.asarray(context.encode(name, source).pooled), target)

    splits = dataset.splits
    train = rows(f"{dataset.name} train", *splits.train)
    validation: Rows | tuple[None, None] = (None, None)
    if splits.validation:
        validation = rows(f"{dataset.name} validation", *splits.validation)
    assert dataset.target is not None
    return ProbeRows(train, validation, rows(dataset.name, dataset.source, dataset.target))


def metric_of(dataset: Dataset) -> Metric:
    """Returns a function that computes a dataset's official metric from logits and classes.

    It computes no interval.
    """

    def value(logits: np.ndarray, target: np.ndarray) -> float:
        if dataset.metric == "map_11_point":  # its interval takes hundreds of resamples
            return float(np.nanmean(scores.average_precision_11(logits, target)))
        return float(scores.score(dataset.metric, logits, target).value or 0.0)

    return value
