"""Recall is what looking through the gallery by hand gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.retrieval import both_ways, recalls


def by_hand(
    query: np.ndarray, gallery: np.ndarray, mine: np.ndarray, theirs: np.ndarray, k: int
) -> float:
    """Sorts the whole gallery for each query; of items as near, those of other groups first."""
    hits = 0
    for features, group in zip(query, mine, strict=True):
        order = sorted(
            range(len(gallery)), key=lambda j: (-(features @ gallery[j]), theirs[j] == group)
        )
        first = next((i for i, j in enumerate(order) if theirs[j] == group), None)
        if first is not None:
            hits += sum(theirs[j] != group for j in order[:first]) < k
    return hits / len(query)


@given(
    st.integers(1, 25),
    st.integers(1, 25),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_against_sorting(q: int, g: int, groups: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # whole numbers: similarities are exact, and often alike
    query = rng.integers(-2, 3, (q, 3)).astype(np.float32)
    gallery = rng.integers(-2, 3, (g, 3)).astype(np.float32)
    mine, theirs = rng.integers(0, groups, q), rng.integers(0, groups, g)
    found = recalls(query, gallery, mine, theirs, ks=(1, 2, 5, 10), rows=rows)
    expected = {f"r{k}": by_hand(query, gallery, mine, theirs, k) for k in (1, 2, 5, 10)}
    assert found == pytest.approx(expected)
    assert found == recalls(query, gallery, mine, theirs, ks=(1, 2, 5, 10))


def test_both_directions() -> None:
    images = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]]
    texts = np.eye(4, dtype=np.float32)[[0, 2, 1]]
    found = both_ways(images, texts, np.array([0, 1, 2, 2, 0]), np.array([0, 1, 2]))
    # images 0: its text first; 1 and 2: the other's text first; 3 and 4: all texts tied
    assert found["image_to_text/r1"] == pytest.approx(1 / 5)
    assert found["image_to_text/r5"] == 1
    assert found["text_to_image/r1"] == pytest.approx(1 / 3)
    assert list(found) == [f"{way}/r{k}" for way in WAYS for k in (1, 5, 10)]


WAYS = ("image_to_text", "text_to_image")


def test_what_is_no_number_or_missing_is_no_hit() -> None:
    nothing = np.full((30, 2), np.nan, np.float32)
    group = np.arange(30)
    assert set(both_ways(nothing, nothing, group, group).values()) == {0.0}
    good = np.eye(3, dtype=np.float32)
    alone = recalls(good[:1], good, np.array([7]), np.arange(3))
    assert alone == {"r1": 0.0, "r5": 0.0, "r10": 0.0}
