"""A fit is scikit-learn's logistic regression, all strengths and sets of rows at once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from clip_jax.distributed import sharding
from clip_jax.evaluation.metrics import linear_probe, logistic
from support import clusters, refused

LAMBDAS = np.array([1e-4, 1e-2, 1.0, 30.0, 1e3])


def released(features: np.ndarray, target: np.ndarray, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=20000)
    return model.fit(features.astype(np.float64), target)


def loss(w: np.ndarray, b: np.ndarray, features: Any, target: Any, strength: float) -> float:
    z = features.astype(np.float64) @ w.T + b
    top = z.max(1)
    own = z[np.arange(len(z)), target]
    return (
        float((np.log(np.exp(z - top[:, None]).sum(1)) + top - own).sum())
        + strength / 2 * (w**2).sum()
    )


@pytest.mark.parametrize("spread", [1.5, 0.2], ids=["overlapping", "separable"])
def test_the_optimum_is_that_of_scikit_learn(spread: float) -> None:
    features, target = clusters(300, spread=spread)
    test, test_target = clusters(1000, spread=spread, seed=1)
    fitted = logistic.fit(features, target, 4, LAMBDAS)
    assert fitted.converged.all()
    for i, strength in enumerate(LAMBDAS):
        model = released(features, target, strength)
        own = loss(fitted.kernel[i], fitted.bias[i], features, target, strength)
        best = loss(model.coef_, model.intercept_, features, target, strength)
        assert own <= best * (1 + 1e-5)
        right = linear_probe.accuracy(logistic.scores(test, fitted, i), test_target)
        assert right == pytest.approx(model.score(test, test_target), abs=0.0011)


def test_two_classes_share_a_vector_as_in_scikit_learn() -> None:
    features, target = clusters(300, classes=2, spread=2)
    fitted = logistic.fit(features, target, 2, LAMBDAS)
    for i, strength in enumerate(LAMBDAS):
        expected = released(features, target, strength).decision_function(features)
        logits = logistic.scores(features, fitted, i)
        np.testing.assert_allclose(
            logits[:, 1] - logits[:, 0], expected, atol=2e-3 * np.abs(expected).max()
        )


def test_several_labels_are_independent_regressions() -> None:
    features, target = clusters(400, spread=2)
    labels = np.stack([target == 0, target >= 1, (target + np.arange(400) // 7) % 3 == 0], 1)
    fitted = logistic.fit(features, labels, 3, LAMBDAS)
    for i, strength in enumerate(LAMBDAS):
        logits = logistic.scores(features, fitted, i)
        for k in range(3):
            expected = released(features, labels[:, k], strength).decision_function(features)
            np.testing.assert_allclose(logits[:, k], expected, atol=3e-3 * np.abs(expected).max())


@settings(max_examples=4)
@given(st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    features, target = clusters(60, spread=1.5)
    order = np.random.default_rng(seed).permutation(60)
    in_order = logistic.fit(features, target, 4, LAMBDAS[1:])
    other = logistic.fit(features[order], target[order], 4, LAMBDAS[1:])
    for i in range(len(LAMBDAS) - 1):
        size = np.abs(in_order.kernel[i]).max()
        np.testing.assert_allclose(in_order.kernel[i], other.kernel[i], atol=5e-3 * size)


@settings(max_examples=4)
@given(st.integers(0, 99), st.sampled_from([1, 8]))
def test_problems_on_rows_of_their_own_are_single_fits(seed: int, devices: int) -> None:
    features, target = clusters(60, spread=1.5)
    rng = np.random.default_rng(seed)
    rows = np.stack([[*range(first, first + 4), *rng.integers(0, 60, 76)] for first in (0, 20, 8)])
    strengths = np.array([0.1, 10.0, 1.0, 0.1, 1.0])  # more than one tile, and not a whole one
    which, counts = np.array([0, 0, 1, 2, 2]), np.array([80, 7, 50, 80, 33])
    mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
    fitted = logistic.fit(features, target, 4, strengths, rows, which, counts, mesh=mesh)
    assert fitted.converged.all()
    for i in range(len(strengths)):
        own = rows[which[i], : counts[i]]
        alone = logistic.fit(features[own], target[own], 4, strengths[[i]])
        size = np.abs(alone.kernel).max()
        np.testing.assert_allclose(fitted.kernel[i], alone.kernel[0], atol=5e-3 * size)
        np.testing.assert_allclose(fitted.bias[i], alone.bias[0], atol=5e-3 * size)


def test_several_labels_on_rows_of_their_own() -> None:
    features, target = clusters(200, spread=2)
    labels = np.stack([target == 0, target >= 1, (target + np.arange(200) // 7) % 3 == 0], 1)
    rows = np.stack([np.arange(120), np.arange(200)[:79:-1]])
    which, counts = np.array([0, 1, 1]), np.array([120, 120, 60])
    fitted = logistic.fit(features, labels, 3, np.ones(3), rows, which, counts)
    for i in range(3):
        own = rows[which[i], : counts[i]]
        alone = logistic.fit(features[own], labels[own], 3, np.ones(1))
        size = np.abs(alone.kernel).max()
        np.testing.assert_allclose(fitted.kernel[i], alone.kernel[0], atol=5e-3 * size)


def test_a_problem_has_no_more_axes_than_its_rows_span() -> None:
    features, _ = clusters(9, d=40)
    space = logistic._space(features)
    assert space.axes.shape == (40, 8)
    centred = features - features.mean(0)
    np.testing.assert_allclose(space.rows @ space.axes.T, centred, atol=1e-6)
    np.testing.assert_allclose((space.rows**2).mean(0), space.scale, rtol=1e-4)


def test_blocks_stay_small_whatever_the_sets() -> None:
    for classes, d, least in [(10, 512, 10), (1000, 512, 1000), (10, 4096, 10**6)]:
        _, block = logistic._block_sizes(15, 3, least, classes, d, 1)
        beside = logistic._problems_at_once(classes)
        assert beside * block * (classes + d) * 4 <= logistic.BLOCK_BYTES


def test_strong_penalties_leave_the_share_of_each_class() -> None:
    features, target = clusters(100)
    target = np.where(np.arange(100) < 60, 0, target)
    fitted = logistic.fit(features, target, 4, np.array([1e9]))
    share = np.exp(logistic.scores(features, fitted))
    share /= share.sum(1, keepdims=True)
    expected = np.bincount(target, minlength=4) / 100
    np.testing.assert_allclose(share, np.tile(expected, (100, 1)), atol=1e-4)


def test_devices_and_room_change_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = clusters(500, spread=1.5)
    alone = logistic.fit(features, target, 4, linear_probe.grid())
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())
    monkeypatch.setattr(logistic, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(logistic, "SLOT_BYTES", 2**17)
    spread = logistic.fit(features, target, 4, linear_probe.grid(), mesh=mesh)
    test, _ = clusters(2000, spread=1.5, seed=1)
    for i in range(97):
        one, other = (logistic.scores(test, w, i).argmax(1) for w in (alone, spread))
        assert (one != other).mean() <= 1e-3


def test_directions_without_data_get_no_weight() -> None:
    features, target = clusters(100, d=6)
    wide = np.concatenate([features, features[:, :2], np.ones((100, 2), np.float32)], 1)
    fitted = logistic.fit(wide, target, 4, np.array([1e-3, 1.0]))
    for i, strength in enumerate((1e-3, 1.0)):
        model = released(wide, target, strength)
        size = np.abs(model.coef_).max()
        np.testing.assert_allclose(fitted.kernel[i], model.coef_, atol=1e-2 * size)
        assert np.abs(fitted.kernel[i][:, 8:]).max() < 1e-3 * size


def test_faults_are_one_line_errors() -> None:
    features, target = clusters(40)
    strengths = np.array([1.0])
    refused(lambda: logistic.fit(features, target, 6, strengths), "2 of 6", "class 4")
    labels = np.stack([target == 0, target < 9], 1)
    refused(lambda: logistic.fit(features, labels, 2, strengths), "class 1", "without")
    refused(lambda: logistic.fit(features, target, 3, strengths), "0 … 2")
    refused(lambda: logistic.fit(features, target[:9], 4, strengths), "40", "9")
    broken = features.copy()
    broken[7, 3] = np.nan
    refused(lambda: logistic.fit(broken, target, 4, strengths), "row 7", "finite")
