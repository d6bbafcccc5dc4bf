"""A picture in any form a program holds one: the same pixels by every way, or one line."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from clip_jax.data.images import decoding
from clip_jax.data.images.decoding import decode, eight_bits, to_rgb
from clip_jax.data.images.pictures import picture as taken
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from support import encoded, picture, refused, says

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("jpeg", {"quality": 100, "subsampling": 0}),
    "png": ("png", {}),
    "webp": ("webp", {"lossless": True}),
    "tiff": ("tiff", {}),
    "tiff lzw": ("tiff", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_turned_once_by_every_way(
    kind: str, orientation: int, tmp_path: pathlib.Path
) -> None:
    stored = picture(5, (6, 4)).resize((48, 32), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    form, options = KINDS[kind]
    data = encoded(stored, form, exif=exif, **options)
    file = tmp_path / "x.bin"
    file.write_bytes(data)
    turn = TURNS[orientation]
    upright = stored if turn is None else stored.transpose(turn)

    def open_image() -> Image.Image:
        return Image.open(io.BytesIO(data))

    loaded = open_image()
    loaded.load()
    ways = {
        "file": str(file),
        "path": file,
        "bytes": data,
        "open file": io.BytesIO(data),
        "PIL": open_image(),
        "PIL, loaded": loaded,
        "PIL, converted": open_image().convert("RGB"),
        "PIL, turned by its owner": ImageOps.exif_transpose(open_image()),
        "decoded": decode(data, "x"),
        "decoded twice": to_rgb(to_rgb(decode(data, "x"))),
        "training": Image.fromarray(decoding.Decoder()(data, "x")),
        "array": np.asarray(decode(data, "x")),
    }
    preprocess = Preprocess(16)
    expected = preprocess(upright).astype(int)
    pixels_by_way = {name: preprocess(spelling) for name, spelling in ways.items()}
    for name, pixels in pixels_by_way.items():
        assert np.abs(pixels - expected).max() <= (3 if form == "jpeg" else 0), name
        assert np.array_equal(pixels, pixels_by_way["file"]), name


def test_an_orientation_in_xmp_is_turned_once() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><a tiff:Orientation="6"/></rdf:RDF>'
    data = encoded(picture(1, (40, 20)), "jpeg", xmp=xmp)
    once = decode(data, "x")
    assert once.size == to_rgb(once).size == (20, 40)


RAMP = np.arange(256)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(21, dtype=np.uint16), range(21)),  # a mask of classes
        (np.arange(256, dtype=np.uint16), range(256)),
        (np.arange(256, dtype=np.int32), range(256)),
        ((RAMP * 16 + 7).astype(np.uint16), range(256)),  # a camera's 12 bits
        ((RAMP * 16 + 7).astype(np.int32), range(256)),
        ((RAMP * 257).astype(np.uint16), range(256)),
        ((RAMP * 257).astype(np.int32), range(256)),
        ((RAMP * 1_000_000).astype(np.int32), range(256)),  # more than 16 bits
        (np.array([-1000, 0, 16, 4095], np.int16), [0, 0, 1, 255]),
        ((RAMP / 255).astype(np.float32), range(256)),
        (RAMP.astype(np.float32), range(256)),
        ((RAMP * 257).astype(np.float32), range(256)),
        (np.array([np.nan, -np.inf, np.inf, 1.0, 0.0], np.float32), [0, 0, 255, 255, 0]),
        (np.zeros(5, np.int32), [0] * 5),
        (np.full(5, np.nan, np.float32), [0] * 5),
    ],
)
def test_wide_numbers_become_eight_bits_by_their_range(values: Any, expected: Any) -> None:
    assert eight_bits(values).tolist() == list(expected)


@given(arrays.arrays(st.sampled_from([np.uint16, np.int32, np.float32]), st.integers(1, 9)))
def test_the_order_of_brightness_stays(values: np.ndarray) -> None:
    grey = eight_bits(values)
    assert grey.dtype == np.uint8
    order = np.argsort(np.nan_to_num(values.astype(np.float64), nan=-np.inf), kind="stable")
    assert (np.diff(grey[order].astype(int)) >= 0).all()


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize(("factor", "depth"), [(1, 8), (16, 12), (257, 16)])
def test_files_of_sixteen_bits(kind: str, factor: int, depth: int) -> None:
    grey = np.array(picture(1, (8, 8), "L"))
    grey[0, 0] = 255
    wide = Image.fromarray(grey.astype(np.uint16) * factor)
    assert wide.mode == "I;16"
    assert np.array_equal(np.asarray(decode(encoded(wide, kind), "x"))[..., 0], grey)


@pytest.mark.parametrize("values", [np.uint16, np.int32, np.float32])
def test_a_tiff_of_any_type(values: Any) -> None:
    grey = np.array(picture(1, (8, 8), "L"))
    decoded = decode(encoded(Image.fromarray(grey.astype(values)), "tiff"), "x")
    assert np.array_equal(np.asarray(decoded)[..., 0], grey)


PIXELS = np.asarray(picture(3, (9, 7)))


@pytest.mark.parametrize(
    "values",
    [
        PIXELS,
        PIXELS.astype(np.int32),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.uint16),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.float64) / 255,
        np.dstack([PIXELS, np.full((7, 9), 255, np.uint8)]),
    ],
)
def test_arrays_of_pixels(values: np.ndarray) -> None:
    assert np.array_equal(np.asarray(taken(values)), PIXELS)
    torch = pytest.importorskip("torch")
    if values.dtype != np.uint16:
        assert np.array_equal(np.asarray(taken(torch.from_numpy(values.copy()))), PIXELS)


def test_grey_and_black_and_white_arrays() -> None:
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(np.asarray(taken(array)), grey[..., None].repeat(3, 2))
    assert np.asarray(taken(np.eye(4, dtype=bool)))[0, :2, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (PIXELS.transpose(2, 0, 1), ["channels first", "transpose(1, 2, 0)"]),
        (PIXELS[None], ["a batch"]),
        (PIXELS[..., :2], ["2 channels"]),
        (PIXELS[:0], ["(0, 9, 3)"]),
        (PIXELS.astype(np.float32) / 100 - 1, ["normalised already", "encode_image"]),
        (PIXELS.astype(np.float32) * 300, ["0…255"]),
        (PIXELS.astype(int) - 200, ["uint8 in 0…255"]),
        (np.full((4, 4, 3), np.nan), ["no numbers"]),
        (PIXELS.astype(complex), ["complex"]),
        (PIXELS.astype(object), ["object"]),
        (np.array("cat.png"), ["shape ()"]),
        (io.StringIO("text"), ["binary"]),
        (b"no picture", ["given as bytes"]),
        (7, ["int is no image", "a file's name"]),
        (None, ["NoneType is no image"]),
        ({"image": 1}, ["dict is no image"]),
        ("a\0b.png", ["cannot be read"]),
        ("x" * 5000, ["cannot be read"]),
        ("http://127.0.0.1:9/cat.png", ["http://127.0.0.1:9/cat.png"]),
    ],
)
def test_a_value_that_is_not_a_picture_is_a_one_line_error(
    picture: Any, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_jax.io.retries.PATIENCE", 1)
    with pytest.raises(UserError) as error:
        taken(picture)
    assert says(error.value, *words)


def test_a_tensor_that_wants_gradients_says_what_to_do() -> None:
    torch = pytest.importorskip("torch")
    refused(lambda: taken(torch.zeros(4, 4, 3, requires_grad=True)), "detach")


def test_a_closed_or_truncated_pil_picture_is_one_line() -> None:
    cut = Image.open(io.BytesIO(encoded(picture(0, (64, 64)), "jpeg")[:900]))
    refused(lambda: Preprocess(16)(cut), "PIL image")


def test_a_picture_of_no_pixels_is_refused() -> None:
    for size in ((0, 5), (5, 0), (0, 0)):
        refused(lambda size=size: taken(Image.new("RGB", size)), "PIL image", "nothing")
