"""What reads JPEGs quickly reads what Pillow does, or leaves it to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_jax.data.images import jpeg
from clip_jax.data.images.decoding import MAX_PIXELS, decode
from support import encoded, picture

SIDE = st.integers(1, 150)


@given(SIDE, SIDE, st.sampled_from((0, 1, 2)), st.sampled_from(("L", "RGB")), st.integers(0, 90))
def test_pixels_are_pillows(
    width: int, height: int, subsampling: int, mode: str, at_least: int
) -> None:
    image = picture(width * 1000 + height, (width, height)).convert(mode)
    data = encoded(image, "jpeg", subsampling=subsampling, quality=85)
    assert jpeg.size_of(data) == (width, height)
    pixels = jpeg.decode(data, at_least, MAX_PIXELS)
    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(decode(data, "x", at_least)))


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "png", {}),
        ("CMYK", "jpeg", {}),
        ("RGB", "jpeg", {"progressive": True}),
        ("RGB", "jpeg", {"exif": exif()}),
    ],
)
def test_unusual_jpegs_are_left_to_pillow(mode: str, format: str, options: dict[str, Any]) -> None:
    data = encoded(picture(1, (40, 30)).convert(mode), format, **options)
    assert jpeg.size_of(data) is None
    assert jpeg.decode(data, 0, MAX_PIXELS) is None


def test_damaged_or_large_jpegs_are_left_to_pillow() -> None:
    data = encoded(picture(1, (40, 30)), "jpeg")
    assert jpeg.decode(data, 0, 40 * 30) is not None
    assert jpeg.decode(data, 0, 40 * 30 - 1) is None
    for end in range(len(data) - 2):
        assert jpeg.decode(data[:end], 0, MAX_PIXELS) is None


@given(st.binary(max_size=40))
def test_any_bytes_are_survived(data: bytes) -> None:
    assert jpeg.size_of(b"\xff\xd8\xff" + data) is None or len(data) > 30
    assert jpeg.decode(b"\xff\xd8\xff" + data, 20, MAX_PIXELS) is None
