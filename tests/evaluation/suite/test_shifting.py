"""Each shifted set is judged beside ImageNet and the standard models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_jax.evaluation import robustness
from clip_jax.evaluation.suite import shifting

WEIGHTS = np.eye(3, dtype=np.float32)
TOLD = {"zero_shot": {"score": {"value": 0.25, "low": 0.1, "high": 0.5, "n": 4}}}


def judged(names: list[str]) -> dict[str, Any]:
    """The sets beside an ImageNet of three classes and four pictures, one of which is wrong."""
    images = WEIGHTS[[0, 1, 2, 0]]
    context: Any = SimpleNamespace(
        scale=1.0,
        encoded=lambda name, source: SimpleNamespace(features=images),
        classifier=lambda test: WEIGHTS,
    )
    classes = np.arange(3)
    tests: list[Any] = [
        SimpleNamespace(name=name, source=None, subset=classes, target=np.array([0, 1, 2, 2]))
        for name in names
    ]
    tests.append(SimpleNamespace(name="imagenet", source=None, subset=None, target=tests[0].target))
    return shifting.run(context, tests, dict.fromkeys(names, TOLD))


def test_a_set_is_judged_beside_its_own_standard_models() -> None:
    found = judged(["imagenet_v2", "imagenet_r", "mine"])
    assert found["reference"] == "imagenet"
    shifts = found["shifts"]
    for name in ("imagenet_v2", "imagenet_r"):
        points = robustness.standard(name).points
        line = robustness.fit_logit_line(points)
        assert shifts[name]["reference"]["value"] == 0.75
        assert shifts[name]["line"] == {"slope": line[0], "intercept": line[1], "models": 44}
        assert shifts[name]["standard"] == list(map(list, points))
        assert shifts[name]["effective"] == 0.25 - robustness.expected(0.75, line)
    assert shifts["imagenet_v2"]["effective"] != shifts["imagenet_r"]["effective"]
    assert shifts["mine"].keys() == {"score", "reference", "effective"}
    assert shifts["mine"]["effective"] == pytest.approx(-0.5)


def test_on_imagenet_a_the_line_is_that_of_the_weaker_or_of_the_stronger() -> None:
    line = judged(["imagenet_a"])["shifts"]["imagenet_a"]["line"]
    assert (line["models"], line["knee"]) == (20, 0.9186)


def test_without_imagenet_there_is_nothing_to_compare() -> None:
    context: Any = None
    assert shifting.run(context, [], {}) == {}
