"""Pictures: decoding, the released preprocessing, and what training changes at random."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from clip_jax.errors import UserError

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs


def decode(data: bytes, name: str) -> Image.Image:
    """An RGB picture, upright, transparency on white.

    Raises:
      UserError: the bytes are no picture, are cut short, or would decode to over 89 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise UserError(f"{name} is not a picture that can be read ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of a picture in any mode; what is transparent becomes white."""
    if image.mode == "RGB":
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, np.int64) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """The released preprocessing: shorter side to `size` (bicubic), centre crop; uint8 [size, size, 3]."""
    width, height = image.size
    if width < height:
        shape = (size, int(size * height / width))
    else:
        shape = (int(size * width / height), size)
    if shape != image.size:
        image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@dataclasses.dataclass(frozen=True)
class Augment:
    """What training does to a picture. The defaults are the paper's: a random square crop.

    crop_scale: least and greatest share of the area that is kept.
    crop_ratio: least and greatest width/height of the crop; (1, 1) is square.
    flip: probability of a mirror image.
    rotate: greatest angle, degrees, either way, corners filled with white.
    color: strength of changes to brightness, contrast and saturation (0.4: ×0.6…×1.4).
    hue: greatest rotation of the hue, as a share of the circle.
    gray: probability of losing all colour.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotate: float = 0.0
    color: float = 0.0
    hue: float = 0.0
    gray: float = 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Augment:
        """From a config's `data.augment`."""
        return cls(
            **{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()}
        )


def random_box(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random crop (left, top, right, bottom) of a picture of `size` (width, height)."""
    width, height = size
    low, high = (math.log(r) for r in augment.crop_ratio)
    area = width * height * rng.uniform(*augment.crop_scale)
    ratio = math.exp(rng.uniform(low, high))
    wide, tall = math.sqrt(area * ratio), math.sqrt(area / ratio)
    shrink = min(1.0, width / wide, height / tall)
    wide, tall = max(1.0, wide * shrink), max(1.0, tall * shrink)
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - tall)
    return left, top, left + wide, top + tall


def _hue_matrix(turn: float) -> np.ndarray:
    """Rotation by `turn` of a circle about the grey axis of RGB."""
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    third, root = (1 - cos) / 3, math.sqrt(1 / 3) * sin
    a, b, c = cos + third, third - root, third + root
    return np.array([[a, b, c], [c, a, b], [b, c, a]], np.float32)


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def recolor(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue as one affine map of the colours; uint8 → uint8."""
    low, high = max(0.0, 1 - augment.color), 1 + augment.color
    brightness, contrast, saturation = rng.uniform(low, high, 3).astype(np.float32)
    if rng.random() < augment.gray:
        saturation = np.float32(0)
    luma = np.broadcast_to(_LUMA, (3, 3))
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * luma
    matrix = _hue_matrix(rng.uniform(-augment.hue, augment.hue)) @ matrix
    x = pixels.reshape(-1, 3).astype(np.float32)
    mean = float((x @ _LUMA).mean())
    x = x @ ((brightness * contrast) * matrix).T + brightness * (1 - contrast) * mean
    return np.clip(x + 0.5, 0, 255).astype(np.uint8).reshape(pixels.shape)


def random_view(
    image: Image.Image, size: int, augment: Augment, rng: np.random.Generator
) -> np.ndarray:
    """A picture as training sees it; uint8 [size, size, 3]. Depends on `rng` alone."""
    if augment.rotate:
        angle = rng.uniform(-augment.rotate, augment.rotate)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
    box = random_box(image.size, augment, rng)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image)
    if rng.random() < augment.flip:
        pixels = pixels[:, ::-1]
    if augment.color or augment.hue or augment.gray:
        pixels = recolor(pixels, augment, rng)
    return np.ascontiguousarray(pixels)
