"""Affine maps and blur of training images; crops and colours are in test_decoding.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.images.augmentation import Augment, affine, random_view
from clip_jax.errors import UserError
from support import picture, says

PIXELS = np.asarray(picture(3, (32, 24)))


class Greatest:
    """Draws the greatest value of each range."""

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return high if size is None else np.full(size, high)

    def random(self) -> float:
        return 1.0


def test_an_affine_map_turns_shifts_and_enlarges_about_the_centre() -> None:
    rng: Any = Greatest()
    assert np.array_equal(affine(PIXELS, Augment(), rng), PIXELS)
    shifted = affine(PIXELS, Augment(translate=0.25), rng)
    assert np.array_equal(shifted[6:, 8:], PIXELS[:-6, :-8])
    assert (shifted[:6] == 255).all() and (shifted[:, :8] == 255).all()
    square = PIXELS[:, :24]
    turned, inner = affine(square, Augment(rotate=90.0), rng), np.s_[2:-2, 2:-2]
    turns = [np.abs(turned[inner].astype(int) - np.rot90(square, k)[inner]) for k in (1, -1)]
    assert min(d.max() for d in turns) <= 1
    larger = affine(PIXELS, Augment(zoom=(1.0, 2.0)), rng)
    middle = Image.fromarray(PIXELS[6:18, 8:24]).resize((32, 24), Image.Resampling.BILINEAR)
    assert np.abs(larger[inner].astype(int) - np.asarray(middle)[inner]).max() <= 2
    smaller = affine(PIXELS, Augment(zoom=(0.5, 0.5)), rng)
    assert (smaller[:5] == 255).all() and (smaller[:, -7:] == 255).all()


def test_blur_keeps_the_mean_and_smooths() -> None:
    plain = Augment(crop_scale=(1.0, 1.0))
    blurred = Augment(crop_scale=(1.0, 1.0), blur=(1.0, 2.0))
    square = np.asarray(picture(3, (24, 24)))
    sharp, soft = (
        random_view(square, 24, a, np.random.default_rng(0)).astype(float) for a in (plain, blurred)
    )
    assert abs(soft.mean() - sharp.mean()) < 2
    assert np.abs(np.diff(soft, axis=0)).mean() < 0.7 * np.abs(np.diff(sharp, axis=0)).mean()


def test_views_of_convirt_depend_on_the_generator_alone() -> None:
    augment = Augment(
        *("fit", (0.6, 1.0), (1.0, 1.0), 0.5, 20.0, 0.1, (0.95, 1.05), 0.4), blur=(0.1, 3.0)
    )
    views = [random_view(PIXELS, 16, augment, np.random.default_rng(i)) for i in (0, 0, 1)]
    assert np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])
    assert all(v.shape == (16, 16, 3) and v.flags.c_contiguous for v in views)


@pytest.mark.parametrize(
    ("key", "value"),
    [("translate", 1.5), ("zoom", (0.0, 1.0)), ("zoom", (1.1, 1.0)), ("blur", (-1.0, 1.0))],
)
def test_impossible_augmentation_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        Augment.from_dict({key: value})
    assert says(error.value, f"config.data.augment.{key}", value)
