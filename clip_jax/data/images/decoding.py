"""Pictures: decoding, the released preprocessing, and what training changes at random."""

from __future__ import annotations

import contextlib
import ctypes
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

# What a picture may be. Not EPS, which Pillow hands to a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_HUGE = 1 << 24  # pixels: read, such take up to 32 bytes each, so threads take turns
_TURN = threading.Lock()
_ORIENTATION = 0x0112
_SAYS_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_LARGE = 1 << 22  # pixels: more are not copied twice for the sake of time
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of oddities that pictures of the web are full of, and of bombs: see decode.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# libtiff itself writes to stderr what it thinks of damage
for _library in Path(Image.__file__).parent.with_name("pillow.libs").glob("libtiff*"):
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(str(_library)).TIFFSetErrorHandler(None)
        ctypes.CDLL(str(_library)).TIFFSetWarningHandler(None)


def opened(data: bytes) -> Image.Image:
    """A picture whose header is read and nothing more; fails with errors of every kind."""
    limits.check_parts(data)
    return Image.open(limits.File(data), formats=FORMATS)


def decode(data: bytes, name: str, at_least: int = 0) -> Image.Image:
    """An RGB picture, upright, transparency on white.

    Args:
      data: the bytes of a file.
      name: what an error calls it.
      at_least: for training alone: a JPEG is read at a half, a quarter or an eighth of its size
        while its shorter side keeps this many pixels. That is sooner read and resized, but is not
        what the whole picture would be resized to. 0: the whole, exactly.

    Raises:
      PairError: the bytes are no picture, are cut short, would decode to over 89 megapixels, or
        would take minutes (see `image_limits`).
    """
    try:
        with opened(data) as image:
            limits.check(image, data)
            huge = image.width * image.height > _HUGE
            if at_least and image.draft(None, (at_least, at_least)):
                huge &= "progressive" in image.info
            with _TURN if huge else contextlib.nullcontext():
                image.load()
                return to_rgb(image)
    except UnidentifiedImageError:
        kind = "has no bytes" if not data else f"is none of {', '.join(FORMATS)}, or is damaged"
        raise PairError("picture", f"{name} is not a picture that can be read: it {kind}") from None
    except Exception as error:  # Pillow's readers fail on damage with errors of every kind
        raise PairError("picture", f"{name} is not a picture that can be read ({error})") from None


def read(path: str | Path) -> Image.Image:
    """`decode`'s picture of a file here, of `embedded:` data, or of a URL.

    Raises:
      UserError: the file cannot be read, or is no picture.
    """
    path = resolve(str(path))
    try:
        data = read_bytes(path, MAX_MEMBER)
    except ValueError as error:  # a name that no file can have
        raise UserError(f"{path} cannot be read ({error})") from None
    return decode(data, remote.shown(path))


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it was seen. The result names no orientation, so it is turned once.

    Pillow itself turns a TIFF while it is loaded, but no other format.
    """
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read says nothing about the pixels
        return image
    if turn is None:
        return image
    upright = image.transpose(turn)
    for key in _SAYS_ORIENTATION:
        upright.info.pop(key, None)
    return upright


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Numbers of a wider type as uint8, by the range that they fill.

    A type does not say how many of its bits are used: masks, 12-bit cameras and scanners all write
    16 bits. Of 8, 12 and 16 bits the fewest that hold the greatest value are taken, and the upper
    eight of these kept, so numbers up to 255 stay as they are. Above 16 bits the greatest value
    becomes 255. Floats up to 1 are shares of 255, others as integers. Below 0 and what is not a
    number becomes 0.
    """
    floats = values.dtype.kind == "f"
    if floats:
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=0.0)
    top = float(np.max(values, initial=0, where=np.isfinite(values) if floats else True))
    if floats and 0 < top <= 1:
        return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)
    bits = next((bits for bits in (8, 12, 16) if top < 1 << bits), 0)
    if bits and not floats:
        return np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
    return np.clip(values / ((1 << bits - 8) if bits else top / 255), 0, 255).astype(np.uint8)


class Decoder:
    """Pictures as pixels, kept in memory until `cache_mib` are full: for small sets.

    `at_least` is `decode`'s; `Augment.least_side` gives what random crops need. Safe under
    threads; pickled without what it keeps.
    """

    def __init__(self, cache_mib: int = 0, at_least: int = 0) -> None:
        self._cache_mib, self._at_least = cache_mib, at_least
        self._room = cache_mib << 20
        self._kept: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self._cache_mib, self._at_least)

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """`decode`'s picture, uint8 [height, width, 3]; `name` tells pictures apart.

        What it gives is not to be changed.
        """
        pixels = self._kept.get(name)
        if pixels is None:
            found = jpeg.read(data, self._at_least, _HUGE)
            pixels = np.asarray(decode(data, name, self._at_least)) if found is None else found
            with self._lock:
                if pixels.nbytes <= self._room and name not in self._kept:
                    self._room -= pixels.nbytes
                    self._kept[name] = pixels
        return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of a picture in any mode; what is transparent becomes white.

    This is the one place that turns pictures by their EXIF; of its own result it makes the same.
    More than 8 bits a pixel become 8 as `eight_bits` says.

    The released preprocessing of CLIP drops transparency instead, clips 16 bits to 8, and leaves
    pictures lying as the camera stored them: there a logo on nothing is black on black, a scan of
    16 bits all white. Opaque upright pictures of 8 bits or fewer a channel come out the same.
    """
    key = image.info.get("transparency")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every one for Adobe's, which are inverted
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or key is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def shorter_side_to(side: int, size: tuple[int, int]) -> tuple[int, int]:
    """What `size` (width, height) becomes when its shorter side does `side`; rounded down."""
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
    """The released preprocessing of RGB: shorter side to `size` (bicubic), then its centre.

    Args:
      image: RGB.
      size: of the crop, pixels a side.
      shape: (width, height) of the whole that it is cut from, where that is another.
      resample: the filter.
      half: rounds the margins at the left and above.

    Returns:
      uint8 [size, size, 3].
    """
    width, height = image.size
    shape = shape or shorter_side_to(size, image.size)
    left, top = half((shape[0] - size) / 2), half((shape[1] - size) / 2)
    if shape[0] * shape[1] > MAX_PIXELS:  # a thread of a picture: only its centre is resized
        wide, tall = width / shape[0], height / shape[1]
        part = (left * wide, top * tall, (left + size) * wide, (top + size) * tall)
        return np.asarray(image.resize((size, size), resample, part))
    if shape != image.size:
        image = image.resize(shape, resample)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def crop(pixels: np.ndarray, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """A part of a picture (left, top, right, bottom) by Pillow's bicubic filter.

    Six times as fast as Pillow where cykooz.resizer is installed, and at most 2 of 255 away but at
    edges so sharp that the filter overshoots. Large pictures, which it would copy twice, go to
    Pillow.

    Args:
      pixels: uint8 [height, width, 3].
      size: what a side of the part becomes.
      box: in pixels from the left and from the top.

    Returns:
      uint8 [size, size, 3].
    """
    height, width = pixels.shape[:2]
    if resizer is None or width * height > _LARGE:
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    left, top, right, bottom = box
    form = resizer.PixelType.U8x3
    cut = resizer.ResizeOptions(
        resize_alg=resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom),
        crop_box=resizer.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    found = resizer.ImageData(size, size, form)
    resizer.Resizer().resize(resizer.ImageData(width, height, form, pixels.tobytes()), found, cut)
    return np.frombuffer(found.get_buffer(), np.uint8).reshape(size, size, 3)
