"""Thumbnails: small, of the right shape, whatever they are made from."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.evaluation.report import thumbnail
from clip_jax.evaluation.report.album import Album
from support import picture


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(300, 200), (1, 1), (1, 900), (90, 40)])
def test_thumbnails_of_any_kind(mode: str, size: tuple[int, int]) -> None:
    image = picture(0, size).convert(mode)
    before = image.tobytes()
    small = Image.open(io.BytesIO(thumbnail(image)))
    assert small.format == "WEBP"
    assert max(small.size) == min(112, max(size))
    assert image.tobytes() == before


def test_a_side_is_chosen_and_noise_is_still_small() -> None:
    data = thumbnail(picture(0, (500, 500)), side=64)
    assert Image.open(io.BytesIO(data)).size == (64, 64)
    assert len(thumbnail(picture(0, (500, 500)))) < 8_000


def test_transparent_pixels_become_white() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    pixels = np.asarray(Image.open(io.BytesIO(thumbnail(clear))).convert("RGB"))
    assert pixels.min() > 250


def test_the_last_of_a_list_is_left_out_first() -> None:
    pictures = {str(i): thumbnail(picture(i, (40, 40))) for i in range(6)}
    album = Album(pictures)
    for i in range(6):
        album.show(str(i), "words", rank=5 - i)
    full_style, left_out = album.style(1 << 20)
    assert left_out == 0
    some, left_out = album.style(len(full_style) // 2)
    assert left_out in (3, 4)
    assert ".p5{" in some
    assert ".p0{" not in some
    assert album.style(0) == ("", 6)
