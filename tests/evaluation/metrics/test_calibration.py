"""Calibration is what its definitions and scikit-learn give, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from clip_jax.evaluation.metrics import calibration as module
from clip_jax.evaluation.metrics.calibration import (
    Confusion,
    calibration,
    confusions,
    ece,
    fit_temperature,
    reliability,
)

SEEDS = st.integers(0, 2**32)


def drawn(seed: int, n: int, classes: int, heat: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Targets drawn from the softmax of logits, which are then given `heat` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    target = (logits + rng.gumbel(size=(n, classes))).argmax(axis=1)
    return (heat * logits).astype(np.float32), target


def shares(logits: np.ndarray) -> np.ndarray:
    x = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def by_hand(confidence: np.ndarray, right: np.ndarray, bins: int) -> tuple[float, float]:
    """Expected and largest error, from the definition."""
    gaps, weights = [], []
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            gaps.append(abs(confidence[inside].mean() - right[inside].mean()))
            weights.append(inside.mean())
    return float(np.dot(gaps, weights)), max(gaps)


@given(st.integers(1, 80), st.integers(2, 6), st.integers(1, 20), SEEDS)
def test_against_the_definitions(n: int, classes: int, bins: int, seed: int) -> None:
    logits, target = drawn(seed, n, classes)
    probabilities, right = shares(logits), logits.argmax(axis=1) == target
    result: Any = calibration(logits, target, bins)
    errors = by_hand(probabilities.max(axis=1), right, bins)
    assert (result.ece, result.mce) == pytest.approx(errors)
    every = np.arange(classes)
    assert result.nll == pytest.approx(sk.log_loss(target, probabilities, labels=every))
    one_hot = np.eye(classes)[target]
    assert result.brier == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    table = result.bins
    assert sum(row.n for row in table) == n
    assert [row.low for row in table] == [b / bins for b in range(bins)]
    assert table[-1].high == 1
    for row in table:
        if row.n:
            assert row.low <= row.confidence <= row.high
        else:
            assert row.confidence is row.accuracy is None


def test_values_on_an_edge_fall_below_it() -> None:
    edges = np.arange(11) / 10
    assert [row.n for row in reliability(edges, edges > 0, 10)] == [2] + [1] * 9


@pytest.mark.parametrize("heat", [0.2, 1.0, 5.0, 30.0])
def test_temperature_is_found_again(heat: float) -> None:
    logits, target = drawn(1, 20_000, 5, heat)
    temperature: Any = fit_temperature(logits, target)
    assert temperature == pytest.approx(heat, rel=0.05)
    result: Any = calibration(logits, target)
    assert result.ece_after < 0.02
    if heat != 1:
        assert result.ece > 4 * result.ece_after


@given(st.integers(2, 60), SEEDS)
def test_no_other_temperature_has_a_lower_loss(n: int, seed: int) -> None:
    logits, target = drawn(seed, n, 3)
    best: Any = fit_temperature(logits, target)
    loss = {
        t: sk.log_loss(target, shares(logits / t), labels=np.arange(3))
        for t in (best, *np.geomspace(0.01, 100, 60))
    }
    assert loss[best] <= min(loss.values()) + 1e-6


def test_half_of_the_rows_fits_and_the_other_is_judged() -> None:
    logits, target = drawn(2, 400, 4, 3.0)
    result: Any = calibration(logits, target)
    order = np.random.default_rng(0).permutation(400)
    fitted, held_out = order[:200], order[200:]
    assert result.temperature == fit_temperature(logits[fitted], target[fitted])
    cooled = shares(logits[held_out] / result.temperature)
    right = cooled.argmax(axis=1) == target[held_out]
    assert result.ece_after == pytest.approx(ece(reliability(cooled.max(axis=1), right)))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = drawn(3, 57, 4)
    at_once: Any = calibration(logits, target)
    worst = confusions(logits, target, list("abcd"))
    monkeypatch.setattr(module, "_BLOCK", 30)
    parts: Any = calibration(logits, target)
    assert worst == confusions(logits, target, list("abcd"))
    for key in ("ece", "mce", "nll", "brier", "temperature", "ece_after"):
        assert getattr(parts, key) == pytest.approx(getattr(at_once, key), rel=1e-6)
    assert parts.bins == at_once.bins


def test_not_defined() -> None:
    several = np.zeros((3, 2), bool)
    logits = np.zeros((3, 2), np.float32)
    assert calibration(logits, several) is None
    assert confusions(logits, several, ["a", "b"]) is None
    none = np.empty((0, 2), np.float32)
    assert calibration(none, np.empty(0, np.int64)) is None
    assert confusions(none, np.empty(0, np.int64), ["a", "b"]) == []
    alone: Any = calibration(logits[:1], np.array([0]))
    assert alone.temperature is alone.ece_after is None
    assert alone.nll == pytest.approx(np.log(2))


def test_nonfinite_logits_have_no_confidence() -> None:
    logits, target = drawn(4, 50, 3)
    broken = logits.copy()
    broken[::2, 1] = np.nan
    result: Any = calibration(broken, target)
    good: Any = calibration(logits[1::2], target[1::2])
    assert result.nll == pytest.approx(good.nll)
    assert result.bins[0].n >= 25
    nothing: Any = calibration(np.full_like(logits, np.inf), target)
    assert nothing.ece == nothing.mce == 0
    assert nothing.nll is nothing.brier is nothing.temperature is None
    assert confusions(np.full_like(logits, np.nan), target, list("abc")) == []


@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 6), SEEDS)
def test_confusions_are_the_matrix(n: int, classes: int, most: int, seed: int) -> None:
    logits, target = drawn(seed, n, classes)
    labels = [f"class {c}" for c in range(classes)]
    matrix = sk.confusion_matrix(target, logits.argmax(axis=1), labels=np.arange(classes))
    rows = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    pairs: Any = confusions(logits, target, labels, most)
    counts = sorted(matrix[matrix > 0].tolist(), reverse=True)
    assert [row.count for row in pairs] == counts[:most]
    for row in pairs:
        truth, predicted = labels.index(row.truth), labels.index(row.predicted)
        assert matrix[truth, predicted] == row.count
        assert row.share == row.count / rows[truth]


def test_a_tie_is_a_confusion() -> None:
    flat, target = np.zeros((4, 3), np.float32), np.array([0, 0, 1, 2])
    assert confusions(flat, target, list("abc"), 1) == [Confusion("a", "b", count=2, share=1.0)]
