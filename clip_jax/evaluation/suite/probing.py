"""Linear probes and few-shot learning on a set's features (section 3.2, appendix A)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.evaluation import few_shot, linear_probe, scores
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.suite import classifying
from clip_jax.evaluation.suite.context import EvalContext

Rows = tuple[np.ndarray, np.ndarray]


def metric_of(test: TestSet) -> Callable[[np.ndarray, np.ndarray], float]:
    """The set's official metric of logits and targets, without an interval."""

    def value(logits: np.ndarray, target: np.ndarray) -> float:
        if test.metric == "map_11_point":  # whose interval takes hundreds of samples
            return float(np.nanmean(scores.average_precision_11(logits, target)))
        return float(scores.score(test.metric, logits, target)["value"] or 0.0)

    return value


def _rows(context: EvalContext, test: TestSet) -> tuple[Rows, Rows | tuple[None, None], Rows]:
    """Features and classes to learn from, to choose λ by (where there are some), and to test on."""
    splits = context.splits[test.name]

    def of(name: str, source: Source, target: np.ndarray) -> Rows:
        return np.asarray(context.encoded(name, source).pooled), target

    train = of(f"{test.name} train", *splits.train)
    validation: Rows | tuple[None, None] = (None, None)
    if splits.validation:
        validation = of(f"{test.name} validation", *splits.validation)
    assert test.target is not None
    return train, validation, of(test.name, test.source, test.target)


def linear(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """The `linear_probe` part of a set's results."""
    del pictures  # no one is shown
    train, (validation, validation_target), (features, target) = _rows(context, test)
    with context.bar(f"{test.name} probe", 1, unit=" λ") as advance:
        found, logits = linear_probe.probe(
            *train,
            validation,
            validation_target,
            features,
            target,
            len(test.labels),
            metric_of(test),
            mesh=context.encoder.mesh,
            progress=advance.to,
        )
    del found["value"]  # which the score has too
    return {
        "metric": test.metric,
        "score": scores.score(test.metric, logits, target, test.counts),
        **found,
    }


def few(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """The `few_shot` part of a set's results, with the zero-shot score beside it."""
    del pictures
    train, (validation, validation_target), (features, target) = _rows(context, test)
    found = few_shot.few_shot(
        *train,
        features,
        target,
        len(test.labels),
        shots=tuple(context.options["shots"]),
        seeds=context.options["seeds"],
        metric=metric_of(test),
        validation=validation,
        validation_target=validation_target,
        mesh=context.encoder.mesh,
    )
    images = context.encoded(test.name, test.source).features
    scorer = classifying.scored(images, context.classifier(test), context.scale, test)
    return {**found, "zero_shot": scorer.result()["value"]}
