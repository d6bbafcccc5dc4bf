"""Text files of unknown encoding: which one it is, and reading their lines."""

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
_ON_ERROR = "surrogateescape"  # see `has_undecoded`


def find_encoding(path: str, file: BinaryIO | None = None) -> tuple[str, str]:
    """Detects the encoding of a text file.

    A byte-order mark decides. Without one the file is UTF-8, unless most of its lines beyond ASCII
    are not UTF-8 and all of these are Windows-1252, in which spreadsheets save.

    Args:
      path: the file, local or remote.
      file: a file object with its content, if it is read already.

    Returns:
      The encoding, and a note if it is not UTF-8.

    Raises:
      UserError: the file contains zero bytes, as UTF-16 without a mark does.
    """
    shown = remote.redact(path)
    with file or remote.open_file(path) as content:
        head = content.read(_CHUNK)
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                note = "" if encoding == UTF8 else f"{shown} is {encoding.upper()}"
                return encoding, note
        if head[:_CHUNK].count(b"\0") > len(head) // 4:
            raise UserError(
                f"{shown} looks like UTF-16 without a byte-order mark: say which by "
                "config.data.encoding=utf-16-le or utf-16-be"
            )
        utf8, legacy, neither = _count_encodings(content, head)
    if legacy <= utf8 or neither:
        return UTF8, ""
    return LEGACY, (
        f"{shown} is not UTF-8 ({legacy:,} lines): it is read as {LEGACY}; "
        "config.data.encoding says otherwise"
    )


def _count_encodings(file: BinaryIO, head: bytes) -> tuple[int, int, int]:
    """Counts the encodings of the lines beyond ASCII.

    Args:
      file: the rest of the file.
      head: the first bytes of the file, already read.

    Returns:
      The number of lines that are UTF-8, that are `LEGACY` instead, and that are neither.
    """
    counts, rest, chunk = Counter[str](), b"", head
    while chunk:
        if chunk.isascii() and rest.isascii():
            rest = b""
        else:
            *lines, rest = (rest + chunk).split(b"\n")
            counts.update(_line_encoding(line) for line in lines if not line.isascii())
            rest = b"" if len(rest) > _CHUNK else rest  # a line can be of any length
        chunk = file.read(_CHUNK)
    if not rest.isascii():
        counts[_line_encoding(rest)] += 1
    return counts[UTF8], counts[LEGACY], counts[""]


def _line_encoding(line: bytes) -> str:
    """Returns the first of UTF-8 and `LEGACY` that decodes a line; empty if neither does."""
    for encoding in (UTF8, LEGACY):
        with contextlib.suppress(UnicodeDecodeError):
            line.decode(encoding)
            return encoding
    return ""


def encoding_name(encoding: str) -> str:
    """Returns the common name of an encoding, for messages."""
    return "UTF-8" if encoding == UTF8 else encoding


def open_text(path: str, encoding: str) -> TextIO:
    """Opens a file as text and keeps its line ends; see `has_undecoded` for damage."""
    raw = remote.open_file(path)
    return io.TextIOWrapper(raw, encoding=encoding, errors=_ON_ERROR, newline="")


def decode(content: bytes, encoding: str) -> str:
    """Decodes a whole file; see `has_undecoded` for damage.

    Raises:
      UnicodeError: the content is truncated UTF-16 or UTF-32.
    """
    return content.decode(encoding, errors=_ON_ERROR)


def has_undecoded(text: str) -> bool:
    """Returns whether a text contains bytes that are not valid in the encoding of its file."""
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)


def read_lines(file: TextIO, max_length: int) -> Iterator[str | None]:
    """Yields the lines of a file, and None for a line of more than `max_length` characters."""
    while line := file.readline(max_length + 1):
        if len(line) <= max_length:
            yield line
            continue
        while line and not line.endswith("\n"):  # skips the rest of the line
            line = file.readline(max_length + 1)
        yield None
