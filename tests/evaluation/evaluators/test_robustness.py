"""Each shifted dataset is compared with ImageNet and the standard models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_jax.evaluation.evaluators.protocol import Document
from clip_jax.evaluation.evaluators.robustness import Robustness, RobustnessResult
from clip_jax.evaluation.evaluators.zero_shot import ZeroShotResult
from clip_jax.evaluation.metrics import robustness
from clip_jax.evaluation.metrics.scores import Score
from support import refused

WEIGHTS = np.eye(3, dtype=np.float32)
ZERO_SHOT = ZeroShotResult("accuracy", Score(0.25, 0.1, 0.5, 4), {}, 1, [], [])


def compare(names: list[str]) -> dict[str, RobustnessResult]:
    """The datasets beside an ImageNet of three classes and four images, one of which is wrong."""
    target = np.array([0, 1, 2, 2])
    context: Any = SimpleNamespace(
        datasets={"imagenet": SimpleNamespace(name="imagenet", subset=None, target=target)},
        logits=lambda dataset: WEIGHTS[[0, 1, 2, 0]] @ WEIGHTS.T,
        results={"zero_shot": dict.fromkeys(names, ZERO_SHOT)},
    )
    datasets: list[Any] = [
        SimpleNamespace(name=name, subset=np.arange(3), target=target) for name in names
    ]
    return {dataset.name: Robustness().run(context, dataset) for dataset in datasets}


def test_a_dataset_is_compared_with_its_own_standard_models() -> None:
    shifts = compare(["imagenet_v2", "imagenet_r", "mine"])
    for name in ("imagenet_v2", "imagenet_r"):
        points = robustness.standard(name).points
        line = robustness.fit_logit_line(points)
        assert shifts[name].reference.value == 0.75
        assert shifts[name].line == robustness.LogitLine(*line, models=44)
        assert shifts[name].standard == list(map(list, points))
        assert shifts[name].effective == 0.25 - robustness.expected(0.75, line)
    assert shifts["imagenet_v2"].effective != shifts["imagenet_r"].effective
    assert shifts["mine"].to_json().keys() == {"score", "reference", "effective"}
    assert shifts["mine"].effective == pytest.approx(-0.5)


def test_on_imagenet_a_the_line_is_that_of_the_weaker_or_of_the_stronger() -> None:
    line = compare(["imagenet_a"])["imagenet_a"].line
    assert line is not None
    assert (line.models, line.knee) == (20, 0.9186)


def test_the_document_names_the_reference_at_the_top() -> None:
    results = compare(["mine"])
    document = Robustness().document(results)
    assert document.datasets == {}
    shifts = {"mine": results["mine"].to_json()}
    assert document.top == {"robustness": {"reference": "imagenet", "shifts": shifts}}


def test_without_results_there_is_nothing_to_compare() -> None:
    assert Robustness().document({}) == Document({}, {"robustness": {}})


def test_a_reference_without_classes_is_refused() -> None:
    dataset: Any = SimpleNamespace(name="imagenet", subset=np.arange(3), target=None)
    context: Any = SimpleNamespace(datasets={"imagenet": dataset})
    refused(lambda: Robustness().run(context, dataset), "evaluate.sets.imagenet", "no classes")
