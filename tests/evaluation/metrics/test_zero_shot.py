"""Zero-shot numbers by hand; what cannot be told apart counts against the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.metrics.zero_shot import likeliest, top_k

LOGITS = np.array(
    [[3, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1], [5, 0, 0, 0, 0, 0]], np.float32
)


def test_by_hand() -> None:
    # first: rank 1; second: rank 6; third: all tied, so rank 6; fourth: tied with four, rank 6
    assert top_k(LOGITS, np.array([0, 0, 2, 5])) == {"top1": 0.25, "top5": 0.25}
    assert top_k(LOGITS, np.array([0, 5, 2, 0])) == {"top1": 0.75, "top5": 0.75}
    assert top_k(LOGITS, np.array([1, 1, 2, 0]), ks=(1, 2, 6)) == {
        "top1": 0.25,
        "top2": 0.5,
        "top6": 1.0,
    }


def test_nan_is_never_right() -> None:
    nothing = np.full((4, 6), np.nan, np.float32)
    assert top_k(nothing, np.arange(4)) == {"top1": 0.0, "top5": 0.0}
    own = LOGITS.copy()
    own[0, 0] = np.nan
    assert top_k(own[:1], np.array([0])) == {"top1": 0.0, "top5": 0.0}


@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 2**32))
def test_against_counting(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (n, classes)).astype(np.float32)
    target = rng.integers(0, classes, n)
    expected = {
        f"top{k}": np.mean(
            [
                sum(row[j] >= row[t] for j in range(classes) if j != t) < k
                for row, t in zip(logits, target, strict=True)
            ]
        )
        for k in (1, 5)
    }
    assert top_k(logits, target) == expected
    assert top_k(3 * logits + 1, target) == expected


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_likeliest_is_a_sorted_softmax(classes: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 50, classes)
    order, shares = likeliest(logits, classes)
    assert sorted(order) == list(range(classes))
    assert (np.diff(shares) <= 0).all()
    assert shares.sum() == pytest.approx(1)
    assert order[0] == logits.argmax()
    ratio = np.exp(logits[order[0]] - logits[order[-1]])
    assert shares[0] == pytest.approx(shares[-1] * ratio, rel=1e-6)
    few, some = likeliest(logits, min(3, classes))
    assert (few == order[:3]).all()
    assert (some == shares[:3]).all()
