"""Few-shot classifiers are single fits on the rows that are drawn."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from clip_jax.distributed import sharding
from clip_jax.evaluation.metrics import few_shot, linear_probe, logistic
from support import refused

LAMBDAS = np.array([1e-2, 1.0, 1e2])


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(5, 10))
    target = rng.permutation(n) % 5
    features = centres[target] + 1.5 * rng.normal(size=(n, 10))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), target


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 9))
def test_shots_are_drawn_from_each_class(labels: list[int], shots: int, seed: int) -> None:
    target = np.array(labels)
    rows = few_shot.draw(target, shots, seed)
    assert len(set(rows.tolist())) == len(rows)
    for label, count in zip(*np.unique(target, return_counts=True), strict=True):
        assert (target[rows] == label).sum() == min(shots, count)
    assert (few_shot.draw(target, shots + 1, seed)[: len(rows)] == rows).all()


def test_seeds_draw_different_rows() -> None:
    _, target = clusters(100, 0)
    drawn = {tuple(few_shot.draw(target, 2, seed)) for seed in range(5)}
    assert len(drawn) == 5


def test_it_is_a_loop_of_single_fits() -> None:
    train, train_target = clusters(150, 0)
    test, test_target = clusters(400, 1)
    result = few_shot.few_shot(train, train_target, test, test_target, 5, (1, 4, 50), 2)
    assert result.shots == [1, 4, 50] and result.seeds == 2
    for i, shots in enumerate(result.shots):
        for seed in range(2):
            rows = few_shot.draw(train_target, shots, seed)
            model = LogisticRegression(C=0.316, tol=1e-8, max_iter=5000)
            model.fit(train[rows].astype(np.float64), train_target[rows])
            right = model.score(test, test_target)
            assert result.values[i][seed] == pytest.approx(right, abs=0.003)
    np.testing.assert_allclose(result.mean, np.mean(result.values, 1))
    np.testing.assert_allclose(result.std, np.std(result.values, 1))
    assert result.mean[0] < result.mean[-1]


@pytest.mark.parametrize("devices", [1, 8])
def test_all_at_once_is_one_seed_after_the_other(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, train_target = clusters(150, 0)
    few = np.flatnonzero(train_target != 2)
    rows = np.concatenate([few, np.flatnonzero(train_target == 2)[:3]])  # fewer than shots
    test, test_target = clusters(1000, 1)
    more, more_target = clusters(200, 2)
    data = (train[rows], train_target[rows], test, test_target, 5, (1, 4, 16), 3, LAMBDAS)
    own = {"validation": more, "validation_target": more_target}
    mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
    calls: list[int] = []
    fit = logistic.fit

    def counted(*args: Any, **options: Any) -> logistic.Weights:
        calls.append(len(args[3]))
        return fit(*args, **options)

    monkeypatch.setattr(logistic, "fit", counted)
    at_once = few_shot.few_shot(*data, mesh=mesh, **own)
    assert calls == [3 * 3 * 3]
    monkeypatch.setattr(few_shot, "HELD_BYTES", 1)
    looped = few_shot.few_shot(*data, **own)
    assert calls[1:] == [3 * 3] * 3
    np.testing.assert_allclose(at_once.values, looped.values, atol=0.003)


def test_the_strength_is_the_validation_splits_best() -> None:
    train, train_target = clusters(150, 0)
    more, more_target = clusters(200, 2)
    test, test_target = clusters(400, 1)
    lambdas = np.array([1e-3, 1.0, 1e3])
    data = (train, train_target, test, test_target, 5, (2, 8), 2, lambdas)
    result = few_shot.few_shot(*data, validation=more, validation_target=more_target)
    for i, shots in enumerate((2, 8)):
        for seed in range(2):
            rows = few_shot.draw(train_target, shots, seed)
            fitted = logistic.fit(train[rows], train_target[rows], 5, lambdas)
            own = [
                linear_probe.accuracy(logistic.scores(more, fitted, j), more_target)
                for j in range(3)
            ]
            best = max(range(3), key=lambda j, own=own: (own[j], j))
            right = linear_probe.accuracy(logistic.scores(test, fitted, best), test_target)
            assert result.values[i][seed] == pytest.approx(right, abs=0.003)
    with pytest.raises(ValueError, match="validation"):
        few_shot.few_shot(*data)


def test_faults_are_one_line_errors() -> None:
    train, target = clusters(50, 0)
    refused(lambda: few_shot.few_shot(train, target, train, target, 6), "class 5")
    broken = np.full_like(train, np.inf)
    refused(lambda: few_shot.few_shot(train, target, broken, target, 5), "row 0", "finite")
