"""Lists the members of an untrusted tar from its headers, quickly and in little memory.

The standard library's reader keeps all members in memory, reads headers of any length that the
file claims, and loops if a size is negative.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import BinaryIO, NamedTuple

from clip_jax.data.example import MAX_MEMBER

BLOCK = 512
MAX_HEADER = 1 << 20  # bytes of a long name or of PAX records
MAX_NAME = 4096  # bytes
# Why a member cannot be read, by `Member.fault`.
FAULTS = (
    "",
    "is a link",
    "is no plain file",
    "is sparse",
    f"is over {MAX_MEMBER >> 20} MiB",
    "has a negative size",
    "is cut short",
)
_LINK, _OTHER, _SPARSE, _LARGE, _NEGATIVE, _CUT = range(1, len(FAULTS))
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_WITHOUT_DATA = {b"1": _LINK, b"2": _LINK, b"3": _OTHER, b"4": _OTHER, b"6": _OTHER}
_FOLDER = b"5"


class DamageError(ValueError):
    """An error for a tar that cannot be read beyond some place."""


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
      name: the name.
      at: the offset of the content, in bytes.
      size: the size of the content, in bytes.
      fault: the index in `FAULTS` of why it cannot be read; 0 if it can.
    """

    name: str
    at: int
    size: int
    fault: int


def number(field: bytes) -> int:
    """Parses a number in a header: octal digits, or two's complement for numbers that need more.

    Raises:
      DamageError: the field is neither.
    """
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** len(field[1:]) if field[0] == 0xFF else 0)
    if not (digits := _OCTAL.fullmatch(field)):
        raise DamageError(f"no number: {field!r}")
    return int(digits[1] or b"0", 8)


def is_header(block: bytes) -> bool:
    """Returns whether a block has the checksum of a header."""
    try:
        checksum = number(block[148:156])
    except DamageError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(rest)
    signed = unsigned - 256 * sum(byte > 127 for byte in rest)  # as some old writers add
    return checksum in (unsigned, signed)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _records(content: bytes) -> dict[bytes, bytes]:
    """Returns the PAX records of a member, which are lines `LENGTH KEY=VALUE`.

    Raises:
      DamageError: a length is wrong.
    """
    records, at = {}, 0
    while at < len(content) and content[at]:
        digits, _, _ = content[at : at + 20].partition(b" ")
        end = at + int(digits) if digits.isdigit() else at
        if not at + len(digits) + 1 < end <= len(content):
            raise DamageError("PAX records of wrong lengths")
        key, _, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        records[key] = value
        at = end
    return records


def _name(header: bytes) -> bytes:
    name, prefix = (header[a:b].split(b"\0", 1)[0] for a, b in ((0, 100), (345, 500)))
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _decimal(digits: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]{1,20}", digits):
        raise DamageError(f"no number: {digits[:30]!r}")
    return int(digits)


def members(file: BinaryIO, length: int) -> Generator[Member, None, int]:
    """Yields the members of a tar, without folders, and returns where the tar ends.

    Args:
      file: the tar.
      length: the size of the file, in bytes.

    Raises:
      DamageError: the tar is truncated, or something else than a header follows a member. It is
        raised after all members that can be read.
    """
    at, long_name, pax = 0, b"", dict[bytes, bytes]()
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return at
        if len(header) < BLOCK or not is_header(header):
            raise DamageError(f"no end of archive, and no header at byte {at:,}")
        kind, size, at = header[156:157], number(header[124:136]), at + BLOCK
        if kind in b"LKxgX":
            if not 0 <= size <= MAX_HEADER:
                raise DamageError(f"a header of {size:,} bytes before byte {at:,}")
            content = file.read(size)
            if kind == b"L":
                long_name = content.split(b"\0", 1)[0]
            elif kind in b"xX":
                pax = _records(content)
            at += _padded(size)
            continue
        name = pax.get(b"path") or long_name or _name(header)
        if b"size" in pax:
            size = _decimal(pax[b"size"])
        is_sparse = kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax)
        if kind == b"S":
            at += _extensions(file, header)
        long_name, pax = b"", {}
        if kind in (*_WITHOUT_DATA, _FOLDER):
            if kind != _FOLDER:
                yield Member(_text(name), at, 0, _WITHOUT_DATA[kind])
            continue
        is_whole = 0 <= size <= length - at
        if kind != b"\0" or not name.endswith(b"/"):  # a folder, in the oldest tars
            fault = _fault(kind, size, is_whole, is_sparse)
            yield Member(_text(name), at, size if is_whole else 0, fault)
        if not is_whole:
            raise DamageError(f"{_text(name)} {FAULTS[_CUT if size > 0 else _NEGATIVE]}")
        at += _padded(size)


def _text(name: bytes) -> str:
    return name[:MAX_NAME].decode(errors="surrogateescape")


def _fault(kind: bytes, size: int, is_whole: bool, is_sparse: bool) -> int:
    if not is_whole:
        return _CUT if size > 0 else _NEGATIVE
    if is_sparse:
        return _SPARSE
    if kind not in (b"0", b"\0", b"7"):
        return _OTHER
    return _LARGE if size > MAX_MEMBER else 0


def _extensions(file: BinaryIO, header: bytes) -> int:
    """Returns the size in bytes of the further blocks that describe a sparse member's holes."""
    size, has_more = 0, header[482]
    while has_more:
        block = file.read(BLOCK)
        size, has_more = size + BLOCK, block[504] if len(block) == BLOCK else 0
    return size
