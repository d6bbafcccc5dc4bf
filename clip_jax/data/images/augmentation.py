"""Random augmentation of training images: affine maps, crop, flip, colours, blur."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from clip_jax.config import data_schema
from clip_jax.data.images.decoding import crop
from clip_jax.errors import UserError
from clip_jax.models.patches import PatchBudget

# "fit" shrinks the crop until it fits into the image; "open_clip" draws again.
CROPS = ("fit", "open_clip")


@dataclasses.dataclass(frozen=True)
class Augment(data_schema.Augment):
    """Random changes to the training images, as `config.data.augment` describes them.

    See `data_schema.Augment` for the fields. `crop` decides what happens to a crop that is wider or
    taller than the image: `fit` shrinks it until it fits, `open_clip` draws again.
    """

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise UserError(
                f"config.data.augment.crop={self.crop!r:.80} must be one of {', '.join(CROPS)}"
            )
        if any(count < 1 for count in self.num_patches):
            raise UserError(
                f"config.data.augment.num_patches={self.num_patches} must be numbers above 0"
            )
        for key, least, most in (
            ("crop_scale", 1e-6, 1.0),
            ("crop_ratio", 1e-3, 1e3),
            ("flip", 0.0, 1.0),
            ("rotate", 0.0, 180.0),
            ("translate", 0.0, 1.0),
            ("zoom", 0.1, 10.0),
            ("color", 0.0, math.inf),
            ("hue", 0.0, 0.5),
            ("gray", 0.0, 1.0),
            ("blur", 0.0, 100.0),
        ):
            value = getattr(self, key)
            is_pair = isinstance(getattr(data_schema.Augment, key), tuple)
            ends = value if is_pair else (value, value)
            if len(ends) != 2 or not least <= ends[0] <= ends[1] <= most:
                kind = "(least, greatest)" if is_pair else "a number"
                raise UserError(
                    f"config.data.augment.{key}={value} must be {kind} in [{least:g}, {most:g}]"
                )

    def least_side(self, size: int) -> int:
        """Returns the shorter side that an image needs so that no crop is smaller than `size`.

        Args:
          size: pixels a side of the crops.
        """
        low, (narrow, wide) = self.crop_scale[0], self.crop_ratio
        # a shape that does not fit is shrunk, or replaced by the largest that is allowed
        limits = (narrow, 1 / wide) if self.crop == "fit" else (wide, 1 / narrow)
        share = min(1.0, math.sqrt(low * narrow), math.sqrt(low / wide), *limits)
        return math.ceil(size / share)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Augment:
        """Makes an instance from `config.data.augment`.

        With `crop="open_clip"`, `crop_ratio` is (3/4, 4/3) unless it is set.
        """
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if plain.get("crop") == "open_clip" and plain.get("crop_ratio", (1.0, 1.0)) == (1.0, 1.0):
            plain["crop_ratio"] = (3 / 4, 4 / 3)
        return cls(**plain)


def random_box(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator, aspect: float = 1.0
) -> tuple[float, float, float, float]:
    """Draws a random crop.

    Args:
      size: width and height of the image.
      augment: the scales and shapes of crops.
      rng: draws the crop.
      aspect: the shape, width over height, that `augment.crop_ratio` is relative to.

    Returns:
      left, top, right and bottom of the crop, in pixels.
    """
    if augment.crop == "open_clip":
        return _open_clip_box(size, augment, rng, aspect)
    width, height = size
    wide, tall = _random_shape(size, augment, rng, aspect)
    shrink = min(1.0, width / wide, height / tall)
    # float rounding may lead out of the image by a hair
    wide, tall = (min(max(shrink * v, 1.0), most) for v, most in ((wide, width), (tall, height)))
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - tall)
    return left, top, min(left + wide, width), min(top + tall, height)


def _random_shape(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator, aspect: float
) -> tuple[float, float]:
    """Returns a random width and height of a crop, which need not fit into the image."""
    low, high = (math.log(r) for r in augment.crop_ratio)
    area = size[0] * size[1] * rng.uniform(*augment.crop_scale)
    ratio = aspect * math.exp(rng.uniform(low, high))
    return math.sqrt(area * ratio), math.sqrt(area / ratio)


def _open_clip_box(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator, aspect: float
) -> tuple[float, float, float, float]:
    """Draws a crop as torchvision's `RandomResizedCrop` does, with which open_clip trains.

    It takes the first of ten shapes in whole pixels that fits, or, if none does, the largest
    centred part whose shape is allowed.
    """
    width, height = size
    for _ in range(10):
        wide, tall = (round(side) for side in _random_shape(size, augment, rng, aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(rng.integers(0, width - wide, endpoint=True))
            top = int(rng.integers(0, height - tall, endpoint=True))
            return left, top, left + wide, top + tall
    narrowest, widest = (aspect * ratio for ratio in augment.crop_ratio)
    wide = min(width, max(1, round(height * widest)))
    tall = min(height, max(1, round(width / narrowest)))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_GRAY = np.tile(_LUMA, (3, 1))
_IDENTITY = np.eye(3, dtype=np.float32)


def _hue_matrix(turn: float) -> np.ndarray:
    """Returns the matrix that rotates colours about the grey axis of RGB by `turn` full turns."""
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    third, root = (1 - cos) / 3, math.sqrt(1 / 3) * sin
    a, b, c = cos + third, third - root, third + root
    return np.array([[a, b, c], [c, a, b], [b, c, a]], np.float32)


def recolor(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue at random, as one affine map of the colours.

    Args:
      pixels: uint8 [height, width, 3].
      augment: the ranges of the changes.
      rng: draws the changes.

    Returns:
      uint8 [height, width, 3].
    """
    low, high = max(0.0, 1 - augment.color), 1 + augment.color
    brightness, contrast, saturation = rng.uniform(low, high, 3).tolist()
    if rng.random() < augment.gray:
        saturation = 0.0
    matrix = saturation * _IDENTITY + (1 - saturation) * _GRAY
    matrix = (brightness * contrast) * (
        _hue_matrix(rng.uniform(-augment.hue, augment.hue)) @ matrix
    )
    x = pixels.reshape(-1, 3).astype(np.float32)
    mean = float(np.add.reduce(x @ _LUMA)) / len(x)
    x = x @ matrix.T
    x += brightness * (1 - contrast) * mean + 0.5
    np.maximum(x, 0, out=x)
    np.minimum(x, 255, out=x)
    return x.astype(np.uint8).reshape(pixels.shape)


