"""The probe is the paper's: its grid, its search, its refit on both splits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from clip_jax.evaluation.metrics import linear_probe
from support import clusters, refused


def test_the_grid_is_the_papers() -> None:
    grid = linear_probe.grid()
    assert len(grid) == 97 and grid[0] == 1e-6 and grid[-1] == pytest.approx(1e6)
    np.testing.assert_allclose(np.diff(np.log10(grid)), 1 / 8)
    np.testing.assert_allclose(grid[::16], [1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])


def walked(value: Any) -> float:
    """The paper's search as it is written, over strengths rather than numbers."""
    exponents, width = [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0], 2.0
    peak = max(exponents, key=lambda e: (value(e), e))
    while width > 1 / 8:
        width /= 2
        near = [e for e in (peak - width, peak, peak + width) if abs(e) <= 6]
        peak = max(near, key=lambda e: (value(e), e))
    return peak


@given(st.lists(st.integers(0, 30), min_size=97, max_size=97))
def test_the_search_is_the_papers(values: list[int]) -> None:
    number, visited = linear_probe.halving(values)
    assert number / 8 - 6 == walked(lambda e: values[round((e + 6) * 8)])
    assert number in visited and len(visited) <= 7 + 2 * 4


def test_a_probe_chooses_refits_and_tests() -> None:
    features, target = clusters(300, spread=1.5)
    more, more_target = clusters(100, spread=1.5, seed=2)
    test, test_target = clusters(400, spread=1.5, seed=1)
    result, logits = linear_probe.probe(
        *(features, target, more, more_target, test, test_target, 4)
    )
    sweep = linear_probe.search(features, target, more, more_target, 4)
    assert result.lambda_ == sweep.chosen and result.best_lambda == sweep.best
    assert (result.train, result.validation) == (300, 100)
    assert [point.accuracy for point in result.sweep] == sweep.values.tolist()
    assert dict(zip(sweep.lambdas, sweep.values, strict=True))[sweep.best] == sweep.values.max()
    all_rows = np.concatenate([features, more]), np.concatenate([target, more_target])
    model = LogisticRegression(C=1 / sweep.chosen, tol=1e-8, max_iter=20000).fit(*all_rows)
    accuracy = linear_probe.accuracy(logits, test_target)
    assert accuracy == pytest.approx(model.score(test, test_target), abs=0.003)
    result, _ = linear_probe.probe(features, target, None, None, test, test_target, 4)
    assert (result.train, result.validation) == (268, 32)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 3))
def test_holding_out_leaves_every_class_a_row(labels: list[int], seed: int) -> None:
    target = np.array(labels)
    held_out = linear_probe.held_out(target, 6, seed=seed)
    assert (held_out == linear_probe.held_out(target, 6, seed=seed)).all()
    for label, count in zip(*np.unique(target, return_counts=True), strict=True):
        own = held_out[target == label].sum()
        assert own == (0 if count == 1 else max(1, round(count / 10)))


def test_the_rarest_of_several_labels_keeps_its_share() -> None:
    target = np.zeros((200, 3), bool)
    target[:, 0], target[:20, 1], target[0, 2] = True, True, True
    held_out = linear_probe.held_out(target, 3, 0.25)
    assert not held_out[0] and target[held_out, 1].sum() == math.floor(19 / 4 + 0.5)


def test_faults_are_one_line_errors() -> None:
    features, target = clusters(40)
    broken = features.copy()
    broken[7, 3] = np.nan
    both = (features, target, features, target)
    refused(lambda: linear_probe.probe(*both, broken, target, 4), "test split", "row 7")
