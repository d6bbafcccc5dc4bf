"""Preprocess makes the pixels of the released code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from preprocessors import (
    HALF,
    SIZES,
    drawing,
    released_pixels,
)

from clip_jax.data.images.decoding import resize_and_crop, to_rgb
from clip_jax.data.images.preprocess import RESAMPLES, Preprocess
from clip_jax.errors import UserError
from support import encoded, says

# The sha256 of what the released code makes of `drawing` in SIZES, RGB and grey; see `released`.
GOLDEN = {
    "open_clip shortest bicubic": (Preprocess(24), "bca0b04fc039e930"),
    "open_clip shortest bilinear": (Preprocess(24, interpolation="bilinear"), "329de20f05f4511b"),
    "open_clip squash bicubic": (Preprocess(24, "squash"), "3504084dc89f16bf"),
    "open_clip squash bilinear": (
        Preprocess(24, "squash", interpolation="bilinear"),
        "0b67515dab2d1a70",
    ),
    "open_clip longest bicubic": (Preprocess(24, "longest", fill=7), "8ee4b64ebb7fdb4b"),
    "transformers CLIP": (Preprocess(24, half="down"), "f7980205361a47fe"),
    "transformers Siglip": (
        Preprocess(24, "squash", mean=HALF, std=HALF, half="down"),
        "3504084dc89f16bf",
    ),
    "transformers EfficientNet": (
        Preprocess(24, "squash", 29, "bilinear", HALF, HALF, half="down"),
        "0563963f8266a728",
    ),
}


NAN = float("nan")


def digest(make: Callable[[Image.Image], np.ndarray]) -> str:
    pixels = [make(drawing(size, mode).convert("RGB")) for size in SIZES for mode in ("RGB", "L")]
    return hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("which", GOLDEN)
def test_pixels_are_the_released_ones(which: str) -> None:
    preprocess, expected = GOLDEN[which]
    assert digest(preprocess) == expected


@pytest.mark.parametrize("which", GOLDEN)
def test_the_released_code_still_makes_them(which: str) -> None:
    preprocess, expected = GOLDEN[which]
    assert digest(released_pixels(which, preprocess)) == expected


def test_the_default_is_the_released_preprocessing_of_clip() -> None:
    for size in SIZES:
        image = drawing(size)
        pixels = Preprocess(24)(image)
        assert pixels.shape == (24, 24, 3)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, resize_and_crop(to_rgb(image), 24))


def test_squashing_and_fitting_show_the_whole_picture() -> None:
    image = Image.new("RGB", (60, 20), "white")
    image.paste("red", (0, 0, 6, 20))
    assert (Preprocess(20)(image) == 255).all()  # the left end is cut off
    assert Preprocess(20, "squash")(image)[10, 0].tolist() == [255, 0, 0]
    fitted = Preprocess(20, "longest", fill=7)(image)
    assert fitted[10, 0].tolist() == [255, 0, 0]
    assert (fitted[:6] == 7).all()
    assert (fitted[14:] == 7).all()
    assert (fitted[7:13, 5:] == 255).all()
    thread = Image.new("RGB", (1, 4000), "red")
    assert (Preprocess(20, "longest")(thread)[:, 9:11].max(axis=1) == [255, 0, 0]).all()


def test_margins_of_half_a_pixel() -> None:
    ramp = Image.fromarray(np.arange(27, dtype=np.uint8)[None].repeat(24, axis=0))
    columns = {half: Preprocess(24, half=half)(ramp)[0, 0, 0] for half in ("even", "down")}
    assert columns == {"even": 2, "down": 1}


def test_every_filter_of_pillow() -> None:
    image = drawing((64, 48))
    made = {name: Preprocess(24, interpolation=name)(image).tobytes() for name in RESAMPLES}
    assert len(set(made.values())) == len(RESAMPLES) == 6


def opened(image: Image.Image, kind: str = "png", **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, kind, **options)))


def see_through(mode: str) -> Image.Image:
    """A picture whose left half can be seen through, in one of the ways there are."""
    image = drawing((64, 48), mode.rstrip("+"))
    if mode == "P+":
        unused = min(set(range(256)) - set(image.tobytes()))
        image.paste(unused, (0, 0, 32, 48))
        return opened(image, transparency=unused)
    if mode == "PA":
        image = drawing((64, 48), "P").convert("PA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 32, 48))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P+"])
def test_what_is_transparent_is_white(mode: str) -> None:
    image = see_through(mode)
    assert image.mode == mode.rstrip("+")
    pixels = Preprocess(24)(image)
    assert (pixels[:, :10] == 255).all()
    assert not (pixels[:, 14:] == 255).all()
    opaque = Image.fromarray(np.asarray(image.convert("RGBA"))[..., :3].copy())
    assert np.array_equal(pixels[:, 14:], Preprocess(24)(opaque)[:, 14:])


def test_transparency_in_the_released_code() -> None:
    """transformers lays it on white as well; open_clip shows what hides below it."""
    image = see_through("RGBA")
    preprocess, _ = GOLDEN["transformers CLIP"]
    assert np.array_equal(
        released_pixels("transformers CLIP", preprocess)(image), preprocess(image)
    )
    assert not np.array_equal(
        released_pixels("open_clip shortest bicubic", Preprocess(24))(image), Preprocess(24)(image)
    )


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_every_mode_is_made_rgb_first(mode: str) -> None:
    image = drawing((64, 48), mode)
    for how in ("shortest", "squash", "longest"):
        preprocess = Preprocess(24, how)
        assert np.array_equal(preprocess(image), preprocess(image.convert("RGB")))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_modes_in_the_released_code(mode: str, size: tuple[int, int]) -> None:
    """transformers makes them RGB first as we do; open_clip does so once they are resized."""
    image = drawing(size, mode)
    for which in ("transformers CLIP", "transformers Siglip"):
        preprocess, _ = GOLDEN[which]
        assert np.array_equal(released_pixels(which, preprocess)(image), preprocess(image))
    ours = Preprocess(24)(image)
    theirs = released_pixels("open_clip shortest bicubic", Preprocess(24))
    assert np.array_equal(theirs(image.convert("RGB")), ours)
    if mode == "L":
        assert np.array_equal(theirs(image), ours)
    elif mode == "CMYK":
        assert np.abs(theirs(image).astype(int) - ours).max() <= 60
    if size == (64, 48) and mode != "L":
        assert not np.array_equal(theirs(image), ours)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = drawing((64, 48))
    image = opened(stored, exif=exif)
    turns = {  # what a reader does to rows and columns
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: p[::-1].transpose(1, 0, 2),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: p[:, ::-1].transpose(1, 0, 2),
    }
    upright = Image.fromarray(np.ascontiguousarray(turns[orientation](np.asarray(stored))))
    assert np.array_equal(Preprocess(24)(image), Preprocess(24)(upright))
    lying = np.array_equal(Preprocess(24)(image), Preprocess(24)(stored))
    assert lying == (orientation == 1)


def test_orientation_in_the_released_code() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = drawing((64, 48))
    theirs = released_pixels("open_clip shortest bicubic", Preprocess(24))
    assert np.array_equal(theirs(opened(stored, exif=exif)), theirs(stored))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_their_upper_eight(mode: str) -> None:
    grey = drawing((64, 48), "L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    if mode == "I":
        deep = Image.fromarray(np.asarray(deep).astype(np.int32))
    assert deep.mode == mode
    assert np.array_equal(Preprocess(24)(deep), Preprocess(24)(grey))


def test_sixteen_bits_in_the_released_code() -> None:
    """There 256 and above are white."""
    deep = Image.fromarray(np.asarray(drawing((64, 48), "L")).astype(np.uint16) * 257 + 256)
    assert (released_pixels("open_clip shortest bicubic", Preprocess(24))(deep) == 255).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("size", 24.0),
        ("size", 8193),
        ("resize", "stretch"),
        ("resize_size", 23),
        ("resize_size", 8193),
        ("interpolation", "cubic"),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, NAN)),
        ("std", (0.5, 0.5, 0.0)),
        ("fill", 256),
        ("half", "up"),
    ],
)
def test_impossible_fields_are_said(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        Preprocess(**{"size": 24, key: value})
    assert says(error.value, "Preprocess", key, value)


def test_what_is_fitted_is_not_cut() -> None:
    with pytest.raises(UserError) as error:
        Preprocess(24, "longest", 30)
    assert says(error.value, "resize_size=30", "longest")
