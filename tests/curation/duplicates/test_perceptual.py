"""Near-duplicates by a perceptual hash: groups against all pairs, and hashes of real drawings."""

from __future__ import annotations

import io
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_jax.curation.duplicates import perceptual
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import open_source


@st.composite
def near_hashes(draw: st.DrawFn) -> np.ndarray:
    """Hashes of which many are near: random ones with some of their bits changed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = rng.integers(0, 2**64, draw(st.integers(1, 12)), np.uint64)
    hashes = base[rng.integers(0, len(base), draw(st.integers(0, 80)))]
    for _ in range(draw(st.integers(0, 9))):
        flipped = np.uint64(1) << rng.integers(0, 64, len(hashes), np.uint64)
        hashes = np.where(rng.random(len(hashes)) < 0.5, hashes ^ flipped, hashes)
    return hashes


def by_all_pairs(hashes: np.ndarray, order: np.ndarray, radius: int) -> list[bool]:
    return [
        any((int(a) ^ int(b)).bit_count() <= radius and q < p for b, q in zip(hashes, order))  # noqa: B905
        for a, p in zip(hashes, order)  # noqa: B905
    ]


@given(near_hashes(), st.integers(0, 12), st.randoms())
def test_groups_are_those_of_all_pairs(hashes: np.ndarray, radius: int, random) -> None:
    order = np.array(random.sample(range(1000), len(hashes)), np.int64)
    expected = by_all_pairs(hashes, order, radius)
    for small in (1, 3, 32):
        with mock.patch.object(perceptual, "_SMALL", small):
            assert perceptual.near_groups(hashes, order, radius).tolist() == expected
    assert perceptual.near_earlier(hashes, order, radius).tolist() == expected


@given(near_hashes(), st.integers(0, perceptual.MAX_RADIUS))
def test_near_hashes_share_a_band(hashes: np.ndarray, radius: int) -> None:
    parts = perceptual.bands(hashes, radius)
    assert parts.shape == (len(hashes), radius + 1)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= radius
    assert (parts[:, None] == parts).any(-1)[near].all()


def test_bands_are_all_bits() -> None:
    hashes = np.array([0, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
    for radius in range(perceptual.MAX_RADIUS + 1):
        ends = np.linspace(0, 64, radius + 2).round().astype(int)
        parts = perceptual.bands(hashes, radius)
        sums = [sum(int(p) << int(e) for p, e in zip(row, ends[:-1], strict=True)) for row in parts]
        assert sums == hashes.tolist()
    for radius in (-1, 32):
        with pytest.raises(ValueError, match="from 0 to 31"):
            perceptual.bands(hashes, radius)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes, order = rng.integers(0, 4096, 300, np.uint64), rng.permutation(300)
    expected = perceptual.near_earlier(hashes, order, 3)
    assert 0 < expected.sum() < 300
    monkeypatch.setattr(perceptual, "_BLOCK", 7)
    np.testing.assert_array_equal(perceptual.near_earlier(hashes, order, 3), expected)


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    source = open_source("embedded:emoji/train-000.tar")
    pairs = [source[i] for i in range(0, len(source), 9)]
    return [decode(pair.image, pair.name) for pair in pairs]


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return Image.open(file)


# The least shares of copies within 4 bits; docs/benchmarks.md has those of all drawings.
@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda image: image.resize((48, 48), Image.Resampling.BICUBIC), 0.97),
        (lambda image: image.resize((200, 150), Image.Resampling.LANCZOS), 0.97),
        (lambda image: as_jpeg(image, 75), 0.93),
        (lambda image: as_jpeg(image.resize((48, 48)), 50), 0.8),
        (lambda image: Image.eval(image.convert("RGB"), lambda level: level * 7 // 10), 0.95),
        (lambda image: image.convert("L"), 1.0),
    ],
    ids=["smaller", "stretched", "jpeg 75", "smaller, jpeg 50", "darker", "grey"],
)
def test_copies_are_near(
    drawings: list[Image.Image], change: Callable[[Image.Image], Image.Image], share: float
) -> None:
    hashes = np.array([perceptual.perceptual_hash(image) for image in drawings])
    copies = np.array([perceptual.perceptual_hash(change(image)) for image in drawings])
    assert (np.bitwise_count(hashes ^ copies) <= 4).mean() >= share


def test_other_drawings_are_not(drawings: list[Image.Image]) -> None:
    hashes = np.array([perceptual.perceptual_hash(image) for image in drawings])
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= 4
    others = len(hashes) * (len(hashes) - 1)
    assert (near.sum() - len(hashes)) / others < 1e-3


def test_what_is_blank_has_the_hash_zero() -> None:
    for level in (0, 128, 255):
        assert perceptual.perceptual_hash(np.full((50, 80, 3), level, np.uint8)) == 0
    transparent = Image.new("RGBA", (64, 64), (200, 10, 10, 0))
    assert perceptual.perceptual_hash(transparent) == 0
    assert perceptual.perceptual_hash(Image.new("L", (1, 1))) == 0
