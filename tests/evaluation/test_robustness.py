"""Shifted sets are compared on the same classes; the worst frame counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from clip_jax.evaluation import scores
from clip_jax.evaluation.robustness import (
    effective,
    expected,
    fit_logit_line,
    pm_k,
    restricted,
    shift,
)
from support import refused

SEEDS = st.integers(0, 2**32)


@given(st.integers(0, 40), st.integers(2, 9), SEEDS)
def test_restricted_by_hand(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    target = rng.integers(0, classes, n)
    subset = rng.permutation(classes)[: classes // 2 + 1].tolist()
    found, own = restricted(logits, target, subset)
    rows = [i for i in range(n) if target[i] in subset]
    assert found.tolist() == [[logits[i, c].item() for c in subset] for i in rows]
    assert own.tolist() == [subset.index(target[i]) for i in rows]


def test_a_class_of_several_columns_is_their_largest() -> None:
    logits = np.array([[1, 5, 2, 3], [4, 0, 9, 1]], np.float32)
    found, own = restricted(logits, np.array([3, 2]), [[0, 1], [3]])
    assert found.tolist() == [[5, 3]]
    assert own.tolist() == [1]
    mixed, own = restricted(logits, np.array([3, 0]), [2, [0, 3]])
    assert mixed.tolist() == [[2, 3], [9, 4]]
    assert own.tolist() == [1, 1]


def test_classes_are_checked() -> None:
    logits, target = np.zeros((1, 3), np.float32), np.array([0])
    refused(lambda: restricted(logits, target, [0, 0]), "distinct")
    refused(lambda: restricted(logits, target, [[0, 1], [1]]), "distinct")
    refused(lambda: restricted(logits, target, [0, 3]), "columns", 3)
    refused(lambda: restricted(logits, target, [-1]), "columns", -1)


def test_a_shift_beside_its_reference() -> None:
    # among all classes the first row is wrong, among the two it is right
    logits = np.array([[2, 1, 3], [0, 1, 0], [0, 0, 1]], np.float32)
    target = np.array([0, 1, 2])
    score = scores.share(np.array([True, False, False, False]))
    found = shift(score, logits, target, [0, 1])
    assert found["score"] is score
    assert (found["reference"]["value"], found["reference"]["n"]) == (1.0, 2)
    assert found["effective"] == -0.75
    assert shift(score, logits, target)["reference"]["value"] == pytest.approx(2 / 3)
    nothing = shift(score, logits[:0], target[:0])
    assert nothing["effective"] is nothing["reference"]["value"] is None


SHARES = st.floats(0.01, 0.99)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=20))
def test_line_equals_scikit_learns(points: list[tuple[float, float]]) -> None:
    table = np.array(points)
    x, y = np.log(table / (1 - table)).T
    if np.ptp(x) < 1e-3:
        return
    slope, intercept = fit_logit_line(points)
    model = LinearRegression().fit(x[:, None], y)
    assert (slope, intercept) == pytest.approx((model.coef_[0], model.intercept_), 1e-6, 1e-6)


@given(SHARES, st.floats(0.2, 3), st.floats(-3, 3))
def test_a_model_on_the_line_has_none(reference: float, slope: float, intercept: float) -> None:
    line = (slope, intercept)
    points = [(x, expected(x, line)) for x in (0.3, 0.5, 0.6)]
    assert fit_logit_line(points) == pytest.approx(line, abs=1e-6)
    on_it = expected(reference, line)
    assert effective(on_it, reference, points) == pytest.approx(0, abs=1e-6)
    assert effective(on_it + 0.1, reference, points) == pytest.approx(0.1, abs=1e-6)
    assert expected(1.0, line) == 1
    assert expected(0.0, line) == 0


def test_lines_that_cannot_be_drawn() -> None:
    refused(lambda: fit_logit_line([(0.5, 0.4)]), "two different")
    refused(lambda: fit_logit_line([(0.5, 0.4), (0.5, 0.3)]), "two different")
    refused(lambda: fit_logit_line([(0.5, 0.0), (0.6, 0.3)]), "between 0 and 1")
    refused(lambda: fit_logit_line([(50.0, 40.0), (60.0, 45.0)]), "between 0 and 1")
    refused(lambda: fit_logit_line([(0.5, float("nan")), (0.6, 0.3)]), "between 0 and 1")
    assert effective(0.4, 0.5) == pytest.approx(-0.1)
    assert effective(None, 0.5) is effective(0.5, None) is None


@given(st.lists(st.integers(1, 8), max_size=5), st.integers(0, 4), SEEDS)
def test_the_worst_frame_counts(lengths: list[int], k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    video = np.repeat(np.arange(len(lengths)) % 2, lengths)
    which = np.repeat(np.arange(len(lengths)), lengths)
    right = rng.random(len(video)) < 0.7
    hits = [
        all(right[j] for j in range(len(video)) if which[j] == which[i] and abs(i - j) <= k)
        for i in range(len(video))
    ]
    assert pm_k(right, video, k) == scores.share(np.array(hits, bool))
    if hits:
        anchors = rng.integers(0, len(hits), 3)
        assert pm_k(right, video, k, anchors) == scores.share(np.array(hits)[anchors])
