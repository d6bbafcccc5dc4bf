"""What strangers put where a picture or its text should be: used as it is, or one clear line."""

from __future__ import annotations

import functools
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

import damage
from clip_jax.data import captions
from clip_jax.data.example import MAX_TEXT, PairError, parse_text
from clip_jax.data.images import decoding, limits
from clip_jax.data.images.decoding import decode
from support import encoded, picture, says

# decode turns these off for a program; pytest turns them on again
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

NAME = "a.tar:0007.jpg"
Size = tuple[int, int]


def refused(data: bytes, *words: str, least: int = 0) -> None:
    with pytest.raises(PairError) as error:
        decode(data, NAME, least)
    assert says(error.value, NAME, *words)
    assert error.value.reason == "picture"
    assert "0x" not in str(error.value)


def flat(color: str, size: Size = (16, 8), mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", size, color).convert(mode)


def apart(data: bytes, color: Any) -> int:
    """How far a picture of one colour is from that colour."""
    rgb = Image.new("RGB", (1, 1), color).getpixel((0, 0))
    return int(np.abs(np.asarray(decode(data, NAME)).astype(int) - np.array(rgb)).max())


def animated(kind: str, **options: Any) -> bytes:
    """A red picture, then a blue one."""
    return encoded(flat("red"), kind, save_all=True, append_images=[flat("blue")], **options)


JPEG = encoded(picture(4, (40, 24)), "jpeg")
WHOLE = {
    "jpeg": JPEG,
    "progressive": encoded(picture(4, (40, 24)), "jpeg", progressive=True),
    "png": encoded(picture(4, (40, 24))),
    "webp": encoded(picture(4, (40, 24)), "webp"),
    "gif": encoded(picture(4, (40, 24)), "gif"),
    "bmp": encoded(picture(4, (40, 24)), "bmp"),
    "tiff": encoded(picture(4, (40, 24)), "tiff"),
    "lzw": encoded(picture(4, (40, 24)), "tiff", compression="tiff_lzw"),
    "ppm": encoded(picture(4, (40, 24)), "ppm"),
    "jpeg2000": encoded(picture(4, (40, 24)), "jpeg2000"),
    "avif": encoded(picture(4, (40, 24)), "avif"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_picture_is_refused_or_complete(kind: str) -> None:
    data = WHOLE[kind]
    full = np.asarray(decode(data, NAME))
    cuts = {*range(0, 64), *range(0, len(data), max(1, len(data) // 60)), *range(-40, 0)}
    refusals = 0
    for cut in sorted(at % len(data) for at in cuts):
        try:
            picture = decode(data[:cut], NAME)
        except PairError as error:
            assert says(error, NAME) and error.reason == "picture"
            refusals += 1
        else:
            np.testing.assert_array_equal(np.asarray(picture), full, err_msg=f"cut at {cut}")
    assert refusals > 60


def claims() -> dict[str, bytes]:
    """Few bytes that say that they are many pixels, or would take them."""
    dark, rows = bytes(60_000), damage.zeros(40 << 20)
    gif, bmp, webp = (bytearray(encoded(flat("red"), kind)) for kind in ("gif", "bmp", "webp"))
    gif[6:10] = b"\xff" * 4
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    j2k = bytearray(encoded(flat("red"), "jpeg2000", no_jp2=True))
    j2k[8:16] = struct.pack(">II", 60_000, 60_000)
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 2) + b"\xff\x3f\0" * 2
    square = dict.fromkeys((256, 257), (4, 1, 60_000))
    return {
        "jpeg": damage.frame(JPEG, 5, b"\xff" * 4),
        "progressive jpeg": damage.many_scans((65_500, 65_500), 1)[:2000],
        "png": damage.png((50_000, 50_000), b""),
        "png with its rows": b"\x89PNG\r\n\x1a\n"
        + damage.chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
        + damage.chunk(b"IDAT", rows),
        "largest png": damage.png((2**31 - 1, 2**31 - 1), b""),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "webp": b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas + bytes(webp[12:]),
        "ppm": b"P6 65535 65535 255\n" + dark,
        "tiff": damage.tiff(square | {258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8)}, dark),
        "jpeg2000": bytes(j2k),
    }


BOMBS = claims()


@pytest.mark.parametrize("kind", BOMBS)
def test_a_few_bytes_that_say_they_are_gigabytes_are_refused(kind: str) -> None:
    refused(BOMBS[kind])
    refused(BOMBS[kind], least=200)


@functools.cache
def inflating() -> dict[str, bytes]:
    """Small pictures beside which there is much more than a picture."""
    much = damage.zeros(150 << 20)
    row = b"\0" + b"\x80" * 30
    plain = damage.png((10, 10), row * 10)
    text = damage.chunk(b"zTXt", b"k\0\0" + much)
    header = plain.index(b"IDAT") - 4
    excess = plain[:header] + damage.chunk(b"IDAT", zlib.compress(row * 10 + bytes(50 << 20)))
    return {
        "zTXt": damage.png((10, 10), row * 10, text),
        "iTXt": damage.png((10, 10), row * 10, damage.chunk(b"iTXt", b"k\0\1\0\0\0" + much)),
        "iCCP": damage.png((10, 10), row * 10, damage.chunk(b"iCCP", b"k\0\0" + much)),
        "hundreds of zTXt": damage.png(
            (10, 10), row * 10, *[damage.chunk(b"zTXt", b"k\0\0" + damage.zeros(1 << 20))] * 100
        ),
        "zTXt at the end": plain[:-12] + text + plain[-12:],
        "excess rows": excess + damage.chunk(b"IEND", b""),
        "jpeg with megabytes of exif": damage.after_start(
            JPEG, *[damage.segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 100
        ),
        "gif with a megabyte of comment": WHOLE["gif"][:-1]
        + b"\x21\xfe"
        + (b"\xff" + bytes(255)) * 4096
        + b"\0;",
    }


MEASURED = """
import os, resource
import damage, test_hostile
from clip_jax.data import captions
from clip_jax.data.images.decoding import decode
from clip_jax.errors import UserError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

for kind in ("jpeg", "png", "webp", "avif"):
    decode(test_hostile.WHOLE[kind], "x")
for kind, data in {**test_hostile.BOMBS, **test_hostile.inflating(), **test_hostile.TRICKS}.items():
    before = peak()
    if not os.fork():
        try:
            decode(data, kind)
        except UserError:
            pass
        if peak() - before > 100:
            os.write(1, f"{kind}: {peak() - before} MiB".encode())
        os._exit(0)
    if os.wait()[1]:
        print(kind, "ends the process", flush=True)
"""


def test_bombs_take_no_memory_print_nothing_and_write_nothing(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent.parent, here.parent)))
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", MEASURED],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@functools.cache
def slow() -> dict[str, bytes]:
    """Megabytes of headers that Pillow would go through for minutes, or square the time of."""
    count = 300_000
    strips = dict.fromkeys((273, 279), (4, count, 8 + 64))
    tags = {256: (4, 1, 1), 257: (4, 1, count), 258: (3, 1, 8), 262: (3, 1, 1), 278: (4, 1, 1)}
    row = bytes(14)
    return {
        "tiff": damage.tiff(tags | strips, bytes(64) + struct.pack("<I", 8) * count),
        "png of chunks": damage.png((2, 2), row, damage.chunk(b"abCd", b"") * count),
        "png of parts": damage.png((2, 2), row, damage.chunk(b"IDAT", b"") * count),
        "jpeg of segments": damage.after_start(JPEG, damage.segment(0xE5, b"") * count),
        "jpeg of fill": damage.after_start(JPEG, b"\xff" * count),
        "jpeg of exif": damage.after_start(
            JPEG, damage.segment(0xE1, b"Exif\0\0" + bytes(9)) * 101
        ),
        "gif of comments": WHOLE["gif"].replace(b",", b"\x21\xfe\1a\0" * count + b",", 1),
        "jp2 of boxes": WHOLE["jpeg2000"][:12] + b"\0\0\0\x08free" * count,
        "ppm of spaces": b"P6 " + b" " * count + b"2 2 255\n" + bytes(12),
        "ppm of letters": b"P2 2 2 255 1 1 1 1 ",
    }


@pytest.mark.parametrize("kind", slow())
def test_headers_without_an_end_are_refused(kind: str) -> None:
    refused(slow()[kind], "too many parts")


def test_large_files_are_read_in_few_parts() -> None:
    image = picture(1, (1500, 1000))
    for kind, options in (
        ("png", {"compress_level": 1}),
        ("tiff", {"strip_size": 1}),
        ("bmp", {}),
        ("jpeg", {"quality": 100, "progressive": True}),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits.File, "_left", 3_000)
            assert decode(encoded(image, kind, **options), NAME).size == image.size


def test_huge_pictures_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    was_locked, plain = [], decoding.to_rgb

    def to_rgb(image: Image.Image) -> Image.Image:
        was_locked.append(decoding._HUGE_LOCK.locked())
        return plain(image)

    monkeypatch.setattr(decoding, "to_rgb", to_rgb)
    monkeypatch.setattr(decoding, "_HUGE", 40 * 24)
    large = picture(0, (80, 48))
    for data, least in (
        (WHOLE["png"], 0),
        (encoded(large), 0),
        (encoded(large, "jpeg"), 0),
        (encoded(large, "jpeg"), 24),  # read at a half: in little memory
        (encoded(large, "jpeg", progressive=True), 24),
    ):
        decode(data, NAME, least)
    assert was_locked == [False, True, True, False, True]
    refused(encoded(large)[:-900])
    assert not decoding._HUGE_LOCK.locked()


def exif(*entries: bytes, following: int = 0) -> bytes:
    body = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following)
    return b"Exif\0\0II*\0\x08\0\0\0" + body


def tricks() -> dict[str, bytes]:
    """Small pictures that lie about themselves."""
    tag = struct.Struct("<HHII").pack
    around = exif(tag(0x8769, 4, 1, 8), tag(0x8825, 4, 1, 8), following=8)
    entries = struct.pack(">4sI", b"MM\0*", 8) + struct.pack(
        ">HHHI4s", 2, 0xB001, 4, 1, b"\xff" * 4
    )
    webp = bytearray(animated("webp"))
    webp[24:30] = struct.pack("<I", 13_055)[:3] * 2
    mpf = b"MPF\0" + entries + struct.pack(">HHII", 0xB002, 7, 0xFFFFFFF0, 8) + bytes(4)
    files = {
        "exif turned to 9": damage.after_start(JPEG, damage.segment(0xE1, exif(tag(274, 3, 1, 9)))),
        "exif turned to 0": damage.after_start(JPEG, damage.segment(0xE1, exif(tag(274, 3, 1, 0)))),
        "exif turned by text": damage.after_start(
            JPEG, damage.segment(0xE1, exif(tag(274, 2, 4, 0x36363636)))
        ),
        "exif turned by millions": damage.after_start(
            JPEG, damage.segment(0xE1, exif(tag(274, 3, 0xFFFFFFF, 8)))
        ),
        "exif in itself": damage.after_start(JPEG, damage.segment(0xE1, around)),
        "exif of gigabytes": damage.after_start(
            JPEG, damage.segment(0xE1, exif(*(tag(n, 2, 0xFFFFFFFF, 8) for n in range(99))))
        ),
        "an mpo of four billion": damage.after_start(JPEG, damage.segment(0xE2, mpf)),
        "wide samples": damage.frame(JPEG, 11, b"\x41"),
        "three to two": damage.frame(damage.frame(JPEG, 11, b"\x31"), 14, b"\x21"),
        "no samples": damage.frame(JPEG, 11, b"\x00"),
        "sixteen samples": damage.frame(JPEG, 11, b"\xff"),
        "no height": damage.frame(JPEG, 5, b"\0\0"),
        "five components": damage.frame(JPEG, 9, b"\5"),
        "no table": damage.frame(JPEG, 12, b"\3"),
        "twelve bits": damage.frame(JPEG, 4, b"\x0c"),
        "lossless": JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1),
        "arithmetic": JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1),
        "progressive by name": JPEG.replace(b"\xff\xc0", b"\xff\xc2", 1),
        "one scan": damage.many_scans((640, 480), 1),
        "sixty scans": damage.many_scans((640, 480), 60),
        "thousands of scans": damage.many_scans((9_000, 9_000), 5_000),
        "a tiff of no rows": damage.plain_tiff(8, 8, t278=(4, 1, 0)),
        "a tiff far away": damage.plain_tiff(8, 8, t273=(4, 1, 0xFFFFFFF0)),
        "a tiff of strips": damage.plain_tiff(8, 8, t273=(4, 0xFFFFFFF, 8)),
        "a tiff of 65,535 samples": damage.plain_tiff(8, 8, t277=(3, 1, 65_535)),
        "a tiff of 65,535 bits": damage.plain_tiff(8, 8, t258=(3, 1, 65_535)),
        "a tiff of a tile": damage.plain_tiff(
            8, 8, t322=(4, 1, 60_000), t323=(4, 1, 60_000), t324=(4, 1, 8), t325=(4, 1, 64)
        ),
        "a tiff compressed by nothing": damage.plain_tiff(8, 8, t259=(3, 1, 31_337)),
        "a tiff of fax": damage.plain_tiff(8, 8, t259=(3, 1, 4), t258=(3, 1, 1)),
        "a tiff of jpeg": damage.plain_tiff(8, 8, t259=(3, 1, 7)),
        "a tiff in itself": damage.plain_tiff(8, 8, t330=(4, 1, 72)),
        "a tiff after itself": damage.tiff({256: (4, 1, 8), 257: (4, 1, 8)}, bytes(64), 72),
        "a webp of 170 megapixels": bytes(webp),
        "a deflated tile of gigabytes": damage.tiff(
            {
                **{256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 259: (3, 1, 8)},
                **{262: (3, 1, 1), 277: (3, 1, 1), 322: (4, 1, 32_768), 323: (4, 1, 32_768)},
                **{324: (4, 1, 8), 325: (4, 1, len(rows := damage.zeros(150 << 20)))},
            },
            rows,
        ),
    }
    j2k = bytearray(encoded(flat("red", (64, 64)), "jpeg2000", no_jp2=True))
    tiny = bytes(j2k[:24]) + struct.pack(">II", 1, 1) + bytes(j2k[32:])
    wide = bytes(j2k[:8]) + struct.pack(">II", 3_000, 3_000) + bytes(j2k[16:])
    files["a jpeg2000 of small tiles"] = tiny
    files["a jpeg2000 of one large tile"] = wide
    files["a jpeg2000 of nine million tiles"] = wide[:24] + struct.pack(">II", 1, 1) + wide[32:]
    files["a jpeg2000 of ten thousand tiles"] = wide[:24] + struct.pack(">II", 30, 30) + wide[32:]
    jp2 = encoded(flat("red"), "jpeg2000")
    at = jp2.index(b"\xff\x4f\xff\x51")
    length = struct.unpack(">H", jp2[at + 4 : at + 6])[0]
    many = struct.pack(">H", 38 + 3 * 16_384) + jp2[at + 6 : at + 40]
    many += struct.pack(">H", 16_384) + b"\7\1\1" * 16_384
    files["a jpeg2000 of 16,384 components"] = jp2[: at + 4] + many + jp2[at + 4 + length :]
    large = struct.pack(">II", 60_000, 60_000)
    files["a jp2 whose box says less"] = jp2[: at + 8] + large + jp2[at + 16 :]
    avif = encoded(flat("red", (1000, 1000)), "avif", speed=10)
    box = avif.index(b"ispe") + 8
    files["an avif whose box says less"] = avif[:box] + struct.pack(">II", 9, 9) + avif[box + 8 :]
    files["an avif whose box says more"] = (
        avif[:box] + struct.pack(">II", 30_000, 30_000) + avif[box + 8 :]
    )
    return files


