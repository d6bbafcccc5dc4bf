"""Pictures: decoding, the released preprocessing, and what training changes at random."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import math
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

from clip_jax.data import image_limits, jpeg
from clip_jax.data.example import MAX_MEMBER, PairError, read_bytes
from clip_jax.data.image_limits import MAX_PIXELS
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
    image_limits.check_parts(data)
    return Image.open(image_limits.File(data), formats=FORMATS)


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
            image_limits.check(image, data)
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


# "fit" shrinks the crop until it fits into the picture; "open_clip" draws again.
CROPS = ("fit", "open_clip")


@dataclasses.dataclass(frozen=True)
class Augment:
    """What training does to a picture. The defaults are the paper's: a random square crop.

    crop: one of `CROPS`: what happens to a crop that is wider or taller than the picture.
    crop_scale: least and greatest share of the area that is kept.
    crop_ratio: least and greatest width/height of the crop; (1, 1) is square.
    flip: probability of a mirror image.
    rotate: greatest angle, degrees, either way, corners filled with white.
    color: strength of changes to brightness, contrast and saturation (0.4: ×0.6…×1.4).
    hue: greatest rotation of the hue, as a share of the circle.
    gray: probability of losing all colour.
    """

    crop: str = "fit"
    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotate: float = 0.0
    color: float = 0.0
    hue: float = 0.0
    gray: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise UserError(
                f"config.data.augment.crop={self.crop!r:.80} must be one of {', '.join(CROPS)}"
            )
        for key, least, most in (
            ("crop_scale", 1e-6, 1.0),
            ("crop_ratio", 1e-3, 1e3),
            ("flip", 0.0, 1.0),
            ("rotate", 0.0, 180.0),
            ("color", 0.0, math.inf),
            ("hue", 0.0, 0.5),
            ("gray", 0.0, 1.0),
        ):
            value = getattr(self, key)
            pair = key.startswith("crop_")
            ends = value if pair else (value, value)
            if len(ends) != 2 or not least <= ends[0] <= ends[1] <= most:
                kind = "(least, greatest)" if pair else "a number"
                raise UserError(
                    f"config.data.augment.{key}={value} must be {kind} in [{least:g}, {most:g}]"
                )

    def least_side(self, size: int) -> int:
        """The shorter side, pixels, of pictures of which every crop has `size` pixels a side."""
        low, (narrow, wide) = self.crop_scale[0], self.crop_ratio
        # a shape that does not fit shrinks, or, if none fits, becomes the largest that is allowed
        limits = (narrow, 1 / wide) if self.crop == "fit" else (wide, 1 / narrow)
        share = min(1.0, math.sqrt(low * narrow), math.sqrt(low / wide), *limits)
        return math.ceil(size / share)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Augment:
        """From a config's `data.augment`, in which open_clip's crop brings its shapes along."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        if plain.get("crop") == "open_clip" and plain.get("crop_ratio", (1.0, 1.0)) == (1.0, 1.0):
            plain["crop_ratio"] = (3 / 4, 4 / 3)
        return cls(**plain)


def random_box(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random crop (left, top, right, bottom) of a picture of `size` (width, height)."""
    if augment.crop == "open_clip":
        return _open_clip_box(size, augment, rng)
    width, height = size
    wide, tall = _random_shape(size, augment, rng)
    shrink = min(1.0, width / wide, height / tall)
    # float rounding may lead out of the picture by a hair
    wide, tall = (min(max(shrink * v, 1.0), most) for v, most in ((wide, width), (tall, height)))
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - tall)
    return left, top, min(left + wide, width), min(top + tall, height)


def _random_shape(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator
) -> tuple[float, float]:
    """Width and height of a crop, which need not fit into the picture."""
    low, high = (math.log(r) for r in augment.crop_ratio)
    area = size[0] * size[1] * rng.uniform(*augment.crop_scale)
    ratio = math.exp(rng.uniform(low, high))
    return math.sqrt(area * ratio), math.sqrt(area / ratio)


def _open_clip_box(
    size: tuple[int, int], augment: Augment, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A crop as torchvision's `RandomResizedCrop` draws it, which open_clip trains with.

    Of ten shapes in whole pixels the first one that fits is taken; if none does, the largest
    centred part whose shape is allowed.
    """
    width, height = size
    for _ in range(10):
        wide, tall = (round(side) for side in _random_shape(size, augment, rng))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(rng.integers(0, width - wide, endpoint=True))
            top = int(rng.integers(0, height - tall, endpoint=True))
            return left, top, left + wide, top + tall
    narrowest, widest = augment.crop_ratio
    wide = min(width, max(1, round(height * widest)))
    tall = min(height, max(1, round(width / narrowest)))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_GRAY = np.tile(_LUMA, (3, 1))
_IDENTITY = np.eye(3, dtype=np.float32)


def _hue_matrix(turn: float) -> np.ndarray:
    """Rotation by `turn` of a circle about the grey axis of RGB."""
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    third, root = (1 - cos) / 3, math.sqrt(1 / 3) * sin
    a, b, c = cos + third, third - root, third + root
    return np.array([[a, b, c], [c, a, b], [b, c, a]], np.float32)


def recolor(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue as one affine map of the colours; uint8 → uint8."""
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


def random_view(
    pixels: np.ndarray, size: int, augment: Augment, rng: np.random.Generator
) -> np.ndarray:
    """A picture as training sees it. Depends on `rng` alone.

    Args:
      pixels: uint8 [height, width, 3].
      size: of the view, pixels a side.
      augment: what changes at random.
      rng: the chance.

    Returns:
      uint8 [size, size, 3].
    """
    if augment.rotate:
        angle = rng.uniform(-augment.rotate, augment.rotate)
        turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
        pixels = np.asarray(turned)
    height, width = pixels.shape[:2]
    view = crop(pixels, size, random_box((width, height), augment, rng))
    if rng.random() < augment.flip:
        view = view[:, ::-1]
    if augment.color or augment.hue or augment.gray:
        view = recolor(view, augment, rng)
    return np.ascontiguousarray(view)
