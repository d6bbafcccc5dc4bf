"""Pairs that are rows of Arrow streams, mapped into memory."""

from __future__ import annotations

import abc
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from clip_jax.data.captions import Alternatives
from clip_jax.data.example import MAX_MEMBER, Fields, Pair, PairError, read_bytes
from clip_jax.data.opening import OpeningReport, quoted
from clip_jax.data.sources.caption_tables import caption_column
from clip_jax.data.sources.tables import columns
from clip_jax.errors import UserError
from clip_jax.io import remote

_DERIVED = ("_batches", "_ends", "_pairs_before")  # attributes that a worker computes again


def one_line(error: BaseException) -> str:
    """Returns the message of an exception as one short line."""
    return " ".join(str(error).split())[:200]


def map_stream(path: Path) -> list[pa.RecordBatch]:
    """Maps the batches of an Arrow stream into memory without reading them."""
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        return table.to_batches() if table.schema.names else []  # ValueError for a name not UTF-8
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no Arrow stream ({one_line(error)})") from None


def row_values(batch: pa.RecordBatch, i: int, name: str) -> Fields:
    """Returns the values of a row by column.

    The row is validated first, because offsets in an untrusted file may point anywhere.

    Args:
      batch: the rows.
      i: the number of the row in the batch.
      name: the name of the row, for errors.

    Raises:
      PairError: the values cannot be read.
    """
    row = batch.slice(i, 1)
    try:
        row.validate(full=True)
        if row.nbytes > MAX_MEMBER:
            raise PairError("unreadable", f"{name} is over {MAX_MEMBER >> 20} MiB")
        return columns.python_rows(row)[0]
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise PairError("unreadable", f"{name} cannot be read ({one_line(error)})") from None


class RowLocation(NamedTuple):
    """The location of a pair.

    Attributes:
      row: the number of its row in the streams.
      name: its name, for messages.
    """

    row: int
    name: str