TRICKS = tricks()
# what of them is a picture all the same; the others are refused
PICTURES = {
    **dict.fromkeys([kind for kind in TRICKS if kind.startswith("exif ")], (40, 24)),
    **dict.fromkeys(("an mpo of four billion", "wide samples", "arithmetic"), (40, 24)),
    **dict.fromkeys(("one scan", "sixty scans"), (640, 480)),
    "a tiff in itself": (8, 8),
    "a jpeg2000 of small tiles": (64, 64),
    "a jpeg2000 of one large tile": (3000, 3000),
    "a jpeg2000 of ten thousand tiles": (3000, 3000),
    "an avif whose box says less": (9, 9),
}


@pytest.mark.parametrize("kind", TRICKS)
def test_pictures_that_lie(kind: str) -> None:
    if kind in PICTURES:
        assert decode(TRICKS[kind], NAME).size == PICTURES[kind]
    else:
        refused(TRICKS[kind])
        refused(TRICKS[kind], least=4)


@pytest.mark.parametrize("kind", inflating())
def test_much_beside_a_picture(kind: str) -> None:
    data = inflating()[kind]
    if any(word in kind for word in ("zTXt", "iTXt", "iCCP")):
        refused(data)
    elif "excess" in kind:
        assert apart(data, (128, 128, 128)) == 0
    else:
        picture = decode(WHOLE[kind.partition(" ")[0]], NAME)
        np.testing.assert_array_equal(np.asarray(decode(data, NAME)), np.asarray(picture))


