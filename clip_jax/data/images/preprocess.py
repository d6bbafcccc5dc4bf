"""The preprocessing of models: from an image to the pixels that a model takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.images.decoding import resize_and_crop, shorter_side_to
from clip_jax.data.images.pictures import picture
from clip_jax.data.images.values import bad_value, check_choice, check_integer
from clip_jax.errors import UserError
from clip_jax.models.model_config import MEAN, STD, VisionTower
from clip_jax.models.patches import PatchBudget

RESIZES = ("shortest", "squash", "longest")  # to a square
PATCHES = "patches"
RESAMPLES = {r.name.lower(): r for r in map(Image.Resampling, range(6))}  # newer ones are rare
HALVES: dict[str, Callable[[float], int]] = {"even": round, "down": math.floor}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Converts an image to the input of a model: uint8 [size, size, 3]; the model normalises it.

    With `resize="patches"` it is uint8 [patches, bytes], the packed patches of `models.patches`.

    The pixels equal those of the released code for upright, opaque RGB or grey images of 8 bits a
    channel. Other images are first converted to these (`decoding.to_rgb`). transformers also
    converts to RGB before it resizes, and puts transparency on white. OpenAI's code and open_clip
    resize first: palettes and black-and-white without interpolation, CMYK before its inks are
    mixed.

    Attributes:
      size: pixels a side of the output; with `patches` of a square image.
      resize: `shortest`: the shorter side becomes `resize_size`, then the centre is cropped (CLIP);
        `squash`: both sides become `resize_size` whatever the shape, then the centre is cropped
        (SigLIP, ALIGN); `longest`: the longer side becomes `size`, and the rest is filled;
        `patches`: the image keeps its shape, and has as many patches as `budget` lets it have
        (SigLIP 2 NaFlex).
      resize_size: pixels; None for `size`.
      interpolation: `bicubic`, `bilinear`, or another of Pillow's filters.
      mean, std: of R, G and B in 0…1; the model subtracts the mean, then divides by std.
      fill: the grey value around an image, for `longest`.
      half: whether a margin of half a pixel is rounded to the `even` number of pixels (OpenAI,
        open_clip) or `down` (transformers). This shifts the crop by a pixel in one image of four.
      budget: the size and the number of patches, for `patches`.
    """

    size: int
    resize: str = "shortest"
    resize_size: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    fill: int = 0
    half: str = "even"
    budget: PatchBudget | None = None

    def __post_init__(self) -> None:
        for key, choices in (
            ("resize", (*RESIZES, PATCHES)),
            ("interpolation", RESAMPLES),
            ("half", HALVES),
        ):
            check_choice("Preprocess", key, getattr(self, key), choices)
        check_integer("Preprocess", "size", self.size)
        check_integer("Preprocess", "fill", self.fill, 0, 255)
        if self.resize_size is not None:
            check_integer("Preprocess", "resize_size", self.resize_size, self.size)
            if self.resize == "longest" and self.resize_size != self.size:
                raise UserError(
                    f"Preprocess.resize_size={self.resize_size} cannot be: with resize='longest' "
                    f"nothing is cut off; leave it out"
                )
        if (self.resize == PATCHES) != (self.budget is not None):
            raise bad_value(
                "Preprocess", "budget", self.budget, "given for resize='patches', and only for it"
            )
        for key, least in (("mean", -math.inf), ("std", 0.0)):
            value = getattr(self, key)
            if len(value) != 3 or not all(least < v < math.inf for v in value):
                raise bad_value("Preprocess", key, value, f"three numbers above {least:g}")

    def resized(self, size: int) -> Preprocess:
        """Returns the preprocessing for another image size, with `resize_size` in proportion."""
        side = self.resize_size
        side = None if side is None else round(side * size / self.size)
        return dataclasses.replace(self, size=size, resize_size=side)

    def fitted(self, vision: VisionTower) -> Preprocess:
        """Returns the preprocessing for images of a tower's size."""
        if self.budget is None:
            return self.resized(vision.image_size)
        return dataclasses.replace(self, size=vision.image_size, budget=vision.patch_budget)

    def with_patches(self, count: int) -> Preprocess:
        """Returns the preprocessing with at most `count` patches of an image; 0: as it is.

        Raises:
          UserError: it makes squares.
        """
        if not count:
            return self
        if self.budget is None:
            raise UserError(
                f"config.evaluate.max_num_patches={count}: this model takes squares of {self.size} "
                "pixels; only a model that keeps the shapes of images (naflex) takes patches"
            )
        budget = dataclasses.replace(self.budget, patches=count)
        return dataclasses.replace(self, size=budget.side, budget=budget)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output."""
        return (self.size, self.size, 3) if self.budget is None else self.budget.shape

    def __call__(self, image: Any) -> np.ndarray:
        """Returns the pixels of an image of any mode and shape; see `pictures.picture`."""
        image = picture(image)
        resample = RESAMPLES[self.interpolation]
        if self.budget is not None:
            high, wide = self.budget.size_for(image.height, image.width)
            return self.budget.pack(np.asarray(image.resize((wide, high), resample)))
        if self.resize == "longest":
            ratio = max(image.size) / self.size
            shape = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
            square = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
            corner = ((self.size - shape[0]) // 2, (self.size - shape[1]) // 2)
            square.paste(image.resize(shape, resample), corner)
            return np.asarray(square)
        side = self.resize_size or self.size
        shape = (side, side) if self.resize == "squash" else shorter_side_to(side, image.size)
        return resize_and_crop(image, self.size, shape, resample, HALVES[self.half])
