"""Recall is what looking through the gallery by hand gives."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.evaluation.metrics import retrieval
from clip_jax.evaluation.metrics.retrieval import arithmetic, count_ahead, nearest

SIZES = st.sampled_from([1, 2, 5, 8, 64])


def recalls(
    query: np.ndarray,
    gallery: np.ndarray,
    mine: np.ndarray,
    theirs: np.ndarray,
    ks: tuple[int, ...] = (1, 5, 10),
    **blocks: int,
) -> dict[str, float]:
    ranks = count_ahead(query, gallery, mine, theirs, **blocks)
    return {f"r{k}": float((ranks < k).mean()) for k in ks}


def both_ways(
    images: np.ndarray, texts: np.ndarray, image_group: np.ndarray, text_group: np.ndarray
) -> dict[str, float]:
    result = retrieval.recalls(images, texts, image_group, text_group)
    ways = ("image_to_text", "text_to_image")
    return {f"{way}/{k}": score.value for way in ways for k, score in getattr(result, way).items()}


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
    shares = recalls(query, gallery, mine, theirs, ks=(1, 2, 5, 10), rows=rows)
    expected = {f"r{k}": by_hand(query, gallery, mine, theirs, k) for k in (1, 2, 5, 10)}
    assert shares == pytest.approx(expected)
    assert shares == recalls(query, gallery, mine, theirs, ks=(1, 2, 5, 10))


def test_both_directions() -> None:
    images = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]]
    texts = np.eye(4, dtype=np.float32)[[0, 2, 1]]
    recall = both_ways(images, texts, np.array([0, 1, 2, 2, 0]), np.array([0, 1, 2]))
    # images 0: its text first; 1 and 2: the other's text first; 3 and 4: all texts tied
    assert recall["image_to_text/r1"] == pytest.approx(1 / 5)
    assert recall["image_to_text/r5"] == 1
    assert recall["text_to_image/r1"] == pytest.approx(1 / 3)
    assert list(recall) == [f"{way}/r{k}" for way in WAYS for k in (1, 5, 10)]


WAYS = ("image_to_text", "text_to_image")


def test_nan_or_a_missing_partner_is_no_hit() -> None:
    nothing = np.full((30, 2), np.nan, np.float32)
    group = np.arange(30)
    assert set(both_ways(nothing, nothing, group, group).values()) == {0.0}
    good = np.eye(3, dtype=np.float32)
    alone = recalls(good[:1], good, np.array([7]), np.arange(3))
    assert alone == {"r1": 0.0, "r5": 0.0, "r10": 0.0}


def unit(rng: np.random.Generator, n: int, d: int = 48) -> np.ndarray:
    x = rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def on_the_grid(x: np.ndarray) -> np.ndarray:
    """Unit-norm features in whole steps of 2⁻²⁴: exact in NumPy, too."""
    return np.rint(x.astype(np.float64) * 2**24)


def dense(query: np.ndarray, gallery: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> Any:
    """The whole matrix at once."""
    similarity, own = on_the_grid(query) @ on_the_grid(gallery).T, mine[:, None] == theirs
    best = np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)
    before = ((similarity >= best) & ~own).sum(axis=1)
    return np.where(own.any(axis=1), before, np.iinfo(np.int64).max)


@settings(max_examples=15)
@given(st.integers(1, 60), st.integers(1, 150), SIZES, SIZES, st.integers(0, 2**32))
def test_blocks_change_no_rank(q: int, g: int, rows: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # most items are in the gallery several times, some queries are items
    items = unit(rng, 20)
    gallery = items[rng.integers(0, 20, g)]
    query = np.concatenate([items, unit(rng, 40) / 2])[rng.permutation(60)[:q]]
    mine, theirs = rng.integers(0, 30, q), rng.integers(0, 30, g)
    ranks = count_ahead(query, gallery, mine, theirs, rows, block)
    assert (ranks == dense(query, gallery, mine, theirs)).all()


@settings(max_examples=15)
@given(
    st.integers(1, 30), st.integers(1, 90), st.integers(1, 12), SIZES, SIZES, st.integers(0, 2**32)
)
def test_nearest_is_a_stable_sort(q: int, g: int, k: int, rows: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery, query = unit(rng, 30)[rng.integers(0, 30, g)], unit(rng, q)
    barred = rng.integers(-1, g, q)
    numbers, values = nearest(query, gallery, k, barred, rows, block)
    similarity = on_the_grid(query) @ on_the_grid(gallery).T
    similarity[barred >= 0, barred[barred >= 0]] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(similarity, order, axis=1)
    assert (np.where(np.isinf(expected), -1, order) == numbers).all()
    assert (values == expected / 2**48).all()
    np.testing.assert_allclose(values[:, 0], similarity.max(axis=1) / 2**48)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_long_rows_are_sorted_stably(k: int) -> None:
    rng = np.random.default_rng(k)
    # whole numbers: among 3,000 items most similarities occur many times
    gallery = rng.integers(-2, 3, (3000, 3)).astype(np.float32)
    query = rng.integers(-2, 3, (9, 3)).astype(np.float32)
    order = np.argsort(-(query @ gallery.T), axis=1, kind="stable")[:, :k]
    assert (nearest(query, gallery, k)[0] == order).all()
    assert (nearest(query, gallery, k, block=2048)[0] == order).all()


@pytest.mark.parametrize("count", [1, 3])
def test_devices_change_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(count)
    gallery = unit(rng, 40)[rng.integers(0, 40, 100)]
    query, mine, theirs = gallery[:30], rng.integers(0, 9, 30), rng.integers(0, 9, 100)
    ranks, (numbers, values) = count_ahead(query, gallery, mine, theirs), nearest(query, gallery, 4)
    few = jax.devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda: few)
    assert (count_ahead(query, gallery, mine, theirs, 4, 16) == ranks).all()
    again = nearest(query, gallery, 4, rows=4, block=16)
    assert (again[0] == numbers).all()
    assert (again[1] == values).all()


def test_similarities_are_as_good_as_float32s() -> None:
    rng = np.random.default_rng(0)
    query, gallery = unit(rng, 50, 512), unit(rng, 70, 512)
    numbers, values = nearest(query, gallery, 70)
    exact = query.astype(np.float64) @ gallery.T.astype(np.float64)
    assert np.abs(values - np.take_along_axis(exact, numbers, axis=1)).max() < 1e-6


def test_nan_is_ranked_last() -> None:
    gallery = np.eye(3, dtype=np.float32)
    gallery[0, 1] = np.nan
    numbers, values = nearest(np.ones((1, 3), np.float32), gallery, 5)
    assert numbers.tolist() == [[1, 2, 0]]
    assert np.isnan(values[0, 2])
    infinite = np.full((1, 3), np.inf, np.float32)
    assert np.isnan(nearest(infinite, gallery, 2)[1]).all()


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32))
def test_any_of_several_captions_is_a_hit(images: int, captions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, text = unit(rng, images), unit(rng, images * captions)
    group = np.repeat(np.arange(images), captions)
    result = retrieval.recalls(image, text, np.arange(images), group)
    similarity = image.astype(np.float64) @ text.T
    order = np.argsort(-similarity, axis=1)
    for k in (1, 5, 10):
        # others before the first own one are fewer than k as soon as an own one is in the first k
        hits = (group[order[:, :k]] == np.arange(images)[:, None]).any(axis=1)
        assert result.image_to_text[f"r{k}"].value == pytest.approx(hits.mean())
        back = np.argsort(-similarity.T, axis=1)[:, :k]
        hits = (back == group[:, None]).any(axis=1)
        assert result.text_to_image[f"r{k}"].value == pytest.approx(hits.mean())
    assert (result.images, result.texts) == (images, images * captions)
    plain = both_ways(image, text, np.arange(images), group)
    for way in WAYS:
        for k in (1, 5, 10):
            score = getattr(result, way)[f"r{k}"]
            assert score.low <= score.value == plain[f"{way}/r{k}"] <= score.high


def test_empty_queries_or_gallery() -> None:
    none, some = np.empty((0, 4), np.float32), unit(np.random.default_rng(0), 3, 4)
    empty, three = np.arange(0), np.arange(3)
    assert retrieval.recalls(none, none, empty, empty).image_to_text["r1"].value is None
    assert retrieval.recalls(some, none, three, empty).image_to_text["r10"].value == 0
    assert nearest(some, none, 3)[0].shape == (3, 0)
    assert nearest(none, some, 2)[0].shape == (0, 2)


def test_wide_numbers_stay_inside() -> None:
    nearest(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 1)
    assert jax.numpy.ones(1).dtype == np.float32


def test_arithmetic_adds_and_takes_away() -> None:
    rng = np.random.default_rng(0)
    image, text = unit(rng, 1)[0], unit(rng, 1)[0]
    more, less = arithmetic(3 * image, 5 * text), arithmetic(image, text, -2.0)
    assert np.linalg.norm(more) == pytest.approx(1)
    np.testing.assert_allclose(more, (image + 2 * text) / np.linalg.norm(image + 2 * text), 1e-5)
    assert more @ text > image @ text > less @ text
    gallery = np.stack([image, text, more])
    assert nearest(more[None], gallery, 1, np.array([2]))[0].item() == 1
