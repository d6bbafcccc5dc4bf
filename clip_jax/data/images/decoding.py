"""Decoding images into upright RGB, and the resizing and cropping of the released models."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

try:
    import cykooz_resizer as resizer
except ImportError:  # no wheel for Linux on ARM
    resizer = None

from clip_jax.data.example import MAX_MEMBER, PairError, read_bytes
from clip_jax.data.images import jpeg, limits
from clip_jax.data.images.limits import MAX_PIXELS
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import resolve

# The accepted formats. Not EPS, for which Pillow starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_HUGE = 1 << 24  # pixels: decoding takes up to 32 bytes for each, so threads take turns
_HUGE_LOCK = threading.Lock()
_ORIENTATION = 0x0112
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_LARGE = 1 << 22  # pixels, above which copying costs more than the faster resizer saves
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of oddities, which are frequent in images of the web, and of bombs: see `decode`.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


@functools.cache
def _silence_libtiff() -> None:
    """Keeps libtiff from writing about damage to stderr."""
    for library in Path(Image.__file__).parent.with_name("pillow.libs").glob("libtiff*"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
            ctypes.CDLL(str(library)).TIFFSetWarningHandler(None)


def _load(image: Image.Image) -> None:
    """Decodes the pixels of an opened image."""
    if image.format == "TIFF":
        _silence_libtiff()
    image.load()


def open_image(data: bytes) -> Image.Image:
    """Opens an image and reads only its header.

    Damaged files raise exceptions of every type.
    """
    limits.check_parts(data)
    return Image.open(limits.File(data), formats=FORMATS)


def decode(data: bytes, name: str, at_least: int = 0) -> Image.Image:
    """Decodes an image to upright RGB with transparency on white.

    Args:
      data: the bytes of a file.
      name: the name of the image, for errors.
      at_least: pixels, for training only: a JPEG is decoded at a half, a quarter or an eighth of
        its size as long as its shorter side keeps this many pixels. That is faster, but its pixels
        differ slightly from those of the resized full image. 0 decodes the full size, exactly.

    Raises:
      PairError: the bytes are no image, are truncated, would decode to over 89 megapixels, or
        would take minutes (see `limits`).
    """
    try:
        with open_image(data) as image:
            limits.check(image, data)
            is_huge = image.width * image.height > _HUGE
            if at_least and image.draft(None, (at_least, at_least)):
                is_huge &= "progressive" in image.info
            with _HUGE_LOCK if is_huge else contextlib.nullcontext():
                _load(image)
                return to_rgb(image)
    except UnidentifiedImageError:
        kind = "has no bytes" if not data else f"is none of {', '.join(FORMATS)}, or is damaged"
        raise PairError("picture", f"{name} is not an image that can be read: it {kind}") from None
    except Exception as error:  # Pillow's readers fail on damage with errors of every kind
        raise PairError("picture", f"{name} is not an image that can be read ({error})") from None


def read_image(path: str | Path) -> Image.Image:
    """Decodes the image in a local file, in `embedded:` data or at a URL; see `decode`.

    Raises:
      UserError: the file cannot be read, or is no image.
    """
    path = resolve(str(path))
    try:
        data = read_bytes(path, MAX_MEMBER)
    except ValueError as error:  # a name that no file can have, such as one with a zero byte
        raise UserError(f"{path} cannot be read ({error})") from None
    return decode(data, remote.redact(path))


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation and removes it, so that an image is never turned twice.

    Pillow itself turns TIFFs while loading, but no other format.
    """
    _load(image)
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return image
    if turn is None:
        return image
    upright = image.transpose(turn)
    for key in _ORIENTATION_KEYS:
        upright.info.pop(key, None)
    return upright


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Converts numbers of a wider type to uint8, by the range that they use.

    The type does not tell how many bits are used: masks, 12-bit cameras and scanners all write
    16 bits. So the range is the smallest of 8, 12 and 16 bits that holds the greatest value, and
    the upper eight bits of that range are kept; numbers up to 255 do not change. If the greatest
    value needs over 16 bits, it becomes 255. Floats up to 1 are multiplied by 255, others are
    treated like integers. Negative numbers and NaN become 0.
    """
    is_float = values.dtype.kind == "f"
    if is_float:
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=0.0)
    top = float(np.max(values, initial=0, where=np.isfinite(values) if is_float else True))
    if is_float and 0 < top <= 1:
        return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)
    bits = next((bits for bits in (8, 12, 16) if top < 1 << bits), 0)
    if bits and not is_float:
        return np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
    return np.clip(values / ((1 << bits - 8) if bits else top / 255), 0, 255).astype(np.uint8)


class Decoder:
    """Decodes images to arrays, with a cache for small data sets.

    An instance is thread-safe. A pickle does not contain the cache.

    Args:
      cache_mib: the size of the cache, in MiB.
      at_least: as for `decode`; `Augment.least_side` returns what random crops need.
    """

    def __init__(self, cache_mib: int = 0, at_least: int = 0) -> None:
        self._cache_mib, self._at_least = cache_mib, at_least
        self._room = cache_mib << 20
        self._cache: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self._cache_mib, self._at_least)

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """Returns the pixels of an image, uint8 [height, width, 3], which must not be modified.

        Args:
          data: the bytes of a file.
          name: the name of the image, for errors and as its key in the cache.
        """
        pixels = self._cache.get(name)
        if pixels is None:
            pixels = jpeg.decode(data, self._at_least, _HUGE)
            if pixels is None:
                pixels = np.asarray(decode(data, name, self._at_least))
            with self._lock:
                if pixels.nbytes <= self._room and name not in self._cache:
                    self._room -= pixels.nbytes
                    self._cache[name] = pixels
        return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to upright RGB, with transparency on white.

    Only this function applies the EXIF orientation, and it is idempotent. `eight_bits` reduces
    images of more than 8 bits a channel.

    The released preprocessing of CLIP drops transparency instead, clips 16 bits to 8, and ignores
    the orientation: a black logo on transparency becomes black on black, and a scan of 16 bits
    white. Opaque upright images of at most 8 bits a channel give the same pixels in both.
    """
    key = image.info.get("transparency")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow assumes that all are inverted, as Adobe's are
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or key is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def shorter_side_to(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """Scales `size` (width, height) so that its shorter side is `side`; rounds the longer down."""
    width, height = size
    if width < height:
        return side, int(side * height / width)
    return int(side * width / height), side


def resize_and_crop(
    image: Image.Image,
    size: int,
    shape: tuple[int, int] | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    half: Callable[[float], int] = round,
) -> np.ndarray:
    """Resizes the shorter side of an image to `size` and crops its centre, as released models do.

    Args:
      image: RGB.
      size: pixels a side of the crop.
      shape: the (width, height) to resize to instead.
      resample: the interpolation.
      half: rounds the left and the top margin to whole pixels.

    Returns:
      uint8 [size, size, 3].
    """
    width, height = image.size
    shape = shape or shorter_side_to(size, image.size)
    left, top = half((shape[0] - size) / 2), half((shape[1] - size) / 2)
    if shape[0] * shape[1] > MAX_PIXELS:  # of a very narrow image only the centre is resized
        wide, tall = width / shape[0], height / shape[1]
        part = (left * wide, top * tall, (left + size) * wide, (top + size) * tall)
        return np.asarray(image.resize((size, size), resample, part))
    if shape != image.size:
        image = image.resize(shape, resample)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def crop(
    pixels: np.ndarray, size: int | tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    """Crops a part of an image and resizes it with Pillow's bicubic filter.

    With cykooz.resizer this is six times as fast as Pillow, and differs by at most 2 of 255 except
    at edges so sharp that the filter overshoots. It copies its input twice, so large images are
    left to Pillow.

    Args:
      pixels: uint8 [height, width, 3].
      size: the height and the width of the result in pixels, or the side of a square.
      box: left, top, right and bottom of the part, in pixels.

    Returns:
      uint8 [size, size, 3].
    """
    height, width = pixels.shape[:2]
    high, wide = (size, size) if isinstance(size, int) else size
    if resizer is None or width * height > _LARGE:
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC, box=box))
    left, top, right, bottom = box
    form = resizer.PixelType.U8x3
    options = resizer.ResizeOptions(
        resize_alg=resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom),
        crop_box=resizer.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    source = resizer.ImageData(width, height, form, pixels.tobytes())
    result = resizer.ImageData(wide, high, form)
    resizer.Resizer().resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(high, wide, 3)
