"""Pairs in tables: CSV, TSV, JSON lines and Parquet, and data sets that `datasets` saved on disk.

A column holds the pictures, as paths or as bytes; the others are what captions are made of.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from clip_jax import files
from clip_jax.data import storage
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.pairs import IMAGES, MAX_MEMBER, Pair, PairError, read_bytes
from clip_jax.data.paths import SAVED, expand, suffix
from clip_jax.errors import UserError, is_disk_full

try:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet
except ImportError as error:
    raise UserError(
        f"pyarrow, which reads tables, is not installed ({error}): pip install 'clip_jax[tables]'"
    ) from None

_VERSION = 1  # of the cached table
_ROWS = 1024  # of a Parquet file read at a time
_PAGES = 1 << 20  # bytes of a Parquet file held to read from
_FIRST = 1 << 20  # bytes of CSV, in which the names of its columns are
_TRIED = 10  # rows that show which column holds the pictures
_NAMED = 20  # columns in an error


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """A file's rows, some at a time; of CSV and TSV every value is text."""
    end, far = suffix(path), storage.is_remote(path)
    if end == ".parquet":
        with storage.open_file(path) if far else pa.OSFile(path) as file:
            # pages come one by one: a group of rows may be of any size
            yield from pa.parquet.ParquetFile(file, buffer_size=_PAGES).iter_batches(_ROWS)
    elif end in (".csv", ".tsv"):
        delimiter = "," if end == ".csv" else "\t"
        with storage.open_file(path) as raw:
            first = raw.read(_FIRST).decode("utf-8-sig", errors="replace")
        names = next(csv.reader(io.StringIO(first, newline=""), delimiter=delimiter), [])
        text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        form = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        with storage.open_file(path) as raw:
            yield from pa.csv.open_csv(raw, parse_options=form, convert_options=text)
    else:
        with storage.open_file(path) as raw:
            yield from pa.json.open_json(raw)


def _written(paths: list[str]) -> Path:
    """The rows of all files as one Arrow stream in the cache folder, made where it is not there.

    Parquet is compressed in groups of rows, and CSV has no index: neither has random access.
    """
    name = f"{storage.identity(paths, storage.states(paths))}-{_VERSION}-{pa.__version__}.arrow"
    path = files.cache_folder("tables") / name
    if not path.is_file():
        with files.whole(path) as file:
            _write(paths, file)
    return path


def _write(paths: list[str], file: Any) -> None:
    writer = None
    for path in paths:
        try:
            for batch in _batches(path):
                names = batch.schema.names  # ValueError where one is no text
                if writer is None:
                    writer = pa.ipc.new_stream(file, batch.schema)
                    first = batch.schema.remove_metadata()
                elif not batch.schema.remove_metadata().equals(first):
                    raise UserError(
                        f"{path} has other columns than {paths[0]}: {_named(names)}, "
                        f"not {_named(first.names)}, or of other types"
                    )
                writer.write_batch(batch)
        except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
            if isinstance(error, OSError) and error.errno:  # of the machine, not of the table
                raise
            raise UserError(
                f"{storage.shown(path)} cannot be read as a table ({_why(error)})"
            ) from None
    if writer is None:
        raise UserError(f"{paths[0]} holds no rows")
    writer.close()


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _named(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _saved(folder: str) -> list[Path]:
    """The Arrow streams that `Dataset.save_to_disk` left in a folder."""
    state = files.read_json(Path(folder) / SAVED)
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder}/{SAVED} names no files of a data set") from None
    if wrong := [name for name in names if Path(name).name != name or name == ".."]:
        raise UserError(f"{folder}/{SAVED} names {wrong[0]!r}, which is not in the folder")
    return [Path(folder) / name for name in names]


def _opened(path: Path) -> list[pa.RecordBatch]:
    """The rows of an Arrow stream, mapped into memory and not read."""
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        return table.to_batches() if table.schema.names else []  # ValueError as above
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no Arrow stream ({_why(error)})") from None


def _row(batch: pa.RecordBatch, i: int, name: str) -> dict[str, Any]:
    """A row's values by column.

    Raises:
      PairError: they cannot be had: what a stranger wrote may point anywhere.
    """
    row = batch.slice(i, 1)
    try:
        row.validate(full=True)
        if row.nbytes > MAX_MEMBER:
            raise PairError("unreadable", f"{name} is over {MAX_MEMBER >> 20} MiB")
        return row.to_pylist()[0]
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise PairError("unreadable", f"{name} cannot be read ({_why(error)})") from None


