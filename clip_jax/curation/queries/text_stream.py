"""Reading large text files piece by piece, also compressed ones, and showing how far it is."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

from tqdm import tqdm

from clip_jax.errors import UserError
from clip_jax.io import remote

BLOCK = 1 << 20  # bytes
MAX_LINE = 1 << 16  # bytes of a line of a table
_WRONG_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MAX_DAMAGED, _FEW = 0.005, 20  # characters of a block: a share, or a number
_BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Returns up to `size` bytes; none at the end."""
        ...


# By the first bytes, since names lie.
_COMPRESSIONS: dict[bytes, Callable[[BinaryIO], Readable]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


@contextmanager
def open_stream(path: str, quiet: bool = False) -> Iterator[Readable]:
    """Opens a file to be read once from start to end; gzip, bzip2 and xz are decompressed.

    Progress is shown in bytes of the file as it is stored, with their rate.

    Args:
      path: the file, local or remote.
      quiet: whether to show no progress.

    Raises:
      UserError: the file cannot be opened, or is damaged where it is read.
    """
    shown = remote.redact(path)
    try:
        total = None if remote.is_remote(path) else os.path.getsize(path)
        raw = remote.open_file(path)
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({error.strerror or error})") from None
    name = os.path.basename(shown)[-40:]
    with raw, tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=quiet or None) as bar:
        counting = cast(BinaryIO, _CountingFile(raw, bar))
        start = raw.read(6)
        raw.seek(0)
        opener = next((o for mark, o in _COMPRESSIONS.items() if start.startswith(mark)), None)
        file = opener(counting) if opener else counting
        try:
            yield file
        except _DAMAGED as error:
            raise UserError(f"{shown} is damaged or cut off ({error}): fetch it again") from None
        except OSError as error:
            if error.errno is not None:  # of the machine
                raise
            raise UserError(f"{shown} is damaged ({error}): fetch it again") from None


class _CountingFile:
    """A file that tells a progress bar how much of it was read."""

    def __init__(self, file: BinaryIO, bar: tqdm) -> None:
        self._file, self._bar = file, bar

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._bar.update(len(content))
        return content

    def readinto(self, buffer: bytearray) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._file.closed


def read_blocks(path: str, file: Readable) -> Iterator[str]:
    """Yields the text of a file in blocks of about 1 MiB that end at an end of line.

    A line of more than 1 MiB is cut at a space. Bytes that are not UTF-8 become U+FFFD.

    Args:
      path: the file's name, for errors.
      file: the file, decompressed.

    Raises:
      UserError: the file is no text, or has another encoding.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest, is_first = "", True
    while content := file.read(BLOCK):
        if is_first:
            is_first = False
            content = _without_mark(path, content)
        decoded = decode(content)
        _check_text(path, decoded)
        text = rest + decoded
        end = text.rfind("\n") + 1
        if not end and len(text) >= BLOCK:
            end = text.rfind(" ") + 1 or len(text)
        rest = text[end:]
        if end:
            yield text[:end]
    if rest := rest + decode(b"", final=True):
        yield rest


def _without_mark(path: str, content: bytes) -> bytes:
    """Returns the start of a file without UTF-8's byte-order mark."""
    if content.startswith(_WRONG_MARKS):
        raise UserError(f"{remote.redact(path)} is UTF-16: save it as UTF-8")
    return content.removeprefix(_BOM)


def _check_text(path: str, text: str) -> None:
    """Raises a UserError about a block that is no text in UTF-8."""
    most = max(len(text) * _MAX_DAMAGED, _FEW)
    if text.count("\0") > most:
        raise UserError(f"{remote.redact(path)} is no text: it contains zero bytes")
    if (damaged := text.count("\ufffd")) > most:
        raise UserError(
            f"{remote.redact(path)} is not UTF-8 ({damaged:,} of {len(text):,} characters): "
            "convert it, as with iconv -f latin1 -t utf-8"
        )


def read_line_blocks(path: str, file: Readable) -> Iterator[bytes]:
    """Yields a table of lines in blocks of about 1 MiB, each of whole lines.

    Raises:
      UserError: a line is over `MAX_LINE` bytes, or the file is UTF-16.
    """
    rest, lines, is_first = b"", 0, True
    while content := file.read(BLOCK):
        if is_first:
            is_first = False
            content = _without_mark(path, content)
        block = rest + content
        end = block.rfind(b"\n") + 1
        rest = block[end:]
        if len(rest) > MAX_LINE:
            raise _too_long(path, lines + block.count(b"\n"))
        lines += block.count(b"\n")
        if end:
            yield block[:end]
    if rest:
        yield rest


def read_rows(path: str, file: Readable) -> Iterator[tuple[int, bytes]]:
    """Yields the number and the bytes of each line that is not empty, without its end.

    Raises:
      UserError: a line is over `MAX_LINE` bytes, or the file is UTF-16.
    """
    number = 0
    for block in read_line_blocks(path, file):
        for line in block.removesuffix(b"\n").split(b"\n"):
            number += 1
            if len(line) > MAX_LINE:
                raise _too_long(path, number - 1)
            if line := line.removesuffix(b"\r"):
                yield number, line


def _too_long(path: str, lines_before: int) -> UserError:
    return UserError(f"{remote.redact(path)}, line {lines_before + 1:,}: over {MAX_LINE:,} bytes")
