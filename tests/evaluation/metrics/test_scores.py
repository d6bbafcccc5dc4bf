"""Every metric is what scikit-learn or counting by hand gives; intervals cover the truth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn import metrics as sk

from clip_jax.evaluation.metrics import scores, zero_shot
from clip_jax.evaluation.metrics.scores import (
    ClassAccuracy,
    ClassPrecision,
    Scorer,
    average_precision_11,
    per_class,
    ranks,
    score,
)
from support import refused

SEEDS = st.integers(0, 2**32)
LABELLED = [m for m in scores.METRICS if m not in ("map_11_point", "roc_auc")]
NOTHING = scores.Score(None, None, None, 0)


def drawn(seed: int, n: int, classes: int, tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right now and then, and targets."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, n)
    logits = rng.integers(0, 4, (n, classes)) if tied else rng.normal(size=(n, classes))
    logits[np.arange(n), target] += rng.integers(0, 2, n)
    return logits.astype(np.float32), target


def sample(metric: str, seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets as a metric wants them."""
    logits, target = drawn(seed, n, classes)
    if metric == "map_11_point":
        return logits, np.random.default_rng(seed).random((n, classes)) < 0.3
    return logits, target


@given(st.integers(1, 60), st.integers(2, 8), SEEDS)
def test_equal_scikit_learns(n: int, classes: int, seed: int) -> None:
    logits, target = drawn(seed, n, classes)
    predicted, every = logits.argmax(axis=1), np.arange(classes)
    assert score("accuracy", logits, target).value == sk.accuracy_score(target, predicted)
    balanced = sk.recall_score(
        target, predicted, labels=np.unique(target), average="macro", zero_division=0
    )
    assert score("mean_per_class", logits, target).value == pytest.approx(balanced)
    if classes > 5:
        five = sk.top_k_accuracy_score(target, logits, k=5, labels=every)
        both = (sk.accuracy_score(target, predicted) + five) / 2
        assert scores.accuracy(ranks(logits, target), 5).value == five
        assert score("mean_top1_top5", logits, target).value == pytest.approx(both)


@given(st.integers(2, 60), SEEDS, st.booleans())
def test_area_equals_scikit_learns(n: int, seed: int, tied: bool) -> None:
    logits, target = drawn(seed, n, 2, tied)
    target[:2] = 0, 1
    margin = logits[:, 1] - logits[:, 0]
    area = score("roc_auc", logits, target)
    assert area.value == pytest.approx(sk.roc_auc_score(target, margin))
    # the shares of the second class come in the same order
    assert area == scores.roc_auc(scores_of(logits), target == 1)


def scores_of(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0]).astype(np.float64)))


@given(st.integers(1, 20), st.integers(6, 9), SEEDS)
def test_ranks_agree_with_zero_shot(n: int, classes: int, seed: int) -> None:
    logits, target = drawn(seed, n, classes, tied=True)
    logits[np.random.default_rng(seed).random(logits.shape) < 0.1] = np.nan
    rank = ranks(logits, target)
    expected = zero_shot.top_k(logits, target)
    assert {f"top{k}": scores.accuracy(rank, k).value for k in (1, 5)} == expected


