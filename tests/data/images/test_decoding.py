"""Any picture becomes RGB or one clear line; the preprocessing is the released one."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax.data.images import augmentation, decoding
from clip_jax.data.images.augmentation import Augment, random_box, random_view, recolor
from clip_jax.data.images.decoding import decode, resize_and_crop
from clip_jax.errors import UserError
from support import encoded, picture, says

# decode turns these off for a program; pytest turns them on again
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

SIDE = st.integers(1, 90)


def released(image: Image.Image, size: int) -> np.ndarray:
    """Resize(size, BICUBIC) and CenterCrop(size) of torchvision, written from its definition."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    image = image.resize(
        (size, longer) if width <= height else (longer, size), Image.Resampling.BICUBIC
    )
    left = round((image.width - size) / 2.0)
    top = round((image.height - size) / 2.0)
    return np.asarray(image)[top : top + size, left : left + size]


@given(SIDE, SIDE, st.integers(1, 64))
@example(64, 48, 48)
@example(48, 48, 48)
@example(3, 90, 5)
def test_preprocessing_is_the_released_one(width: int, height: int, size: int) -> None:
    image = picture(width * 100 + height, (width, height))
    pixels = resize_and_crop(image, size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, released(image, size))


@given(SIDE, SIDE, st.integers(2, 64))
def test_a_very_long_picture_is_resized_in_parts_to_the_same_pixels(
    width: int, height: int, size: int
) -> None:
    image = picture(width * 100 + height, (width, height)).point(lambda v: 64 + v // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "MAX_PIXELS", 0)
        pixels = resize_and_crop(image, size).astype(int)
    assert np.abs(pixels - released(image, size)).max() <= 3  # rounding: no colour overshoots


def test_a_thread_of_pixels_takes_no_memory() -> None:
    thread = Image.new("RGB", (1, 3_000_000), "red")
    assert (resize_and_crop(thread, 224) == (255, 0, 0)).all()
    assert (resize_and_crop(thread.transpose(Image.Transpose.ROTATE_90), 224) == (255, 0, 0)).all()


def gradient(mode: str) -> Image.Image:
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    return Image.fromarray(np.broadcast_to(ramp, (8, 16)).copy()).convert(mode)


RAMP = np.linspace(0, 255, 16, dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "kind", "off"),
    [
        ("L", "png", 0),
        ("P", "png", 2),
        ("1", "png", 255),
        ("RGB", "png", 0),
        ("RGBA", "png", 0),
        ("LA", "png", 0),
        ("L", "jpeg", 8),
        ("CMYK", "jpeg", 8),
        ("YCbCr", "jpeg", 8),
        ("RGB", "webp", 8),
        ("RGBA", "webp", 8),
        ("P", "gif", 2),
        ("CMYK", "tiff", 0),
        ("RGB", "bmp", 0),
    ],
)
def test_every_mode_becomes_rgb(mode: str, kind: str, off: int) -> None:
    options: dict[str, Any] = {"quality": 95} if kind in ("jpeg", "webp") else {}
    image = decode(encoded(gradient(mode), kind, **options), "x")
    assert image.mode == "RGB"
    assert image.size == (16, 8)
    pixels = np.asarray(image).astype(int)
    assert np.abs(pixels - RAMP[None, :, None]).max() <= off
    assert np.ptp(pixels, axis=2).max() <= off


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    values = (RAMP.astype(np.uint16) << 8 | 0x5A)[None].repeat(4, axis=0)
    image = decode(encoded(Image.fromarray(values), kind), "x")
    assert np.array_equal(np.asarray(image), RAMP[None, :, None].repeat(4, 0).repeat(3, 2))


def test_integers_below_zero_are_black() -> None:
    values = np.array([[-5, 0, 0x7F00, 0xFFFF]], np.int32)
    rgb = decoding.to_rgb(Image.fromarray(values))
    assert np.asarray(rgb)[0, :, 0].tolist() == [0, 0, 0x7F, 0xFF]


def transparent_images() -> dict[str, bytes]:
    """A pixel that is see-through beside a red one, in each way that a PNG may say so."""
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    rgb = Image.new("RGB", (2, 1), (255, 0, 0))
    rgb.putpixel((0, 0), (1, 2, 3))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    return {
        "RGBA": encoded(rgba),
        "RGBA webp": encoded(rgba, "webp", lossless=True),
        "RGB with a key": encoded(rgb, transparency=(1, 2, 3)),
        "P": encoded(palette, transparency=0),
        "P with alphas": encoded(palette, transparency=b"\x00\xff"),
    }


