"""The lines of a run's metrics: `metrics.jsonl` on disk, and pieces of it in a bucket.

Nothing can be appended to an object of a bucket. A run writes its lines there as small objects
`metrics/FIRST-LAST.jsonl`, numbered from 0, and merges many small ones into a larger one. A merged
object is written before those that it replaces are removed, and readers ignore an object whose
numbers another one contains: a kill at any time neither loses a line nor repeats one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from clip_jax.errors import UserError
from clip_jax.io.buckets import BucketPath, as_path
from clip_jax.io.files import JsonObject

NAME = "metrics.jsonl"
PIECES = "metrics"  # the folder of the pieces, beside the file
EVERY = 15.0  # seconds between two pieces; a checkpoint always has its lines
_MERGED = 32  # pieces of one size that become one
_PIECE = re.compile(r"(\d{8})-(\d{8})\.jsonl")


class MetricsFile(Protocol):
    """A file of lines that grows."""

    def append(self, line: bytes) -> None:
        """Adds a line.

        Raises:
          OSError: the disk is full. The file then ends with its last complete line.
        """

    def flush(self) -> None:
        """Makes sure that a kill loses no line.

        Raises:
          OSError: the bucket cannot be written.
        """

    def close(self) -> None:
        """Closes the file."""


def open_metrics(path: Path) -> MetricsFile:
    """Opens a run's `metrics.jsonl` for appending lines."""
    if isinstance(path, BucketPath):
        return _Pieces(path.with_name(PIECES))
    return _Appended(path)


def read_metrics(path: str | Path) -> list[JsonObject]:
    """Reads a run's `metrics.jsonl`, or the pieces beside it, into one dictionary a line.

    An incomplete last line is ignored.

    Raises:
      UserError: another line is damaged.
    """
    path = as_path(path)
    parts = [path] if path.is_file() else []  # reading a device such as /dev/full would not end
    pieces = path.with_name(PIECES)
    if path.name == NAME and pieces.is_dir():  # a run in a bucket, or one that was copied from it
        parts += [pieces / piece.name for piece in _valid(item.name for item in pieces.iterdir())]
    return [values for part in parts for values in _read(part)]


def _read(path: Path) -> list[JsonObject]:
    metrics = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            values = json.loads(line) if line else None
            if values is not None:
                values["step"] = int(values["step"])
                metrics.append(values)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise UserError(f"{path}: line {number} is damaged: remove it") from None
    return metrics


class _Appended:
    """A file on disk, from which an incomplete last line is removed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if os.path.isfile(path):
            end = path.read_bytes().rfind(b"\n") + 1
            if end < os.fstat(self._file).st_size:
                os.ftruncate(self._file, end)

    def append(self, line: bytes) -> None:
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.write(self._file, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def flush(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._file)


class _Piece(NamedTuple):
    """The numbers of the lines' first objects that an object contains, both included."""

    first: int
    last: int

    @property
    def name(self) -> str:
        return f"{self.first:08}-{self.last:08}.jsonl"

    @property
    def span(self) -> int:
        return self.last - self.first + 1


def _valid(names: Iterable[str]) -> list[_Piece]:
    """Returns the pieces of a folder in order, without those that another one contains."""
    matches = filter(None, map(_PIECE.fullmatch, names))
    found = [_Piece(int(match[1]), int(match[2])) for match in matches]
    pieces: list[_Piece] = []
    for piece in sorted(found, key=lambda piece: (piece.first, -piece.last)):
        if not pieces or piece.last > pieces[-1].last:
            pieces.append(piece)
    return pieces


class _Pieces:
    """The pieces in a bucket, of which this process writes the next."""

    def __init__(self, folder: BucketPath, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        self._pieces = _valid(names)
        for name in names - {piece.name for piece in self._pieces}:  # of a merge that was killed
            (folder / name).unlink(missing_ok=True)
        self._lines: list[bytes] = []
        self._last = clock()

    def append(self, line: bytes) -> None:
        self._lines.append(line)
        if self._clock() - self._last >= EVERY:
            with contextlib.suppress(OSError):  # the lines stay, and the next attempt writes them
                self.flush()

    def flush(self) -> None:
        self._last = self._clock()
        if not self._lines:
            return
        number = self._pieces[-1].last + 1 if self._pieces else 0
        piece = _Piece(number, number)
        (self._folder / piece.name).write_bytes(b"".join(self._lines))
        self._lines = []
        self._pieces.append(piece)
        self._merge()

    def _merge(self) -> None:
        while len(newest := self._pieces[-_MERGED:]) == _MERGED:
            if len({piece.span for piece in newest}) > 1:
                return
            merged = _Piece(newest[0].first, newest[-1].last)
            contents = [(self._folder / piece.name).read_bytes() for piece in newest]
            (self._folder / merged.name).write_bytes(b"".join(contents))
            for piece in newest:
                (self._folder / piece.name).unlink(missing_ok=True)
            self._pieces[-_MERGED:] = [merged]

    def close(self) -> None:
        self.flush()
