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
    """Features before the projection, and classes."""

    features: np.ndarray
    target: np.ndarray


class ProbeRows(NamedTuple):
    """The rows of every split; not every dataset has some for validation."""

    train: Rows
    validation: Rows | tuple[None, None]
    test: Rows


def probe_rows(context: EvalContext, dataset: Dataset) -> ProbeRows:
    """The rows of a dataset's splits."""

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
    """The dataset's official metric of logits and classes, without an interval."""

    def value(logits: np.ndarray, target: np.ndarray) -> float:
        if dataset.metric == "map_11_point":  # its interval takes hundreds of resamples
            return float(np.nanmean(scores.average_precision_11(logits, target)))
        return float(scores.score(dataset.metric, logits, target).value or 0.0)

    return value
