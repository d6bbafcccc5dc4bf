"""Zero-shot classification of a set, and all that follows from its logits (section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.evaluation import calibration, zero_shot
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.features import Features
from clip_jax.evaluation.scores import Score, Scorer
from clip_jax.evaluation.suite.context import EvalContext

_BLOCK = 8 << 20  # logits that exist at once
_SHOWN = 5  # labels of an example


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows, few enough that a matrix of them and so many columns is small."""
    step = max(1, _BLOCK // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def scored(images: Features, weights: Features, scale: float, test: TestSet) -> Scorer:
    """What a classifier gets right on a set."""
    assert test.target is not None
    scorer = Scorer(test.metric, len(test.labels))
    for part in blocks(len(images), len(weights)):
        counts = None if test.counts is None else test.counts[part]
        scorer.add(scale * images[part] @ weights.T, test.target[part], counts)
    return scorer


def prompts(context: EvalContext, test: TestSet, images: Features, best: Score) -> dict[str, Score]:
    """The score with the name alone, with one template, and with all of them averaged."""
    found = {}
    for what, templates in (("name alone", ("{}",)), ("one template", test.templates[:1])):
        weights = context.classifier(test, templates)
        found[what] = scored(images, weights, context.scale, test).result()
    return {**found, "all templates": best}


def examples(
    context: EvalContext,
    test: TestSet,
    images: Features,
    weights: Features,
    pictures: dict[str, bytes],
) -> list[dict[str, Any]]:
    """Random pictures with their likeliest labels."""
    assert test.target is not None
    found = []
    for i in context.chosen(test, context.options["pictures"]):
        logits = context.scale * images[i] @ weights.T
        order, shares = zero_shot.likeliest(logits, min(_SHOWN, len(test.labels)))
        own = np.flatnonzero(test.target[i]) if test.target.ndim == 2 else [test.target[i]]
        truths = [test.labels[j] for j in own]
        found.append(
            {
                "picture": context.thumbnail(test.source, i, pictures),
                "name": test.source[i].name,
                "truth": ", ".join(truths),
                "truths": truths,
                "labels": [test.labels[j] for j in order],
                "probabilities": [float(share) for share in shares],
            }
        )
    return found


def run(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """The `zero_shot` part of a set's results."""
    images = context.encoded(test.name, test.source).features
    weights = context.classifier(test)
    scorer = scored(images, weights, context.scale, test)
    score = scorer.result()
    found = {
        "metric": test.metric,
        "score": score,
        "metrics": scorer.metrics(),
        "templates": len(test.templates),
        "per_class": scorer.per_class(test.labels),
        "examples": examples(context, test, images, weights, pictures),
    }
    if test.target is not None and test.target.ndim == 1:
        logits = context.scale * images @ weights.T
        found["confusions"] = calibration.confusions(logits, test.target, test.labels)
        found["calibration"] = calibration.calibration(logits, test.target)
    if context.whole and test.templates != ("{}",):
        found["prompts"] = prompts(context, test, images, score)
    return found