@pytest.mark.parametrize("how", transparent_images())
def test_the_transparent_becomes_white(how: str) -> None:
    pixels = np.asarray(decode(transparent_images()[how], "x"))
    assert pixels[0].tolist() == [[255, 255, 255], [255, 0, 0]]


def test_half_transparent_is_blended() -> None:
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert np.allclose(np.asarray(decode(encoded(half), "x"))[0, 0], [255, 127, 127], atol=1)


def test_grey_of_sixteen_bits_with_a_transparent_value() -> None:
    image = Image.fromarray(np.array([[0x0102, 0x8000]], np.uint16))
    pixels = np.asarray(decode(encoded(image, transparency=0x0102), "x"))
    assert pixels[0, 1].tolist() == [0x80] * 3
    assert pixels[0, 0].tolist() in ([255] * 3, [1] * 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("jpeg", "RGB"), ("jpeg", "L"), ("png", "RGB"), ("tiff", "RGB")]
)
def test_pictures_are_upright(kind: str, mode: str, orientation: int) -> None:
    blocks = np.kron(
        np.array([[0, 80], [160, 255], [255, 0]], np.uint8), np.ones((16, 16), np.uint8)
    )
    upright = Image.fromarray(blocks).convert(mode)
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera stood so; a reader turns it back
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turned[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, kind, exif=exif), "x")
    assert decoded.size == upright.size
    difference = np.asarray(decoded).astype(int) - np.asarray(upright.convert("RGB"))
    assert np.abs(difference).max() <= 12


def test_a_picture_with_broken_exif_is_still_a_picture() -> None:
    plain = picture(1, (8, 8))
    assert decode(encoded(plain, "jpeg", exif=b"Exif\0\0" + b"\xff" * 40), "x").size == (8, 8)
    decoded = decode(encoded(plain, "png", exif=b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 30), "x")
    assert np.array_equal(np.asarray(decoded), np.asarray(plain))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(picture())[:60],
        encoded(picture(0, (40, 40)), "jpeg")[:400],
        encoded(picture(0, (40, 40)), "webp")[:400],
        encoded(picture()).replace(b"IDAT", b"IDAX"),
    ],
    ids=["zero bytes", "text", "cut png", "cut jpeg", "cut webp", "broken png"],
)
def test_a_file_that_is_not_a_picture_is_named(data: bytes) -> None:
    with pytest.raises(UserError) as error:
        decode(data, "data.tar:0007.jpg")
    assert says(error.value, "data.tar:0007.jpg")
    assert "0x" not in str(error.value)


FORMATS = ("png", "jpeg", "webp", "gif", "bmp", "tiff")
WHOLE = {kind: encoded(picture(3, (9, 7)), kind) for kind in FORMATS}


@settings(max_examples=300)
@given(st.sampled_from(FORMATS), st.data())
def test_no_damage_gives_another_error(kind: str, data: st.DataObject) -> None:
    raw = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + 4] = data.draw(st.binary(max_size=6))
    try:
        image = decode(bytes(raw), "x.png")
    except UserError as error:
        assert says(error, "x.png")
    else:
        assert image.mode == "RGB"


def smooth(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    return picture(8, (8, 8)).resize(size, Image.Resampling.BICUBIC).convert(mode)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300))
@example(640, 480, 240)
@example(640, 479, 240)
@example(640, 480, 60)
@example(640, 480, 1)
def test_a_jpeg_is_read_no_smaller_than_needed(width: int, height: int, least: int) -> None:
    size = decode(encoded(Image.new("RGB", (width, height)), "jpeg"), "x", least).size
    shrink = max(n for n in (1, 2, 4, 8) if n == 1 or min(width, height) >= n * least)
    assert size == (-(-width // shrink), -(-height // shrink))
    assert min(size) >= min(width, height, least)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize(("least", "shrink"), [(90, 2), (45, 4), (20, 8)])
def test_a_jpeg_read_small_shows_the_same(
    mode: str, options: dict[str, Any], least: int, shrink: int
) -> None:
    data = encoded(smooth((256, 192), mode), "jpeg", quality=95, **options)
    small = decode(data, "x", least)
    assert small.mode == "RGB"
    assert small.size == (256 // shrink, 192 // shrink)
    full_size = decode(data, "x").resize(small.size, Image.Resampling.BOX)
    apart = np.abs(np.asarray(small).astype(int) - np.asarray(full_size))
    assert apart.mean() < 1
    assert apart.max() <= 12


def test_a_jpeg_read_small_is_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth((256, 192)), "jpeg", quality=95, exif=exif)
    small = decode(data, "x", 90)
    assert small.size == (96, 128)
    full_size = decode(data, "x").resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(full_size)).mean() < 1


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "bmp", "tiff"])
def test_other_formats_than_jpeg_are_read_at_full_size(kind: str) -> None:
    data = encoded(picture(1, (64, 48)), kind)
    assert np.array_equal(np.asarray(decode(data, "x", 4)), np.asarray(decode(data, "x")))


