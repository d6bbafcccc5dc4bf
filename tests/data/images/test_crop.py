"""The quick way to cut and resize is Pillow's, but for rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from clip_jax.data.images import decoding
from support import picture

SHARE = st.floats(0, 1)


def pillow(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """What `images.crop` is held against."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


@given(st.integers(2, 200), st.integers(2, 200), st.integers(1, 64), SHARE, SHARE, SHARE, SHARE)
@example(2, 2, 64, 0.0, 0.0, 1.0, 1.0)
@example(200, 150, 1, 0.5, 0.5, 1.0, 1.0)
@example(200, 2, 48, 1.0, 1.0, 0.0, 0.0)
def test_a_crop_is_pillows(
    width: int, height: int, size: int, x: float, y: float, wide: float, tall: float
) -> None:
    image = picture(width * 1000 + height, (width, height))
    image = image.point(lambda v: 64 + v // 2)  # no colour overshoots
    wide, tall = 1 + wide * (width - 1), 1 + tall * (height - 1)
    left, top = x * (width - wide), y * (height - tall)
    box = (left, top, min(left + wide, width), min(top + tall, height))
    cropped = decoding.crop(np.asarray(image), size, box)
    assert cropped.shape == (size, size, 3)
    assert cropped.dtype == np.uint8
    assert np.abs(cropped.astype(int) - pillow(image, size, box)).max() <= 2


@pytest.mark.parametrize("how", ["large", "missing"])
def test_pillow_itself_where_the_quick_way_is_not(monkeypatch, how: str) -> None:
    if how == "large":
        monkeypatch.setattr(decoding, "_LARGE", 99 * 70 - 1)
    else:
        monkeypatch.setattr(decoding, "resizer", None)
    image, box = picture(3, (99, 70)), (3.25, 7.5, 90.0, 69.75)
    assert np.array_equal(decoding.crop(np.asarray(image), 32, box), pillow(image, 32, box))
