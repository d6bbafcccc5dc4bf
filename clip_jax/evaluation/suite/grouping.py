"""How a model's answers differ between groups of people (section 7.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_jax.evaluation import bias
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.features import Features, classifier
from clip_jax.evaluation.suite.context import EvalContext


def run(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """The `bias` part of a set's results: tables of rates by group."""
    del pictures  # no one is shown
    images = context.encoded(test.name, test.source).features
    said = bias.label_sets()

    def logits(labels: list[str], template: str) -> np.ndarray:
        weights: Features = classifier(context.encoder, context.tokenizer, labels, [template])
        return context.scale * images @ weights.T

    answers = {}
    for field, how in said["classifiers"].items():
        if field in test.groups:
            values = sorted(set(test.groups[field]))
            names = [how.get("names", {}).get(value, value) for value in values]
            target = np.array([values.index(value) for value in test.groups[field]])
            answers[field] = logits(names, how["template"]), target
    tables = bias.accuracies(answers, test.groups)["tables"] if answers else []
    labels, _ = bias.harm_labels(child=True)
    tables += bias.harms(logits(labels, said["template"]), test.groups)["tables"]
    if "gender" in test.groups:
        likely = logits(said["people"], said["template"])
        shares = np.exp(likely - likely.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        tables += bias.label_rates(shares, said["people"], test.groups["gender"])["tables"]
    return {"tables": tables}