def test_a_jpeg_of_several_pictures_is_its_first() -> None:
    others = [picture(1, (256, 192))]
    data = encoded(smooth((256, 192)), "mpo", save_all=True, append_images=others, quality=95)
    full_size = decode(data, "x")
    small = decode(data, "x", 90)
    assert (full_size.size, small.size) == ((256, 192), (128, 96))
    full_size = full_size.resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(full_size)).mean() < 1


def test_the_default_reads_a_jpeg_exactly() -> None:
    data = encoded(smooth((256, 192)), "jpeg")
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(decode(data, "x")), np.asarray(image))
        assert np.array_equal(decoding.Decoder()(data, "x"), np.asarray(image))


def test_a_decoder_reads_small_in_every_process() -> None:
    data = encoded(smooth((256, 192)), "jpeg")
    decoder = decoding.Decoder(1, at_least=90)
    assert decoder(data, "x").shape == (96, 128, 3)
    assert pickle.loads(pickle.dumps(decoder))(data, "x").shape == (96, 128, 3)
    assert decoder(data, "x") is decoder(data, "x")


def test_cut_jpegs_are_refused_however_they_are_read() -> None:
    data = encoded(picture(0, (256, 192)), "jpeg")[:4000]
    for least in (0, 20):
        with pytest.raises(UserError) as error:
            decode(data, "cut.jpg", least)
        assert says(error.value, "cut.jpg")


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9_500, 9_500), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError) as error:
        decode(bomb(*size), "bomb.png")
    assert says(error.value, "bomb.png", "pixels")


