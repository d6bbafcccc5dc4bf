"""The members that the headers tell of are those that the standard library finds."""

from __future__ import annotations

import io
import tarfile
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.sources import tar_reader
from clip_jax.data.sources.tar_reader import BLOCK, DamageError, Member, members, number

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
KINDS = (*PLAIN, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=12)


def written(entries: list[tuple[str, bytes, int, bool]], form: int) -> bytes:
    """A tar of (name, kind, size, whether its owner's number is too long for octal digits)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, kind, size, long_number in entries:
            info = tarfile.TarInfo(name)
            if kind == tarfile.AREGTYPE and len(name.encode()) > 99:
                kind = tarfile.REGTYPE  # theirs takes it for a folder where it is cut at a slash
            info.type, info.linkname = kind, "elsewhere" * 30
            info.uid = 1 << 40 if long_number and form != tarfile.USTAR_FORMAT else 7
            info.size = size if kind in PLAIN else 0
            if form == tarfile.USTAR_FORMAT:
                info.linkname = "elsewhere"
            tar.addfile(info, io.BytesIO(b"x" * size))
    return file.getvalue()


@given(
    st.lists(
        st.tuples(
            st.builds(lambda a, b, n: "/".join([a] * n + [b]), NAMES, NAMES, st.integers(0, 30)),
            st.sampled_from(KINDS),
            st.integers(0, 1500),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.sampled_from(FORMATS),
)
def test_they_are_the_members_of_the_standard_library(
    entries: list[tuple[str, bytes, int, bool]], form: int
) -> None:
    if form == tarfile.USTAR_FORMAT:  # which has no room for more
        cut = [name.encode()[:90].decode(errors="ignore").rstrip("/") for name, *_ in entries]
        entries = [(name or "x", *rest) for name, (_, *rest) in zip(cut, entries, strict=True)]
    raw = written(entries, form)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        expected = [
            Member(m.name, m.offset_data, m.size, 0 if m.isreg() else tar_reader.FAULTS.index(why))
            for m in tar
            if not m.isdir()
            for why in ["is a link" if m.issym() or m.islnk() else "is no plain file"]
        ]
    assert list(members(io.BytesIO(raw), len(raw))) == expected


@given(st.integers(-(256**11), 256**11 - 1))
def test_numbers_of_any_size(value: int) -> None:
    if value < 0 or value >= 8**11:
        field = bytes([0xFF if value < 0 else 0x80]) + (value % 256**11).to_bytes(11, "big")
    else:
        field = b"%011o\0" % value
    assert number(field) == value


@pytest.mark.parametrize("field", [b"12a        ", b"-1         \0", b"1 2", b"\x81" + b"1" * 11])
def test_invalid_numbers_are_refused(field: bytes) -> None:
    with pytest.raises(DamageError):
        number(field)


def test_any_number_of_members_takes_the_same_memory() -> None:
    member = written([("a.png", tarfile.REGTYPE, 10, False)], tarfile.USTAR_FORMAT)[: 2 * BLOCK]

    def peak(count: int) -> int:
        file = io.BytesIO(member * count + bytes(2 * BLOCK))
        tracemalloc.start()
        assert sum(1 for _ in members(file, len(file.getbuffer()))) == count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(4000) < peak(40) + 50_000


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_long_header_is_not_read(kind: bytes) -> None:
    def reading(size: int) -> list[Member]:
        info = tarfile.TarInfo("long")
        info.type, info.size = kind, size
        content = (b"30 mtime=".ljust(29, b"1") + b"\n") * (size // 30)
        content = content.ljust(size, b"\0")
        rest = written([("a.png", tarfile.REGTYPE, 10, False)], tarfile.USTAR_FORMAT)
        raw = info.tobuf() + content.ljust(-(-size // BLOCK) * BLOCK, b"\0") + rest
        return list(members(io.BytesIO(raw), len(raw)))

    assert len(reading(tar_reader.MAX_HEADER)) == 1
    with pytest.raises(DamageError, match="a header of"):
        reading(tar_reader.MAX_HEADER + 1)