def _image_column(batch: pa.RecordBatch, where: str) -> str:
    """The column whose first values are pictures, or paths of them."""

    def looks_so(value: Any) -> bool:
        if isinstance(value, dict):
            return set(value) == {"bytes", "path"}
        return isinstance(value, bytes) or str(value).lower().endswith(IMAGES)

    rows = []
    for i in range(min(batch.num_rows, _TRIED)):
        with contextlib.suppress(PairError):
            rows.append(_row(batch, i, where))
    found = [name for name in rows[0] if all(looks_so(row[name]) for row in rows)] if rows else []
    if len(found) == 1:
        return found[0]
    several = f"{_named(found)} all look like pictures" if found else "no column holds pictures"
    raise UserError(
        f"{where}: {several}, of {_named(batch.schema.names)}: say which by config.data.image"
    )


class TableSource:
    """The pairs of one or more tables of the same columns; `source[i]` reads the i-th row.

    Args:
      pattern: files (braces and globs) that end in one of `paths.TABLES`, or a folder that
        `Dataset.save_to_disk` of Hugging Face's `datasets` wrote.
      image: the column of the pictures; empty: the one that looks so.
      root: the folder that paths start at and do not leave; empty: the first file's own.

    Raises:
      UserError: a file is missing or cannot be read, or the column is.
    """

    def __init__(self, pattern: str, image: str = "", root: str = "") -> None:
        self.pattern = pattern
        if os.path.isdir(pattern):
            self._streams, own = _saved(pattern), pattern
            own_files = [str(stream) for stream in self._streams]
            self.fingerprint = storage.identity(own_files, storage.states(own_files))
        else:
            paths = expand(pattern)
            self._streams, own = self._cached(paths), os.path.dirname(paths[0])
            self.fingerprint = self._streams[0].stem
        self.root = _root(root or own)
        self._open()
        if not len(self):
            raise UserError(f"{pattern} holds no rows")
        self.image = image or _image_column(self._batches[0], storage.shown(pattern))
        if self.image not in (names := self._batches[0].schema.names):
            raise UserError(
                f"{pattern} has no column {image!r} (config.data.image): there are {_named(names)}"
            )
        self.fingerprint += f" {self.image} {self.root}"  # other pictures of the same files

    def _cached(self, paths: list[str]) -> list[Path]:
        try:
            return [_written(paths)]
        except OSError as error:
            room = ": make room, or set XDG_CACHE_HOME" if is_disk_full(error) else ""
            what = error.filename or self.pattern
            raise UserError(f"{what} cannot be read or cached ({error.strerror}){room}") from None

    def _open(self) -> None:
        self._batches = [b for stream in self._streams for b in _opened(stream) if b.num_rows]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        types = {batch.schema.remove_metadata() for batch in self._batches}
        if len(types) > 1:
            raise UserError(f"{self.pattern}: its files have columns of several names or types")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_batches", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"TableSource({self.pattern!r}, {len(self):,} pairs)"

    def opening_report(self) -> OpeningReport:
        """What opening the tables saw, used and left out."""
        return all_used(len(self), "rows")

    def text(self, i: int) -> tuple[dict[str, Any], str]:
        """The other columns of the i-th row, and its name: the picture is not read."""
        name = f"{storage.shown(self.pattern)}: row {i:,}"
        at = int(np.searchsorted(self._starts, i, side="right")) - 1
        batch = self._batches[at]
        others = [column for column in batch.schema.names if column != self.image]
        return _row(batch.select(others), int(i - self._starts[at]), name), name

    def __getitem__(self, i: int) -> Pair:
        name = f"{storage.shown(self.pattern)}: row {i:,}"
        at = int(np.searchsorted(self._starts, i, side="right")) - 1
        row = _row(self._batches[at], int(i - self._starts[at]), name)
        value = row.pop(self.image)
        if isinstance(value, dict):  # as `datasets` keeps a picture
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Pair(value, row, name)
        if not isinstance(value, str) or not value or "\0" in value:
            raise PairError(
                "unreadable", f"{name}: {self.image!r} is {value!r}, not a picture or its path"
            )
        if (path := _inside(self.root, value)) is None:
            raise PairError(
                "unreadable",
                f"{name}: {value} leaves {self.root}: set config.data.root to the folder of the "
                "pictures",
            )
        return Pair(read_bytes(path, MAX_MEMBER), row, storage.shown(path))


def _root(folder: str) -> str:
    return folder.rstrip("/") if storage.is_remote(folder) else os.path.realpath(folder)


def _inside(root: str, value: str) -> str | None:
    """Where a path of a table leads to from `root`; None where it leaves that."""
    if not storage.is_remote(root):
        path = os.path.realpath(os.path.join(root, value))
        return path if path.startswith(os.path.join(root, "")) else None
    path = value if storage.is_remote(value) else f"{root}/{value}"
    inner = path.removeprefix(f"{root}/")
    parts = unquote(inner).replace("\\", "/").split("/")
    return None if inner == path or ".." in parts or "" in parts[:1] else path
