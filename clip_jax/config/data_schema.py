"""The config keys of `data.filter` and `data.augment`, see `schema`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from clip_jax.config.keys import Group, key


@dataclasses.dataclass(frozen=True)
class Filter(Group):
    """Conditions on the pairs that are used; zero or empty: no condition."""

    min_side: int = key(0, "least pixels of the shorter side")
    max_side: int = key(0, "most pixels of the longer side")
    max_aspect: float = key(0.0, "greatest ratio of the longer side to the shorter")
    min_characters: int = key(
        0, "least characters of the caption that the first usable template makes"
    )
    max_characters: int = key(0, "most characters of that caption")
    least: Mapping[str, float] = key(
        {}, "least number of a field, by field: {'similarity': 0.3}", user_named=True
    )
    most: Mapping[str, float] = key({}, "greatest number of a field, by field", user_named=True)
    duplicates: int = key(
        0,
        "leave out an image whose bytes equal those of one of this many images before it; -1: of "
        "any before it",
    )


@dataclasses.dataclass(frozen=True)
class Augment(Group):
    """Random changes to the training images. The defaults are the paper's: a random square crop."""

    crop: str = key(
        "fit",
        "fit: the paper's square crop, shrunk until it fits; open_clip: its crop, drawn again "
        "until it fits, with crop_ratio from 3/4 to 4/3 unless another is given",
    )
    crop_scale: tuple[float, float] = key((0.9, 1.0), "least and greatest share of the area")
    crop_ratio: tuple[float, float] = key(
        (1.0, 1.0),
        "least and greatest width over height; for a model that keeps the shapes of images "
        "(naflex) divided by that of the image",
    )
    flip: float = key(0.0, "probability of a mirror image")
    rotate: float = key(0.0, "greatest angle in degrees, either way; corners are white")
    translate: float = key(
        0.0, "greatest shift as a share of each side, either way; what moves in is white"
    )
    zoom: tuple[float, float] = key(
        (1.0, 1.0), "least and greatest factor by which the image is drawn larger, about its centre"
    )
    color: float = key(
        0.0, "strength of changes to brightness, contrast and saturation (0.4: ×0.6 to ×1.4)"
    )
    hue: float = key(0.0, "greatest rotation of the hue, as a share of the circle")
    gray: float = key(0.0, "probability of a grey image")
    blur: tuple[float, float] = key(
        (0.0, 0.0),
        "least and greatest standard deviation of a Gaussian blur, in pixels of the model's input",
    )
    num_patches: tuple[int, ...] = key(
        (),
        "for a model that keeps the shapes of images (naflex): the most patches of an image, of "
        "which each batch draws one; each is at most model.vision.max_num_patches; empty: that",
    )