def affine(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Turns an image about its centre, draws it larger or smaller and shifts it, at random.

    Args:
      pixels: uint8 [height, width, 3].
      augment: the ranges of the changes.
      rng: draws the changes.

    Returns:
      uint8 [height, width, 3]; what no pixel covers is white.
    """
    height, width = pixels.shape[:2]
    angle = math.radians(rng.uniform(-augment.rotate, augment.rotate))
    zoom = rng.uniform(*augment.zoom)
    x_shift, y_shift = rng.uniform(-augment.translate, augment.translate, 2) * (width, height)
    # PIL asks which place of the input each place of the output shows
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = width / 2 + x_shift, height / 2 + y_shift
    matrix = (
        *(cos, -sin, width / 2 - cos * x + sin * y),
        *(sin, cos, height / 2 - sin * x - cos * y),
    )
    image = Image.fromarray(pixels).transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor="white",
    )
    return np.asarray(image)


def random_view(
    pixels: np.ndarray, size: int | PatchBudget, augment: Augment, rng: np.random.Generator
) -> np.ndarray:
    """Returns a random view of an image for training.

    Args:
      pixels: uint8 [height, width, 3].
      size: pixels a side of the view, or the patches of a view that keeps the shape of the image.
        `augment.crop_ratio` is then relative to that shape.
      augment: the random changes.
      rng: all randomness of the view.

    Returns:
      uint8 [size, size, 3], or packed patches, see `models.patches`.
    """
    if augment.translate or augment.zoom != (1.0, 1.0):
        pixels = affine(pixels, augment, rng)
    elif augment.rotate:
        angle = rng.uniform(-augment.rotate, augment.rotate)
        turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
        pixels = np.asarray(turned)
    height, width = pixels.shape[:2]
    if isinstance(size, PatchBudget):
        box = random_box((width, height), augment, rng, width / height)
        shape = size.size_for(box[3] - box[1], box[2] - box[0])
    else:
        box, shape = random_box((width, height), augment, rng), (size, size)
    view = crop(pixels, shape, box)
    if rng.random() < augment.flip:
        view = view[:, ::-1]
    if augment.color or augment.hue or augment.gray:
        view = recolor(view, augment, rng)
    if augment.blur != (0.0, 0.0):
        blur = ImageFilter.GaussianBlur(rng.uniform(*augment.blur))
        view = np.asarray(Image.fromarray(np.ascontiguousarray(view)).filter(blur))
    return size.pack(view) if isinstance(size, PatchBudget) else np.ascontiguousarray(view)
