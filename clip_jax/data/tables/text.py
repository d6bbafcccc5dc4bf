"""Encodings of text tables, and their lines."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from clip_jax.data import storage
from clip_jax.errors import UserError

UTF8, LEGACY = "utf-8-sig", "cp1252"
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": UTF8}
_CHUNK = 1 << 20  # bytes


def encoding_of(path: str) -> tuple[str, str]:
    """The encoding of a text file, and a note where it is not UTF-8.

    A byte-order mark decides. Without one a file is UTF-8, unless most of its lines with bytes
    beyond ASCII are none: then it is read as Windows-1252, in which spreadsheets save.

    Raises:
      UserError: it holds zero bytes as UTF-16 without a mark does.
    """
    with storage.open_file(path) as file:
        head = file.read(_CHUNK)
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                note = "" if encoding == UTF8 else f"{storage.shown(path)} is {encoding.upper()}"
                return encoding, note
        if head[:_CHUNK].count(b"\0") > len(head) // 4:
            raise UserError(
                f"{storage.shown(path)} looks like UTF-16 without a byte-order mark: say which by "
                "config.data.encoding=utf-16-le or utf-16-be"
            )
        good, bad = _judge(file, head)
    if bad <= good:
        return UTF8, ""
    return LEGACY, (
        f"{storage.shown(path)} is not UTF-8 ({bad:,} lines): it is read as {LEGACY}; "
        "config.data.encoding says otherwise"
    )


def _judge(file: BinaryIO, head: bytes) -> tuple[int, int]:
    """How many lines beyond ASCII are UTF-8, and how many are not."""
    good = bad = 0
    rest = b""
    chunk = head
    while chunk:
        block = rest + chunk
        if chunk.isascii() and rest.isascii():
            rest = b""
        else:
            *lines, rest = block.split(b"\n")
            for line in lines:
                if not line.isascii():
                    good, bad = good + is_utf8(line), bad + (not is_utf8(line))
            if len(rest) > _CHUNK:  # one line of any length
                rest = b""
        chunk = file.read(_CHUNK)
    if not rest.isascii():
        good, bad = good + is_utf8(rest), bad + (not is_utf8(rest))
    return good, bad


def is_utf8(raw: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def opened(path: str, encoding: str) -> TextIO:
    """A file as text, its line ends as they are; see `is_damaged` for what does not decode."""
    raw = storage.open_file(path)
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
