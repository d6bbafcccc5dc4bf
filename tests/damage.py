"""Files made wrong on purpose: parts of PNG, JPEG, TIFF and tar, and blind damage to whole ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CASES = Path(__file__).parent / "data" / "cases"
BLOCK = 512


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    sum_of = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sum_of


def png(
    size: tuple[int, int], rows: bytes, *between: bytes, depth: int = 8, color: int = 2
) -> bytes:
    """A PNG with this header, these rows (each a filter byte first) and chunks before them."""
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *between, chunk(b"IDAT", zlib.compress(rows, 9)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """That many zeros compressed by zlib, without all of them in memory at once."""
    squeeze, piece = zlib.compressobj(9), bytes(1 << 20)
    parts = [squeeze.compress(piece) for _ in range(count >> 20)]
    return b"".join((*parts, squeeze.compress(bytes(count & 0xFFFFF)), squeeze.flush()))


def segment(marker: int, content: bytes) -> bytes:
    """A marker of a JPEG with what belongs to it."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def after_start(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments before its own."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def frame(jpeg: bytes, at: int, content: bytes) -> bytes:
    """A JPEG with other bytes in its frame header: 5 height, 7 width, 9 components, 10 the first's.

    Of a component: its id, its sampling (4 bits each way), the number of its table.
    """
    start = next(jpeg.index(m) for m in (b"\xff\xc0", b"\xff\xc2") if m in jpeg) + at
    return jpeg[:start] + content + jpeg[start + len(content) :]


def many_scans(size: tuple[int, int], scans: int) -> bytes:
    """A grey progressive JPEG whose few bytes go through every block that many times."""
    width, height = size
    blocks = -(-width // 8) * -(-height // 8)
    parts = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + b"\1" * 64),
        segment(0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
        # one code of one bit each: no difference; and the end of 16,384 blocks
        segment(0xC4, b"\x00" + b"\1" + bytes(15) + b"\x00"),
        segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\xe0"),
        segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8)),
    ]
    run = bytes(-(-15 * -(-blocks // 16_384) // 8))
    parts += [segment(0xDA, b"\1\1\0\1\x3f\0") + run] * (scans - 1)
    return b"".join((*parts, b"\xff\xd9"))


def tiff(entries: dict[int, tuple[int, int, int]], data: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF: `data` at byte 8, then tags, each a type, a count and a value.

    following: where it says that the next picture's tags stand.
    """
    tags = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    start = 8 + len(data)
    head = struct.pack("<2sHI", b"II", 42, start)
    return head + data + struct.pack("<H", len(entries)) + tags + struct.pack("<I", following)


def plain_tiff(width: int, height: int, **more: tuple[int, int, int]) -> bytes:
    """An uncompressed grey TIFF of zeros; `more` names tags by `t258=…`."""
    pixels = bytes(min(width * height, 1 << 16))
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, len(pixels)),
    }
    return tiff(entries | {int(k[1:]): v for k, v in more.items()}, pixels)


def header(
    name: bytes,
    size: int | bytes,
    kind: bytes = b"0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    rest: bytes = b"",
) -> bytes:
    """The header of a tar's member; `size` as a number or as its 12 bytes, `rest` from byte 345."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    ids = b"0000644\0" + b"0000000\0" * 2
    raw = name.ljust(100, b"\0")[:100] + ids + field + b"00000000000\0" + b" " * 8 + kind
    raw += link.ljust(100, b"\0")[:100] + magic + bytes(80) + rest
    raw = raw.ljust(BLOCK, b"\0")[:BLOCK]
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def padded(content: bytes) -> bytes:
    """A member's bytes up to the end of its last block."""
    return content + bytes(-len(content) % BLOCK)


def member(name: bytes, content: bytes, **fields: bytes) -> bytes:
    """A member of a tar, header and all."""
    return header(name, len(content), **fields) + padded(content)


def pax(**records: str) -> bytes:
    """A PAX header for the member that follows: names with `__` for a dot."""
    body = b""
    for key, value in records.items():
        line = f" {key.replace('__', '.')}={value}\n".encode(errors="surrogateescape")
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        body += str(length).encode() + line
    return member(b"PaxHeaders/x", body, kind=b"x")


def mutated(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Bytes damaged in one to four places: flipped, put in, left out, repeated, cut or spliced."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        # most of what decides stands in front
        reach = len(raw) if rng.random() < 0.5 else min(len(raw), 200)
        at = int(rng.integers(max(reach, 1)))
        span = int(2 ** rng.uniform(0, 6))
        match int(rng.integers(8)):
            case 0:
                raw[at : at + 1] = bytes([raw[at] ^ 1 << int(rng.integers(8))]) if raw else b""
            case 1:
                raw[at : at + span] = rng.bytes(span)
            case 2:
                raw[at:at] = rng.bytes(span)
            case 3:
                del raw[at : at + span]
            case 4:
                raw[at:at] = raw[at : at + span]
            case 5:
                extreme = (b"\0", b"\xff", b"\x7f", b"\x80")[int(rng.integers(4))]
                raw[at : at + span] = extreme * span
            case 6:
                del raw[int(rng.integers(len(raw) + 1)) :]
            case _:
                start = int(rng.integers(max(len(other), 1)))
                raw[at : at + span] = other[start : start + span]
    return bytes(raw)


def regression_cases(pattern: str) -> Iterator[bytes]:
    """The cases that once broke something."""
    yield from (path.read_bytes() for path in sorted(CASES.glob(pattern)))