def by_hand(logits: np.ndarray, positive: np.ndarray) -> float:
    """VOC 2007's 11 points, from the ranking's definition."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], positive[i]))
    points = []
    for level in range(11):
        best, hits = 0.0, 0
        for place, i in enumerate(order, 1):
            hits += positive[i]
            if 10 * hits >= level * positive.sum():
                best = max(best, hits / place)
        points.append(best)
    return sum(points) / 11


@given(st.integers(1, 40), st.integers(1, 4), SEEDS, st.booleans(), st.booleans())
def test_eleven_points_by_hand(n: int, classes: int, seed: int, tied: bool, some: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = drawn(seed, n, classes, tied)[0]
    target = rng.random((n, classes)) < 0.3
    counts = rng.random((n, classes)) < 0.8 if some else None
    expected = []
    for c in range(classes):
        is_counted = np.ones(n, bool) if counts is None else counts[:, c]
        own = target[is_counted, c]
        expected.append(by_hand(logits[is_counted, c], own) if own.any() else np.nan)
    precision = average_precision_11(logits, target, counts)[0]
    np.testing.assert_allclose(precision, expected)
    value = score("map_11_point", logits, target, counts).value
    assert value == (pytest.approx(np.nanmean(expected)) if np.isfinite(expected).any() else None)


def test_eleven_points_of_a_known_ranking() -> None:
    # right, wrong, right, wrong, wrong: precision 1 up to recall .5, 2/3 from there on
    logits = np.array([[5], [4], [3], [2], [1]], np.float32)
    target = np.array([[1], [0], [1], [0], [0]], bool)
    assert average_precision_11(logits, target)[0, 0] == pytest.approx((6 + 5 * 2 / 3) / 11)
    counts = np.array([[1], [0], [1], [1], [1]], bool)
    assert average_precision_11(logits, target, counts)[0, 0] == 1


@given(st.integers(1, 25), st.integers(1, 4), SEEDS)
def test_weights_are_rows_given_again(n: int, classes: int, seed: int) -> None:
    logits, target = sample("map_11_point", seed, n, classes)
    weight = np.random.default_rng(seed + 1).integers(0, 4, (3, n))
    precisions = average_precision_11(logits, target, weight=weight)
    for row, times in zip(precisions, weight, strict=True):
        again = np.repeat(np.arange(n), times)
        np.testing.assert_allclose(row, average_precision_11(logits[again], target[again])[0])


@given(st.sampled_from(scores.METRICS), st.integers(1, 40), st.integers(1, 9), SEEDS)
def test_in_parts_as_at_once(metric: str, n: int, step: int, seed: int) -> None:
    classes = 2 if metric == "roc_auc" else 6
    logits, target = sample(metric, seed, n, classes)
    scorer = Scorer(metric, classes)
    for i in range(0, n, step):
        scorer.add(logits[i : i + step], target[i : i + step])
        partial = scorer.result()
    assert partial == scorer.result() == score(metric, logits, target)
    once = Scorer(metric, classes)
    once.add(logits, target)
    assert scorer.metrics() == once.metrics()
    names = [str(c) for c in range(classes)]
    assert scorer.per_class(names) == once.per_class(names)


def test_blocks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = drawn(3, 50, 7, tied=True)
    at_once = ranks(logits, target)
    monkeypatch.setattr(scores, "_BLOCK", 20)
    assert (ranks(logits, target) == at_once).all()


@given(st.sampled_from(scores.METRICS), st.integers(1, 60), SEEDS)
def test_intervals_hold_the_value(metric: str, n: int, seed: int) -> None:
    result = score(metric, *sample(metric, seed, n, 2 if metric == "roc_auc" else 4))
    if result.value is not None:
        assert 0 <= result.low <= result.value <= result.high <= 1
        assert result.n == n


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_equals_scipys(n: int, part: float) -> None:
    hits = round(part * n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert scores.wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def trial(metric: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """A drawn set of which the true value can be told."""
    if metric == "roc_auc":
        target = np.arange(120) % 3 == 0
        return scores.roc_auc(rng.normal(size=120) + 1.5 * target, target), norm.cdf(1.5 / 2**0.5)
    if metric == "mean_per_class":
        chances = np.array([0.3, 0.7, 0.95, 1.0])
        target = np.repeat(np.arange(4), (10, 20, 40, 30))
        right = rng.random(100) < chances[target]
        return scores.mean_per_class(np.where(right, 0, 9), target, 4), chances.mean()
    rank = rng.choice([0, 3, 9], 100, p=[0.5, 0.4, 0.1])
    if metric == "accuracy":
        return scores.accuracy(rank), 0.5
    return scores.mean_top1_top5(rank), 0.7


@pytest.mark.parametrize("metric", [*LABELLED, "roc_auc"])
def test_intervals_cover_the_truth(metric: str) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        result, truth = trial(metric, rng)
        hits += result.low <= truth <= result.high
    assert 0.925 <= hits / 600 <= 0.985


@pytest.mark.slow
def test_bootstrap_covers_the_truth() -> None:
    def rows(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        target = rng.random((n, 3)) < 0.3
        return (rng.normal(size=(n, 3)) + 1.5 * target).astype(np.float32), target

    truth = score("map_11_point", *rows(np.random.default_rng(1), 100_000)).value
    assert truth is not None
    hits = 0
    for seed in range(100):
        result: Any = score("map_11_point", *rows(np.random.default_rng(seed + 2), 400))
        hits += result.low <= truth <= result.high
    assert hits >= 88


def test_all_right_and_all_wrong_have_a_width() -> None:
    logits, target = np.eye(2, dtype=np.float32)[np.arange(40) % 2], np.arange(40) % 2
    for metric in (*LABELLED, "roc_auc"):
        result = score(metric, logits, target)
        assert result.value == result.high == 1
        assert result.low is not None
        assert 0.8 < result.low < 1
    for metric in ("accuracy", "mean_per_class", "roc_auc"):
        result = score(metric, logits, 1 - target)
        assert result.value == result.low == 0
        assert result.high is not None
        assert 0 < result.high < 0.2


@pytest.mark.parametrize("metric", scores.METRICS)
def test_no_rows(metric: str) -> None:
    classes = 2 if metric == "roc_auc" else 3
    logits, target = sample(metric, 0, 0, classes)
    assert score(metric, logits, target) == NOTHING
    empty = Scorer(metric, classes)
    assert empty.result() == NOTHING
    assert set(empty.metrics().values()) == {None}
    assert [row.n for row in empty.per_class(list("abc")[:classes])] == [0] * classes


def test_a_class_without_rows_is_left_out() -> None:
    logits = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    target = np.array([0, 2, 2])
    assert score("mean_per_class", logits, target).value == 0.75
    assert per_class(ranks(logits, target), target, ["a", "b", "c"]) == [
        ClassAccuracy("a", 1, 1.0),
        ClassAccuracy("b", 0, None),
        ClassAccuracy("c", 2, 0.5),
    ]
    shown = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1]], bool)
    scorer = Scorer("map_11_point", 3)
    scorer.add(logits, shown)
    rows = scorer.per_class(["a", "b", "c"])
    assert [row.n for row in rows] == [1, 0, 2]
    assert rows[1] == ClassPrecision("b", 0, None, None)
    alone = scores.roc_auc(np.array([1.0, 2.0]), np.array([True, True]))
    assert alone == dataclasses.replace(NOTHING, n=2)
    nobody = score("map_11_point", logits, np.zeros((3, 3), bool))
    assert nobody == dataclasses.replace(NOTHING, n=3)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_nan_is_never_right(classes: int) -> None:
    nothing, target = np.full((6, classes), np.nan, np.float32), np.arange(6) % 2
    for metric in LABELLED:
        assert score(metric, nothing, target).value == 0
    if classes == 2:
        assert score("roc_auc", nothing, target).value == 0
    shown = np.zeros((6, classes), bool)
    shown[:3] = True
    by_class = score("map_11_point", nothing, shown).value
    last = np.tile(np.arange(6, dtype=np.float32)[:, None], classes)
    assert by_class == score("map_11_point", last, shown).value


def test_ties_count_against_the_model() -> None:
    flat = np.zeros((8, 2), np.float32)
    target = np.arange(8) % 2
    assert score("accuracy", flat, target).value == 0
    assert score("mean_per_class", flat, target).value == 0
    assert score("roc_auc", flat, target).value == 0.5


def test_unknown_metrics_are_refused() -> None:
    refused(lambda: Scorer("f1", 3), "f1", "accuracy")
    refused(lambda: Scorer("roc_auc", 3), "roc_auc", "two classes", 3)
