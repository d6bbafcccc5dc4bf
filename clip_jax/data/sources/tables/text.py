"""Encodings of text tables, and their lines."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from clip_jax.errors import UserError
from clip_jax.io import remote

UTF8, LEGACY = "utf-8-sig", "cp1252"
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": UTF8}
_CHUNK = 1 << 20  # bytes


def encoding_of(path: str) -> tuple[str, str]:
    """The encoding of a text file, and a note where it is not UTF-8.

    A byte-order mark decides. Without one a file is UTF-8, unless most of its lines beyond ASCII
    are not, but all of these are Windows-1252, in which spreadsheets save.

    Raises:
      UserError: it holds zero bytes as UTF-16 without a mark does.
    """
    with remote.open_file(path) as file:
        head = file.read(_CHUNK)
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                note = "" if encoding == UTF8 else f"{remote.shown(path)} is {encoding.upper()}"
                return encoding, note
        if head[:_CHUNK].count(b"\0") > len(head) // 4:
            raise UserError(
                f"{remote.shown(path)} looks like UTF-16 without a byte-order mark: say which by "
                "config.data.encoding=utf-16-le or utf-16-be"
            )
        utf8, legacy, neither = _count_encodings(file, head)
    if legacy <= utf8 or neither:
        return UTF8, ""
    return LEGACY, (
        f"{remote.shown(path)} is not UTF-8 ({legacy:,} lines): it is read as {LEGACY}; "
        "config.data.encoding says otherwise"
    )


def _count_encodings(file: BinaryIO, head: bytes) -> tuple[int, int, int]:
    """How many lines beyond ASCII are UTF-8, how many of the rest `LEGACY`, and how many neither.

    head: the first bytes of the file, which are read already.
    """
    counts, rest, chunk = Counter[str](), b"", head
    while chunk:
        if chunk.isascii() and rest.isascii():
            rest = b""
        else:
            *lines, rest = (rest + chunk).split(b"\n")
            counts.update(_encoding(line) for line in lines if not line.isascii())
            rest = b"" if len(rest) > _CHUNK else rest  # one line of any length
        chunk = file.read(_CHUNK)
    if not rest.isascii():
        counts[_encoding(rest)] += 1
    return counts[UTF8], counts[LEGACY], counts[""]


def _encoding(line: bytes) -> str:
    """The first of UTF-8 and `LEGACY` that bytes decode in; empty: neither."""
    for encoding in (UTF8, LEGACY):
        with contextlib.suppress(UnicodeDecodeError):
            line.decode(encoding)
            return encoding
    return ""


def shown(encoding: str) -> str:
    """An encoding as people call it."""
    return "UTF-8" if encoding == UTF8 else encoding


def opened(path: str, encoding: str) -> TextIO:
    """A file as text, its line ends as they are; see `is_damaged` for what does not decode."""
    raw = remote.open_file(path)
    return io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline="")


def is_damaged(text: str) -> bool:
    """Whether text holds bytes that are not of its file's encoding."""
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)


def lines(file: TextIO, most: int) -> Iterator[str | None]:
    """The lines of a file; None for one of more than `most` characters."""
    while line := file.readline(most + 1):
        if len(line) <= most:
            yield line
            continue
        while line and not line.endswith("\n"):  # the rest of it
            line = file.readline(most + 1)
        yield None
