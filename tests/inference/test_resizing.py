"""Preprocessing on the device, against Pillow's."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.inference.resizing import resized

NOISE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize(
    ("size", "resize_size", "half"), [(16, None, "even"), (12, 17, "even"), (13, 16, "down")]
)
def test_pixels_are_those_of_pillow(
    interpolation: str, resize: str, size: int, resize_size: int | None, half: str
) -> None:
    preprocess = Preprocess(size, resize, resize_size, interpolation, half=half)
    for width, height in ((61, 40), (40, 61), (9, 7), (16, 16), (90, 7)):
        pixels = np.ascontiguousarray(NOISE[:height, :width])
        ours = np.asarray(resized(jnp.asarray(pixels)[None], preprocess))[0]
        theirs = preprocess(Image.fromarray(pixels)).astype(int)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1  # Pillow rounds the filter to 22 bits
        assert (ours == theirs).mean() > 0.8


@pytest.mark.parametrize(
    "preprocess", [Preprocess(8, interpolation="nearest"), Preprocess(8, resize="longest")]
)
def test_other_ways_are_refused(preprocess: Preprocess) -> None:
    with pytest.raises(UserError, match="any size"):
        resized(jnp.zeros((1, 9, 9, 3), jnp.uint8), preprocess)
