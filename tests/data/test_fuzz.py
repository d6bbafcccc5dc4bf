"""No bytes give anything but a picture, a pair or one clear line; what once did is kept."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import damage
import fuzz
import support
from support import encoded, picture

TESTS = Path(__file__).parent.parent
# decode turns these off for a program; pytest turns them on again
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def fuzzed(folder: Path, kind: str, count: int, seed: int) -> None:
    """Runs the fuzzer as a process of its own: a crash or endless memory shows, too."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    done = subprocess.run(
        [sys.executable, TESTS / "fuzz.py", kind, f"--count={count}", f"--seed={seed}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert f"{count:,} {kind}" in done.stdout and ", 0 broke" in done.stdout
    # damage that is refused, and damage that is survived
    assert "'refused'" in done.stdout and ("'picture'" in done.stdout or "'pairs'" in done.stdout)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("kind", "count"), [("pictures", 300), ("tars", 150)])
def test_damage(tmp_path: Path, kind: str, count: int) -> None:
    fuzzed(tmp_path, kind, count, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("pictures", 10_000), ("tars", 4_000)])
def test_much_damage(tmp_path: Path, kind: str, count: int) -> None:
    fuzzed(tmp_path, kind, count, 1)


@pytest.mark.parametrize("data", damage.regression_cases("pictures-*.bin"))
def test_pictures_that_once_broke_something(data: bytes) -> None:
    assert fuzz.decodes(data)


@pytest.mark.parametrize("data", damage.regression_cases("tars-*.bin"))
def test_tars_that_once_broke_something(data: bytes) -> None:
    assert fuzz.reads(data)


EDGES = [0, 1, 2, 7, 8, 255, 256, 65_500, 65_535, 65_536, 1 << 24, (1 << 31) - 1, (1 << 32) - 1]
LONG = st.sampled_from(EDGES) | st.integers(0, (1 << 32) - 1)
SHORT = st.sampled_from([n for n in EDGES if n < 1 << 16]) | st.integers(0, 65_535)
BYTE = st.integers(0, 255)
SIDE = st.integers(1, 40) | SHORT

TAGS = st.sampled_from([254, *range(256, 260), 262, 266, 273, 274, 277, 278, 279, 284])
MORE_TAGS = st.sampled_from([258, 317, 320, 322, 323, 324, 325, 330, 338, 339, 530, 34_665])


@settings(max_examples=100)
@given(
    st.dictionaries(TAGS | MORE_TAGS, st.tuples(st.integers(0, 13), st.integers(0, 3), LONG)),
    st.integers(1, 20),
    LONG,
)
def test_any_tags_of_a_tiff(
    tags: dict[int, tuple[int, int, int]], side: int, following: int
) -> None:
    sides = dict.fromkeys((256, 257), (4, 1, side))
    assert fuzz.decodes(damage.tiff(sides | tags, bytes(side * side), following))
    assert fuzz.decodes(damage.plain_tiff(side, side, **{f"t{k}": v for k, v in tags.items()}))


CHUNKS = [b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"IDAT", b"IEND"]


@settings(max_examples=100)
@given(
    st.tuples(SIDE, SIDE),
    st.sampled_from([1, 2, 4, 8, 16]) | BYTE,
    st.sampled_from([0, 2, 3, 4, 6]) | BYTE,
    st.lists(st.tuples(st.sampled_from(CHUNKS), st.binary(max_size=40)), max_size=4),
    st.integers(0, 20_000),
)
def test_any_header_and_chunks_of_a_png(
    size: tuple[int, int], depth: int, color: int, chunks: list[tuple[bytes, bytes]], rows: int
) -> None:
    between = [damage.chunk(*chunk) for chunk in chunks]
    assert fuzz.decodes(damage.png(size, bytes(rows), *between, depth=depth, color=color))


JPEGS = [
    encoded(picture(1, (33, 21), mode), "jpeg", progressive=progressive)
    for mode in ("RGB", "L", "CMYK")
    for progressive in (False, True)
]
HEIGHT = st.integers(0, 300) | st.just(65_535)
COMPONENT = st.tuples(BYTE, st.sampled_from([0x11, 0x21, 0x22, 0x41, 0x44]) | BYTE, BYTE)


@settings(max_examples=100)
@given(
    st.sampled_from(JPEGS),
    st.tuples(HEIGHT, HEIGHT) | st.just((21, 33)),
    st.none() | st.lists(COMPONENT, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0xC0, 0xFE), st.binary(max_size=30)), max_size=3),
)
def test_any_frame_and_segments_of_a_jpeg(
    data: bytes,
    size: tuple[int, int],
    components: list[tuple[int, int, int]] | None,
    segments: list[tuple[int, bytes]],
) -> None:
    data = damage.frame(data, 5, struct.pack(">HH", *size))
    if components is not None:
        parts = b"".join(map(bytes, components))
        data = damage.frame(data, 9, bytes([len(components)]) + parts)
    assert fuzz.decodes(
        damage.after_start(data, *(damage.segment(*segment) for segment in segments))
    )


NAMES = st.sampled_from([b"0.png", b"0.json", b"0.txt", b"1.png", b"1.txt", b"../x.png", b""])
FIELD = st.integers(0, 2000) | st.binary(min_size=12, max_size=12) | st.sampled_from([1 << 32])
MEMBER = st.builds(
    lambda name, content, size, kind, link: (
        damage.header(name, len(content) if size is None else size, kind, link)
        + damage.padded(content)
    ),
    NAMES | st.binary(max_size=100),
    st.binary(max_size=700),
    st.none() | FIELD,
    st.sampled_from([bytes([kind]) for kind in b"0123456789LKxgXSVMADIN\0"]),
    NAMES,
)


@settings(max_examples=60)
@given(st.lists(MEMBER, max_size=6))
def test_any_members_of_a_tar(members: list[bytes]) -> None:
    start = damage.member(b"first.png", b"picture") + damage.member(b"first.txt", b"text")
    assert fuzz.reads(start + b"".join(members)) == "pairs"
    assert fuzz.reads(b"".join(members) + bytes(1024))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_columns_whose_names_are_no_text(name: str, tmp_path: Path) -> None:
    tables = pytest.importorskip("clip_jax.data.sources.tables.source")
    path = tmp_path / name
    line = b'{"image": "1.png", "capt\x81\xd3ion": "a"}\n'
    path.write_bytes(line if name == "x.jsonl" else b"image,capt\x81\xd3ion\n1.png,a\n")
    support.refused(lambda: tables.TableSource(str(path)), path, "UTF-8")


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    tables = pytest.importorskip("clip_jax.data.sources.tables.source")
    path = tmp_path / "x.jsonl"
    path.write_text('{"image": "a\\u0000.png"}\n{"image": "%s.png"}\n' % ("x" * 5000))
    source = tables.TableSource(str(path))
    for i in range(2):
        support.refused(lambda i=i: source[i], path if i == 0 else "xxx")
