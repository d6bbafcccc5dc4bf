"""Reads table files as Arrow batches and accounts for every row."""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet

from clip_jax.data.example import Fields
from clip_jax.data.opening import Tally
from clip_jax.data.sources import text_files
from clip_jax.data.sources.disguises import disguise
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.data.sources.tables import columns, json_lines
from clip_jax.data.sources.tables.separated import SeparatedFile
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import suffix

_HEAD = 64  # bytes that tell what a file is
_ROWS = 1024  # of a batch
_BUFFER = 1 << 20  # bytes of a Parquet file
_JSON = (".jsonl", ".ndjson")
_SAMPLED = 1000  # rows whose keys are the columns of JSON lines


class Account:
    """A count of the rows of all files, and of which are left out and why.

    Attributes:
      seen: the number of rows so far.
      left: the numbers of the rows left out, rising.
      tally: the rows left out, by reason.
    """

    def __init__(self) -> None:
        self.seen, self.left, self.tally = 0, array("q"), Tally()

    def use(self, count: int = 1) -> None:
        """Counts rows that are pairs."""
        self.seen += count

    def leave_out(self, reason: str, example: str) -> None:
        """Counts a row that is left out, for one of `opening.REASONS`."""
        self.left.append(self.seen)
        self.seen += 1
        self.tally.add(reason, example)


class FileReader(Protocol):
    """Reads one file of a table.

    Attributes:
      path: the path of the file.
      notes: lines about what was guessed or is unusual.
      names: the names of the columns.
      fault: what is wrong with the first row that `peek` could not read.
    """

    path: str
    notes: list[str]
    names: list[str]
    fault: str

    def schema(self) -> pa.Schema:
        """Returns the columns that `batches` can yield."""
        ...

    def peek(self) -> Iterator[Fields]:
        """Yields the rows that can be read, lazily."""
        ...

    def batches(self, schema: pa.Schema, image: str, account: Account) -> Iterator[pa.RecordBatch]:
        """Yields the rows that have an image, in batches, and counts every row in `account`.

        Args:
          schema: the columns of the batches.
          image: the column of the images.
          account: counts the rows.
        """
        ...


def reader_of(path: str, options: TableOptions) -> FileReader:
    """Returns the reader for a file, by the ending of its name.

    Raises:
      UserError: the file cannot be read as a table.
      pa.ArrowException, OSError, ValueError: likewise.
    """
    end = suffix(path)
    with remote.open_file(path) as file:
        if why := disguise(file.read(_HEAD), end):
            raise UserError(f"{remote.redact(path)} {why}")
    if end == ".parquet":
        return _Parquet(path)
    return _JsonLines(path, options) if end in _JSON else _Separated(path, end, options)


class _Parquet:
    def __init__(self, path: str) -> None:
        self.path, self.notes, self.fault = path, list[str](), ""
        with self._open() as file:
            self._schema = file.schema_arrow
        self.names = self._schema.names  # ValueError where one is no text

    @contextlib.contextmanager
    def _open(self) -> Iterator[pa.parquet.ParquetFile]:
        far = remote.is_remote(self.path)
        with remote.open_file(self.path) if far else pa.OSFile(self.path) as file:
            # with a buffer, pages are read one by one: a group of rows may be of any size
            yield pa.parquet.ParquetFile(file, buffer_size=_BUFFER)

    def schema(self) -> pa.Schema:
        return self._schema.remove_metadata()

    def peek(self) -> Iterator[Fields]:
        with self._open() as file:
            for batch in file.iter_batches(64):
                yield from columns.python_rows(batch)

    def batches(self, schema: pa.Schema, image: str, account: Account) -> Iterator[pa.RecordBatch]:
        names, row = [name for name in self.names if name in schema.names], 0
        with self._open() as file:
            for batch in file.iter_batches(_ROWS, columns=names):
                fitted = columns.fitted(batch, schema)
                missing = columns.null_pictures(fitted.column(image))
                for i in range(len(missing)):
                    if missing[i]:
                        account.leave_out(
                            "null_picture", f"{remote.redact(self.path)}: row {row + i:,}"
                        )
                    else:
                        account.use()
                row += len(missing)
                yield fitted.filter(pa.array(~missing)) if missing.any() else fitted