@pytest.mark.parametrize("turn", [0, 9, 65_535])
def test_exif_that_turns_a_picture_nowhere_leaves_it(turn: int) -> None:
    entry = struct.pack("<HHII", 274, 3, 1, turn)
    data = damage.after_start(JPEG, damage.segment(0xE1, exif(entry)))
    np.testing.assert_array_equal(np.asarray(decode(data, NAME)), np.asarray(decode(JPEG, NAME)))


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><title>404 Not Found</title>",
        b'{"error": "no such picture"}',
        damage.member(b"0.jpg", JPEG) + bytes(1024),
        b"PK\3\4" + JPEG,
        b"%PDF-1.7\n" + JPEG,
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"8BPS\0\1" + bytes(99),
        b"\0\0\1\0" + encoded(flat("red")),
        b"\x1f\x8b\x08" + bytes(99),
        bytes(1000),
        b"\xff" * 1000,
        b"\xff\xd8" * 1000,
        b"\xff\xd8\xff\xd9",
    ],
)
def test_other_files_with_a_picture_suffix_are_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("kind", ["png", "webp", "gif"])
def test_another_format_named_jpeg_is_decoded(kind: str) -> None:
    assert decode(WHOLE[kind], "x.jpg").size == (40, 24)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff", "avif", "mpo"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    options: dict[str, Any] = {"quality": 95} if kind in ("webp", "avif", "mpo") else {}
    data = animated(kind, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert decode(data, NAME).size == (16, 8)
    assert apart(data, "red") <= 8


COLORS = ["red", "lime", "blue", "white", "black", (200, 120, 40)]


def inks(color: Any) -> Image.Image:
    """A colour as cyan, magenta, yellow and a third of the black that could stand in it."""
    rgb = np.array(Image.new("RGB", (1, 1), color).getpixel((0, 0)), float)
    black = (255 - rgb.max()) / 3
    shares = [*(255 * (1 - rgb / (255 - black))), black]
    return Image.new("CMYK", (16, 16), tuple(round(value) for value in shares))


@pytest.mark.parametrize("color", COLORS)
def test_cmyk_shows_its_colours(color: Any) -> None:
    adobe = encoded(inks(color), "jpeg", quality=100)
    marker = adobe.index(b"\xff\xee\0\x0eAdobe")
    assert apart(adobe, color) <= 4
    # without Adobe's marker the inks are stored as they are
    stored = encoded(ImageChops.invert(inks(color)), "jpeg", quality=100)
    assert apart(stored[:marker] + stored[marker + 16 :], color) <= 4
    # with it they may be stored as YCbCr and black
    cyan, magenta, yellow, black = inks(color).getpixel((0, 0))  # type: ignore[misc]
    ycc = Image.new("RGB", (16, 16), (cyan, magenta, yellow)).convert("YCbCr").getpixel((0, 0))
    planes = tuple(255 - value for value in (*ycc, 255 - black))  # type: ignore[misc]
    ycck = bytearray(encoded(Image.new("CMYK", (16, 16), planes), "jpeg", quality=100))
    ycck[marker + 15] = 2
    assert apart(bytes(ycck), color) <= 4


def test_threads_of_pixels_and_single_ones() -> None:
    for size in ((65_500, 1), (1, 65_500), (1, 1), (1, 2)):
        for kind in ("jpeg", "png"):
            assert decode(encoded(flat("red", size), kind), NAME).size == size


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


DEEP = b'{"caption":' * 300_000


@pytest.mark.parametrize(
    ("raw", "end", "expected"),
    [
        (b"\xff\xfea\0", ".txt", None),
        (b"\xc3", ".txt", None),
        (b"\xed\xa0\x80", ".txt", None),
        (b"\xef\xbb\xbf a cat ", ".txt", {"caption": "a cat"}),
        (b"a\0cat", ".txt", {"caption": "a\0cat"}),
        (b"x" * MAX_TEXT, ".txt", {"caption": "x" * MAX_TEXT}),
        (b"x" * (MAX_TEXT + 1), ".txt", None),
        (b'{"caption": "\xff"}', ".json", None),
        (b'{"caption": "a\0b"}', ".json", None),
        (b'{"caption": "a\\u0000b"}', ".json", {"caption": "a\0b"}),
        (b'{"caption": "\\ud800"}', ".json", {"caption": "\ud800"}),
        (b'{"caption": "a", "caption": "b"}', ".json", {"caption": "b"}),
        (b'{"n": %s}' % (b"9" * 5000), ".json", None),
        (b'{"n": 1e999}', ".json", {"n": float("inf")}),
        (DEEP, ".json", None),
        (b"[" * 1_000_000, ".json", None),
        (b"{" + b'"a":{' * 900 + b"}" * 901, ".json", ...),
        (b'{"a": "' + b"x" * (100 << 20) + b'"}', ".json", None),
        (b"null", ".json", None),
        (b"NaN", ".json", None),
        (b"", ".json", None),
        (b" 7\n", ".cls", {"cls": 7}),
        (b"seven", ".cls", None),
        (b"9" * 10_000, ".cls", None),
        (saved(np.array([0, 1, 1], np.uint8)), ".npy", {"npy": [0, 1, 1]}),
        (saved(np.array(2.5)), ".npy", {"npy": [2.5]}),
        (saved(np.array(["a"])), ".npy", None),
        (saved(np.array([{}], object)), ".npy", None),
        (saved(np.zeros(9))[:-3], ".npy", None),
        (saved(np.zeros(9)).replace(b"(9,)", b"(9e9,)"), ".npy", None),
        (saved(np.zeros(9)).replace(b"(9,), }  ", b"(9**9,)}  "), ".npy", None),
        (saved(np.zeros(9)).replace(b"(9,), }      ", b"(999999,), } "), ".npy", None),
        (b"\x93NUMPY", ".npy", None),
        (b"PK\x03\x04", ".npy", None),
        (b"\x80\x04K\x01.", ".npy", None),
        (b"", ".npy", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_text(raw: bytes, end: str, expected: Any) -> None:
    if expected is not None:
        fields = parse_text(raw, NAME, end)
        assert expected in (..., fields)
        return
    with pytest.raises(PairError) as error:
        parse_text(raw, NAME, end)
    assert says(error.value, NAME)
    assert error.value.reason == "text"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (float("nan"), None),
        ({"en": "a cat"}, None),
        (b"a cat", None),
        ([{"en": "a cat"}, ["a"]], None),
        ([], None),
        ("", None),
        (" \n\t\u3000", None),
        ("x" * 1_000_001, None),
        ("x" * 1_000_000, "x" * 1_000_000),
        (3, "3"),
        (2.5, "2.5"),
        (True, "True"),
        (float("inf"), "inf"),
        ([None, float("nan"), "a cat", [], {}], "a cat"),
        ("\ud800 a\0", "\ud800 a\0"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_captions_of_unusual_values(value: Any, expected: str | None) -> None:
    def make_caption() -> str:
        text = {"caption": value, "title": "other"}
        return captions.sample(["{caption}"], text, NAME, np.random.default_rng(0))

    if expected is not None:
        assert make_caption() == expected
        return
    with pytest.raises(PairError) as error:
        make_caption()
    assert says(error.value, NAME)
    assert error.value.reason == "caption"