class ArrowSource(abc.ABC):
    """Pairs that are rows of Arrow streams; a subclass says which streams and which rows.

    A subclass sets all attributes before the first pair is read.

    Attributes:
      pattern: what the config names.
      root: the folder that image paths start at.
      fingerprint: see `Source`.
      image: the column of the images.
      _streams: the paths of the streams.
      _sizes: the sizes of the files that the user gave, in bytes.
      _rows: the number of rows, including those left out.
      _left: int64, rising: the numbers of the rows left out.
      _is_json: whether a row is the text of a JSON object, in the column `columns.RAW`.
      _caption: the column that `{caption}` reads; empty for none.
      _has_addresses: whether the column of the images is one of the text fields.
      _report: see `Source.opening_report`.
    """

    pattern: str
    root: str
    fingerprint: str
    image: str
    _streams: Sequence[Path]
    _sizes: Sequence[int]
    _rows: int
    _left: np.ndarray
    _is_json: bool = False
    _caption: str = ""
    _has_addresses: bool = False
    _report: OpeningReport

    @abc.abstractmethod
    def _locate(self, i: int) -> RowLocation:
        """Returns the location of the i-th pair."""

    def _map_streams(self) -> None:
        self._batches = [b for stream in self._streams for b in map_stream(stream) if b.num_rows]
        self._ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def _choose_caption(self, names: Sequence[str], needed: frozenset[str] | None) -> None:
        """Chooses the column for `{caption}` if one is needed and no column has the name."""
        if needed is not None and "caption" in needed:
            self._caption = caption_column(name for name in names if name != self.image)

    def _caption_note(self) -> tuple[str, ...]:
        """Returns the line about a column that is taken for `{caption}`, if any."""
        if not self._caption:
            return ()
        return (f"{remote.redact(self.pattern)}: {{caption}} is {quoted(self._caption)}",)

    def _check_rows(self) -> None:
        """Raises a UserError if no row is left."""
        if not len(self):
            counts = [f"{reason} {n.count:,}" for reason, n in self._report.left_out.items()]
            why = f" with an image ({', '.join(counts)})" if counts else ""
            raise UserError(f"{remote.redact(self.pattern)} holds no rows{why}")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_streams()

    def layout(self) -> Iterator[bytes]:
        """Yields the sizes of the files."""
        yield repr(list(self._sizes)).encode()

    def __len__(self) -> int:
        return self._rows - len(self._left)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({remote.redact(self.pattern)!r}, {len(self):,} pairs)"

    def opening_report(self) -> OpeningReport:
        """Returns what opening the tables saw, used and left out, and what was guessed."""
        return self._report

    def _row_number(self, i: int) -> int:
        """Returns the number of the i-th pair's row among all rows, including those left out."""
        return i + int(np.searchsorted(self._pairs_before, i, side="right"))

    @functools.cached_property
    def _pairs_before(self) -> np.ndarray:
        """The number of pairs before each row that is left out, int64 [rows left out]."""
        return self._left - np.arange(len(self._left))

    def _read_row(self, i: int, with_image: bool) -> tuple[Fields, str]:
        """Returns the values of a pair's row, and its name."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        row, name = self._locate(i)
        number = int(np.searchsorted(self._ends, row, side="right")) - 1
        batch = self._batches[number]
        if not with_image and not self._is_json:
            batch = batch.select([name for name in batch.schema.names if name != self.image])
        values = row_values(batch, int(row - self._ends[number]), name)
        values = json.loads(values[columns.RAW]) if self._is_json else values
        if self._caption and "caption" not in values and self._caption in values:
            value = values[self._caption]
            values["caption"] = Alternatives(value) if isinstance(value, list) else value
        return values, name

    def text(self, i: int) -> tuple[Fields, str]:
        """Returns the other columns of the i-th row and its name, without reading the image."""
        values, name = self._read_row(i, with_image=self._has_addresses)
        if not self._has_addresses:
            values.pop(self.image, None)
        return values, name

    def __getitem__(self, i: int) -> Pair:
        row, name = self._read_row(i, with_image=True)
        value = row.pop(self.image, None)
        if isinstance(value, dict):  # as `datasets` stores an image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Pair(value, row, name)
        if not isinstance(value, str) or not value or "\0" in value:
            shown = quoted(repr(value))
            raise PairError(
                "unreadable", f"{name}: {self.image!r} is {shown}, not an image or its path"
            )
        if (path := _inside(self.root, value)) is None:
            raise PairError(
                "unreadable",
                f"{name}: {quoted(value)} leaves {remote.redact(self.root)}: set config.data.root "
                "to the folder of the images",
            )
        try:
            return Pair(read_bytes(path, MAX_MEMBER), row, remote.redact(path))
        except PairError as error:
            if remote.is_remote(path) or os.path.lexists(path):
                raise
            hint = "config.data.root is the folder that paths start at"
            raise PairError("unreadable", f"{error}; {hint}") from None


def real_root(folder: str) -> str:
    """Resolves links in a folder's path, so that paths that leave the folder can be recognised."""
    return folder.rstrip("/") if remote.is_remote(folder) else os.path.realpath(folder)


def _inside(root: str, value: str) -> str | None:
    """Returns the file that a path of a table names, relative to `root`; None if it leaves `root`.

    The path is judged by its parts alone: links in the folder are the user's own, such as those of
    Hugging Face's cache. A path that leads into the folder through links elsewhere is as good. If
    a name with backslashes is no file, they separate folders, as in tables written by Windows.
    """
    if "\\" in value and not os.path.lexists(os.path.join(root, value)):
        value = value.replace("\\", "/")
    if not remote.is_remote(root):
        path = os.path.join(root, value)
        candidates = (os.path.normpath(path), os.path.realpath(path))
        return next((c for c in candidates if c.startswith(os.path.join(root, ""))), None)
    path = value if remote.is_remote(value) else f"{root}/{value}"
    inner = path.removeprefix(f"{root}/")
    parts = unquote(inner).replace("\\", "/").split("/")
    return None if inner == path or ".." in parts or "" in parts[:1] else path