class _Separated:
    """CSV and TSV: every value is text."""

    def __init__(self, path: str, end: str, options: TableOptions) -> None:
        self.path, self.fault = path, ""
        self._file = SeparatedFile.inspect(path, end, options)
        self.names, self.notes = self._file.names, self._file.notes

    def schema(self) -> pa.Schema:
        return pa.schema([(name, pa.large_string()) for name in self.names])

    def peek(self) -> Iterator[Fields]:
        for row in self._file.rows(note=False):
            if row.fault:
                self.fault = self.fault or _broken(self.path, row.number, row.fault)
            else:
                yield dict(zip(self.names, row.cells, strict=True))

    def batches(self, schema: pa.Schema, image: str, account: Account) -> Iterator[pa.RecordBatch]:
        at = self.names.index(image) if image in self.names else -1
        rows: list[list[str]] = []
        for line in self._file.rows():
            if line.fault:
                account.leave_out("unreadable", _broken(self.path, line.number, line.fault))
            elif at < 0 or not (name := line.cells[at].strip()):
                account.leave_out("null_picture", _line(self.path, line.number))
            else:
                account.use()
                line.cells[at] = name
                rows.append(line.cells)
            if len(rows) == _ROWS:
                yield self._batch(rows, schema)
                rows = []
        if rows:
            yield self._batch(rows, schema)

    def _batch(self, rows: list[list[str]], schema: pa.Schema) -> pa.RecordBatch:
        cells = dict(zip(self.names, zip(*rows, strict=True), strict=True))
        nothing = [None] * len(rows)
        arrays = [pa.array(cells.get(f.name, nothing), pa.large_string()) for f in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


class _JsonLines:
    """JSON lines: every row is stored as it is written."""

    def __init__(self, path: str, options: TableOptions) -> None:
        self.path, self.fault = path, ""
        encoding, note = (
            (options.encoding, "") if options.encoding else text_files.find_encoding(path)
        )
        self._encoding, self.notes = encoding, [note] if note else []
        first = itertools.islice(self.peek(), _SAMPLED)
        self.names = list(dict.fromkeys(name for row in first for name in row))

    def schema(self) -> pa.Schema:
        return pa.schema([(columns.RAW, pa.large_string())])

    def peek(self) -> Iterator[Fields]:
        for line in json_lines.read_lines(self.path, self._encoding):
            if line.fault:
                self.fault = self.fault or _broken(self.path, line.number, line.fault)
            else:
                yield line.row

    def batches(self, schema: pa.Schema, image: str, account: Account) -> Iterator[pa.RecordBatch]:
        rows: list[str] = []
        for line in json_lines.read_lines(self.path, self._encoding):
            if line.fault:
                account.leave_out("unreadable", _broken(self.path, line.number, line.fault))
            elif columns.is_null(line.row.get(image)):
                account.leave_out("null_picture", _line(self.path, line.number))
            else:
                account.use()
                rows.append(line.raw)
            if len(rows) == _ROWS:
                yield pa.record_batch([pa.array(rows, pa.large_string())], schema=schema)
                rows = []
        if rows:
            yield pa.record_batch([pa.array(rows, pa.large_string())], schema=schema)


def _line(path: str, number: int) -> str:
    return f"{remote.redact(path)}: line {number:,}"


def _broken(path: str, number: int, fault: str) -> str:
    return f"{_line(path, number)}: {fault}"


def is_json(path: str) -> bool:
    """Returns whether a file holds JSON lines, by the ending of its name."""
    return suffix(path) in _JSON
