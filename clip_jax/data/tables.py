"""Pairs in tables: CSV, TSV, JSON lines and Parquet, and data sets that `datasets` saved on disk.

A column holds the pictures, as paths or as bytes; the others are what captions are made of.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax import files
from clip_jax.data.pairs import IMAGES, MAX_MEMBER, Pair, PairError, read_bytes
from clip_jax.data.paths import SAVED, expand
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
_NAMED = 20  # columns in an error


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """A file's rows, some at a time; of CSV and TSV every value is text."""
    end = Path(path).suffix.lower()
    if end == ".parquet":
        yield from pa.parquet.ParquetFile(path).iter_batches(_ROWS)
    elif end in (".csv", ".tsv"):
        delimiter = "," if end == ".csv" else "\t"
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
        text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        form = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        yield from pa.csv.open_csv(path, parse_options=form, convert_options=text)
    else:
        yield from pa.json.open_json(path)


def _written(paths: list[str]) -> Path:
    """The rows of all files as one Arrow stream in the cache folder, made where it is not there.

    Parquet is compressed in groups of rows, and CSV has no index: neither has random access.
    """
    stats = [(os.path.abspath(p), (s := os.stat(p)).st_size, s.st_mtime_ns) for p in paths]
    state = json.dumps([_VERSION, pa.__version__, stats]).encode(errors="surrogateescape")
    path = files.cache_folder("tables") / f"{hashlib.sha256(state).hexdigest()[:32]}.arrow"
    if not path.is_file():
        with files.whole(path) as file:
            _write(paths, file)
    return path


def _write(paths: list[str], file: Any) -> None:
    writer = None
    for path in paths:
        try:
            for batch in _batches(path):
                if writer is None:
                    writer = pa.ipc.new_stream(file, batch.schema)
                    first = batch.schema.remove_metadata()
                elif not batch.schema.remove_metadata().equals(first):
                    raise UserError(
                        f"{path} has other columns than {paths[0]}: {_named(batch.schema.names)}, "
                        f"not {_named(first.names)}, or of other types"
                    )
                writer.write_batch(batch)
        except (pa.ArrowException, ValueError, csv.Error) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read as a table ({why})") from None
    if writer is None:
        raise UserError(f"{paths[0]} holds no rows")
    writer.close()


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
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches()
    except (pa.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no Arrow stream ({why})") from None


def _image_column(batch: pa.RecordBatch, where: str) -> str:
    """The column whose first values are pictures, or paths of them."""

    def looks_so(value: Any) -> bool:
        if isinstance(value, dict):
            return set(value) == {"bytes", "path"}
        return isinstance(value, bytes) or str(value).lower().endswith(IMAGES)

    columns = {name: batch.column(name).slice(0, 10).to_pylist() for name in batch.schema.names}
    found = [name for name, values in columns.items() if values and all(map(looks_so, values))]
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
        else:
            paths = expand(pattern)
            self._streams, own = self._cached(paths), os.path.dirname(paths[0])
        self.root = os.path.realpath(root or own)
        self._open()
        if not len(self):
            raise UserError(f"{pattern} holds no rows")
        self.image = image or _image_column(self._batches[0], pattern)
        if self.image not in (names := self._batches[0].schema.names):
            raise UserError(
                f"{pattern} has no column {image!r} (config.data.image): there are {_named(names)}"
            )

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

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_batches", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"TableSource({self.pattern!r}, {len(self):,} pairs)"

    def __getitem__(self, i: int) -> Pair:
        at = int(np.searchsorted(self._starts, i, side="right")) - 1
        try:
            row = self._batches[at].slice(int(i - self._starts[at]), 1).to_pylist()[0]
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise PairError(
                "unreadable", f"{self.pattern}: row {i:,} cannot be read ({error})"
            ) from None
        value, name = row.pop(self.image), f"{self.pattern}: row {i:,}"
        if isinstance(value, dict):  # as `datasets` keeps a picture
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Pair(value, row, name)
        if not isinstance(value, str) or not value:
            raise PairError(
                "unreadable", f"{name}: {self.image!r} is {value!r}, not a picture or its path"
            )
        path = os.path.realpath(os.path.join(self.root, value))
        if not path.startswith(os.path.join(self.root, "")):
            raise PairError(
                "unreadable",
                f"{name}: {value} leaves {self.root}: set config.data.root to the folder of the "
                "pictures",
            )
        return Pair(read_bytes(path, MAX_MEMBER), row, path)