def test_nothing_is_printed_about_odd_pictures() -> None:
    odd = encoded(picture(1, (8, 8)), "png", exif=b"MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 30)
    program = f"""
from clip_jax.data.images.decoding import decode
from clip_jax.errors import UserError
decode({odd!r}, "odd")
try:
    decode({bomb(9_500, 9_500)!r}, "bomb")
except UserError as error:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_formats_that_run_programs_are_refused() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UserError) as error:
        decode(script, "x.jpg")
    assert says(error.value, "x.jpg")
    assert "Ghostscript" not in str(error.value)


def test_a_decoder_caches_pictures_until_its_memory_is_full() -> None:
    data = [encoded(picture(i, (256, 256))) for i in range(8)]
    with_cache, without = decoding.Decoder(cache_mib=1), decoding.Decoder()
    with ThreadPoolExecutor(8) as pool:
        firsts = list(pool.map(lambda i: with_cache(data[i % 8], str(i % 8)), range(64)))
    assert all(
        np.array_equal(pixels, np.asarray(decode(data[i % 8], "x")))
        for i, pixels in enumerate(firsts)
    )
    is_cached = [with_cache(data[i], str(i)) is with_cache(data[i], str(i)) for i in range(8)]
    assert sum(is_cached) == 5  # 192 KiB each
    assert without(data[0], "0") is not without(data[0], "0")
    fresh = pickle.loads(pickle.dumps(with_cache))
    assert len(pickle.dumps(with_cache)) < 200
    assert fresh(data[0], "0") is fresh(data[0], "0")
    with pytest.raises(UserError):
        with_cache(b"broken", "8")


AUGMENTS = st.builds(
    Augment,
    crop=st.sampled_from(augmentation.CROPS),
    crop_scale=st.sampled_from([(0.9, 1.0), (1.0, 1.0), (1e-3, 1.0), (0.5, 0.5)]),
    crop_ratio=st.sampled_from([(1.0, 1.0), (0.75, 4 / 3), (0.1, 10.0)]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    rotate=st.sampled_from([0.0, 15.0, 180.0]),
    color=st.sampled_from([0.0, 0.4, 2.0]),
    hue=st.sampled_from([0.0, 0.05, 0.5]),
    gray=st.sampled_from([0.0, 1.0]),
)
SIZES = st.tuples(SIDE, SIDE) | st.sampled_from([(1, 1), (1, 1000), (1000, 1), (2, 3)])


@settings(max_examples=500)
@given(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), AUGMENTS, st.integers(0, 2**32))
def test_a_crop_lies_inside(size: tuple[int, int], augment: Augment, seed: int) -> None:
    left, top, right, bottom = random_box(size, augment, np.random.default_rng(seed))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert right - left > 0.999
    assert bottom - top > 0.999


@given(st.integers(0, 2**32))
def test_a_crop_keeps_its_share_and_shape(seed: int) -> None:
    augment = Augment(crop_scale=(0.2, 0.3), crop_ratio=(0.5, 2.0))
    left, top, right, bottom = random_box((300, 300), augment, np.random.default_rng(seed))
    assert 0.2 - 1e-6 <= (right - left) * (bottom - top) / 300**2 <= 0.3 + 1e-6
    assert 0.5 - 1e-6 <= (right - left) / (bottom - top) <= 2 + 1e-6


@given(
    st.floats(1, 4),
    st.booleans(),
    st.integers(1, 400),
    st.sampled_from([(0.9, 1.0), (1.0, 1.0), (0.08, 1.0), (0.5, 0.5)]),
    st.sampled_from([(1.0, 1.0), (0.75, 4 / 3), (0.1, 10.0), (2.0, 3.0), (0.25, 0.5)]),
    st.sampled_from(augmentation.CROPS),
    st.integers(0, 2**32),
)
def test_a_crop_of_the_least_side_has_the_pixels_of_a_view(
    long: float,
    upright: bool,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    crop: str,
    seed: int,
) -> None:
    augment = Augment(crop, scale, ratio)
    short = augment.least_side(size)
    shape = (short, int(short * long))
    left, top, right, bottom = random_box(
        shape if upright else shape[::-1], augment, np.random.default_rng(seed)
    )
    assert min(right - left, bottom - top) > size - 1e-6


def test_the_least_side_is_no_larger_than_needed() -> None:
    assert Augment(crop_scale=(1.0, 1.0)).least_side(224) == 224
    assert Augment().least_side(224) == 237  # ⌈224 / √0.9⌉
    assert Augment(crop_scale=(0.25, 1.0)).least_side(224) == 448
    assert Augment(crop_scale=(0.25, 1.0), crop_ratio=(0.5, 2.0)).least_side(100) == 283
    assert Augment(crop_scale=(1.0, 1.0), crop_ratio=(0.5, 2.0)).least_side(100) == 200
    assert Augment("open_clip", (0.9, 1.0), (0.75, 4 / 3)).least_side(224) == 273  # √(0.9 · 0.75)


@pytest.mark.parametrize(
    ("size", "scale", "share", "ratio", "left", "full_share"),
    # means of 40,000 draws of torchvision 0.28.0's RandomResizedCrop.get_params
    [
        ((300, 300), (0.9, 1.0), 0.9423, 1.0010, 0.0145, 0.1242),
        ((500, 375), (0.9, 1.0), 0.9584, 1.3041, 0.0159, 0.3712),
        ((375, 500), (0.9, 1.0), 0.9584, 0.7673, 0.0052, 0.3710),
        ((500, 375), (0.2, 1.0), 0.4944, 1.0497, 0.1929, 0.0),
        ((640, 400), (0.9, 1.0), 0.8328, 1.3325, 0.0828, 0.0),
        ((1000, 200), (0.9, 1.0), 0.2670, 1.3350, 0.3660, 0.0),
        ((1000, 200), (0.2, 1.0), 0.2586, 1.3127, 0.3695, 0.0),
    ],
)
def test_the_crop_of_open_clip_is_drawn_as_torchvision_draws_it(
    size: tuple[int, int],
    scale: tuple[float, float],
    share: float,
    ratio: float,
    left: float,
    full_share: float,
) -> None:
    augment = Augment.from_dict({"crop": "open_clip", "crop_scale": scale})
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(size, augment, rng) for _ in range(4000)])
    assert np.array_equal(boxes, boxes.round())
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ours = wide * tall / (size[0] * size[1])
    assert ours.mean() == pytest.approx(share, abs=0.01)
    assert (wide / tall).mean() == pytest.approx(ratio, abs=0.01)
    assert (boxes[:, 0] / size[0]).mean() == pytest.approx(left, abs=0.01)
    assert (ours == 1).mean() == pytest.approx(full_share, abs=0.03)


def test_a_wide_photo_is_cropped_to_its_height_or_squeezed() -> None:
    rng = np.random.default_rng(0)
    left, top, right, bottom = random_box((400, 300), Augment(), rng)
    assert right - left == bottom - top == 300
    left, top, right, bottom = random_box((400, 300), Augment.from_dict({"crop": "open_clip"}), rng)
    assert (right - left) * (bottom - top) >= 0.89 * 400 * 300


def test_open_clips_crop_brings_its_shapes_unless_others_are_given() -> None:
    assert Augment.from_dict({"crop": "open_clip"}).crop_ratio == (3 / 4, 4 / 3)
    named = Augment.from_dict({"crop": "open_clip", "crop_ratio": [1.0, 1.0]})
    assert named.crop_ratio == (3 / 4, 4 / 3)  # what the shared config says
    assert Augment.from_dict({"crop": "open_clip", "crop_ratio": [0.5, 1.0]}).crop_ratio == (0.5, 1)
    with pytest.raises(UserError, match=r"config.data.augment.crop='center' must be one of fit, "):
        Augment.from_dict({"crop": "center"})


@given(SIZES, st.integers(1, 32), AUGMENTS, st.integers(0, 2**32))
def test_a_view_depends_on_the_generator_alone(
    size: tuple[int, int], side: int, augment: Augment, seed: int
) -> None:
    pixels = np.asarray(picture(1, size))
    one, two = (random_view(pixels, side, augment, np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == (side, side, 3)
    assert one.dtype == np.uint8
    assert one.flags.c_contiguous
    assert np.array_equal(one, two)
    assert np.array_equal(pixels, np.asarray(picture(1, size)))


def test_views_differ_and_a_plain_one_is_the_picture() -> None:
    pixels = np.asarray(picture(5, (32, 32)))
    views = [random_view(pixels, 32, Augment(), np.random.default_rng(i)) for i in range(4)]
    assert len({v.tobytes() for v in views}) == 4
    full_crop = Augment(crop_scale=(1.0, 1.0))
    plain = random_view(pixels, 32, full_crop, np.random.default_rng(0))
    assert np.array_equal(plain, pixels)
    mirror = Augment(crop_scale=(1, 1), flip=1.0)
    flipped = random_view(pixels, 32, mirror, np.random.default_rng(0))
    assert np.array_equal(flipped, plain[:, ::-1])


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_colours_stay_at_zero_strength(seed: int, side: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert np.array_equal(recolor(pixels, Augment(), np.random.default_rng(seed)), pixels)


def test_colours_change_by_the_configured_strength() -> None:
    pixels = np.asarray(picture(7, (16, 16)))
    rng = np.random.default_rng
    gray = recolor(pixels, Augment(gray=1.0), rng(0))
    expected = np.asarray(picture(7, (16, 16)).convert("L"))
    assert np.abs(gray.astype(int) - expected[..., None]).max() <= 1
    for augment in (Augment(color=0.4), Augment(hue=0.3)):
        assert np.abs(recolor(pixels, augment, rng(1)).astype(int) - pixels).mean() > 2
    greys = np.full((4, 4, 3), 99, np.uint8)
    assert np.abs(recolor(greys, Augment(hue=0.5), rng(2)).astype(int) - 99).max() <= 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.1)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_scale", (0.5,)),
        ("crop_ratio", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip", 1.5),
        ("flip", -0.1),
        ("gray", 2.0),
        ("rotate", -1.0),
        ("color", -0.4),
        ("hue", float("nan")),
    ],
)
def test_impossible_augmentation_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        Augment.from_dict({key: value})
    assert says(error.value, f"config.data.augment.{key}", value)


def test_augment_reads_a_json_config() -> None:
    assert Augment.from_dict({"crop_scale": [0.5, 1.0], "flip": 0.5}) == Augment(
        crop_scale=(0.5, 1.0), flip=0.5
    )
