"""Accuracy under natural shifts beside ImageNet's (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation import robustness
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.suite import classifying
from clip_jax.evaluation.suite.context import EvalContext

REFERENCE = "imagenet"


def is_shifted(test: TestSet) -> bool:
    """Whether a set shows classes of ImageNet's."""
    return test.subset is not None and test.target is not None


def run(context: EvalContext, tests: Sequence[TestSet], found: Mapping[str, Any]) -> dict[str, Any]:
    """The `robustness` part of the results: each shifted set beside the same classes of ImageNet.

    found: the results of the sets by name.
    """
    shifted = list(filter(is_shifted, tests))
    reference = next((test for test in tests if test.name == REFERENCE), None)
    if not shifted or reference is None or reference.target is None:
        return {}
    images = context.encoded(reference.name, reference.source).features
    logits = context.scale * images @ context.classifier(reference).T
    shifts = {}
    for test in shifted:
        if "zero_shot" in found[test.name]:
            score = found[test.name]["zero_shot"]["score"]
        else:
            features = context.encoded(test.name, test.source).features
            weights = context.classifier(test)
            score = classifying.scored(features, weights, context.scale, test).result()
        assert test.subset is not None
        shifts[test.name] = robustness.shift(
            score,
            logits,
            reference.target,
            test.subset.tolist(),
            robustness.standard(test.name),
        )
    return {"reference": REFERENCE, "shifts": shifts}
