"""Pairs in tables: CSV, TSV, JSON lines and Parquet, and data sets that `datasets` saved on disk.

A column holds the pictures, as paths or as bytes; the others are what captions are made of.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from clip_jax.data.captions import Alternatives
from clip_jax.data.example import MAX_MEMBER, Pair, PairError, read_bytes
from clip_jax.data.opening import OpeningReport, Tally, all_used, quoted
from clip_jax.data.sources.caption_tables import caption_column
from clip_jax.errors import UserError, is_disk_full
from clip_jax.io import files, remote
from clip_jax.io.paths import SAVED, expand

try:
    import pyarrow as pa
    import pyarrow.ipc
except ImportError as error:
    raise UserError(
        f"pyarrow, which reads tables, is not installed ({error}): pip install 'clip_jax[tables]'"
    ) from None

from clip_jax.data.sources.table_options import TableOptions
from clip_jax.data.sources.tables import cached, columns, reading

__all__ = ["TableOptions", "TableSource"]
_DERIVED = ("_batches", "_ends", "_pairs_before")  # attributes that a worker makes anew


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


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


def _mapped(path: Path) -> list[pa.RecordBatch]:
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
        return columns.python_rows(row)[0]
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise PairError("unreadable", f"{name} cannot be read ({_why(error)})") from None


class TableSource:
    """The pairs of one or more tables; `source[i]` reads the i-th row that has a picture.

    Args:
      pattern: files (braces and globs) that end in one of `paths.TABLES`, or a folder that
        `Dataset.save_to_disk` of Hugging Face's `datasets` wrote.
      image: the column of the pictures; empty: the one that looks so.
      root: the folder that paths start at and do not leave; empty: the first file's own.
      options: how text tables are written.
      wanted: the columns that are needed beside the pictures; None: all. Where `caption` is one
        and no column is called so, another may be it, see `caption_tables.caption_column`.
      max_bad_fraction: of rows that may be damaged: they are left out.

    Raises:
      UserError: a file is missing or cannot be read, or the column is.
    """

    def __init__(
        self,
        pattern: str,
        image: str = "",
        root: str = "",
        *,
        options: TableOptions | None = None,
        wanted: frozenset[str] | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        self.pattern, options = pattern, options or TableOptions()
        self._saved = os.path.isdir(pattern)
        self.paths = [*map(str, _saved(pattern))] if self._saved else expand(pattern)
        own = pattern if self._saved else os.path.dirname(self.paths[0])
        self.root = _root(root or own)
        states = remote.states(self.paths)
        self.fingerprint = remote.identity(self.paths, states)
        self._sizes = [one.size for one in states]
        if self._saved:
            self._open_saved(image, wanted)
        else:
            self._open_cached(image, options, wanted, max_bad_fraction)
        if not len(self):
            left = [f"{reason} {one.count:,}" for reason, one in self._report.left_out.items()]
            why = f" with a picture ({', '.join(left)})" if left else ""
            raise UserError(f"{remote.shown(pattern)} holds no rows{why}")
        # other pictures of the same files
        self.fingerprint += f" {self.image} {self.root}"
        if options != TableOptions():
            self.fingerprint += f" {options.separator!r} {options.quoting} {options.encoding}"

    def _open_cached(
        self, image: str, options: TableOptions, wanted: frozenset[str] | None, most: float
    ) -> None:
        try:
            found = cached.table(self.paths, image, self.root, options, wanted, most)
        except OSError as error:
            room = ": make room, or set XDG_CACHE_HOME" if is_disk_full(error) else ""
            what = error.filename or self.pattern
            raise UserError(f"{what} cannot be read or cached ({error.strerror}){room}") from None
        self.image, self._is_json, self._streams = found.image, found.is_json, [found.stream]
        self._starts, self._left = found.starts, found.left
        self._caption = self._caption_of(found.names, wanted)
        self._open()
        rows = int(self._starts[-1])
        self._report = OpeningReport(
            rows, rows - len(self._left), "rows", found.left_out, found.notes + self._guess()
        )

    def _caption_of(self, names: Sequence[str], wanted: frozenset[str] | None) -> str:
        """The column that is `{caption}`, where that is asked for and no column is called so."""
        is_asked = wanted is not None and "caption" in wanted
        others = (name for name in names if name != self.image)
        return caption_column(others) if is_asked else ""

    def _guess(self) -> tuple[str, ...]:
        """What is said of a column that is taken for `{caption}`."""
        if not self._caption:
            return ()
        return (f"{remote.shown(self.pattern)}: {{caption}} is {quoted(self._caption)}",)

    def _open_saved(self, image: str, wanted: frozenset[str] | None) -> None:
        """Maps the streams of `datasets`: a row without a picture is found by its null bits."""
        self._is_json, self._streams = False, [Path(path) for path in self.paths]
        self._open()
        where = remote.shown(self.pattern)
        schemas = [(where, batch.schema.remove_metadata()) for batch in self._batches]
        names = columns.unified(schemas, None).names
        self._starts, self._left, self.image = self._ends, np.zeros(0, np.int64), image
        self._caption = ""
        if not names:
            self._report = all_used(0, "rows")
            return
        if not image:
            self.image = columns.find_images(self._peek(), where, self.root)
        elif image not in names:
            raise UserError(
                f"{where} has no column {quoted(image)!r} (config.data.image): there are "
                f"{columns.named(names)}"
            )
        missing = [columns.null_bits(batch, self.image) for batch in self._batches]
        self._left = np.flatnonzero(np.concatenate(missing))
        tally = Tally()
        if len(self._left):
            tally.add("null_picture", f"{where}: row {self._left[0]:,}", len(self._left))
        self._caption = self._caption_of(names, wanted)
        used = int(self._ends[-1]) - len(self._left)
        self._report = tally.report(used, "rows", self._guess())

    def _peek(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            for i in range(batch.num_rows):
                with contextlib.suppress(PairError):
                    yield _row(batch, i, self.pattern)

    def _open(self) -> None:
        self._batches = [b for stream in self._streams for b in _mapped(stream) if b.num_rows]
        self._ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def layout(self) -> Iterator[bytes]:
        """The sizes of the files."""
        yield repr(self._sizes).encode()

    def __len__(self) -> int:
        return int(self._starts[-1]) - len(self._left)

    def __repr__(self) -> str:
        return f"TableSource({remote.shown(self.pattern)!r}, {len(self):,} pairs)"

    def opening_report(self) -> OpeningReport:
        """What opening the tables saw, used and left out, and what was guessed."""
        return self._report

    def _number(self, i: int) -> int:
        """The number that the i-th pair's row has among all rows, with those left out."""
        return i + int(np.searchsorted(self._pairs_before, i, side="right"))

    @functools.cached_property
    def _pairs_before(self) -> np.ndarray:
        """How many pairs stand before each row that is left out, int64 [rows left out]."""
        return self._left - np.arange(len(self._left))

    def _read(self, i: int, with_image: bool) -> tuple[dict[str, Any], str]:
        """A row's values, and its name."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        number = self._number(i)
        if self._saved:
            name, stored = f"{remote.shown(self.pattern)}: row {number:,}", number
        else:
            file = int(np.searchsorted(self._starts, number, side="right")) - 1
            row, stored = number - int(self._starts[file]), i
            name = f"{remote.shown(self.paths[file])}: row {row:,}"
        at = int(np.searchsorted(self._ends, stored, side="right")) - 1
        batch = self._batches[at]
        if not with_image and not self._is_json:
            batch = batch.select([name for name in batch.schema.names if name != self.image])
        values = _row(batch, int(stored - self._ends[at]), name)
        values = json.loads(values[reading.RAW]) if self._is_json else values
        if self._caption and "caption" not in values and self._caption in values:
            value = values[self._caption]
            values["caption"] = Alternatives(value) if isinstance(value, list) else value
        return values, name

    def text(self, i: int) -> tuple[dict[str, Any], str]:
        """The other columns of the i-th row, and its name: the picture is not read."""
        values, name = self._read(i, with_image=False)
        values.pop(self.image, None)
        return values, name

    def __getitem__(self, i: int) -> Pair:
        row, name = self._read(i, with_image=True)
        value = row.pop(self.image, None)
        if isinstance(value, dict):  # as `datasets` keeps a picture
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Pair(value, row, name)
        if not isinstance(value, str) or not value or "\0" in value:
            shown = quoted(repr(value))
            raise PairError(
                "unreadable", f"{name}: {self.image!r} is {shown}, not a picture or its path"
            )
        if (path := _inside(self.root, value)) is None:
            raise PairError(
                "unreadable",
                f"{name}: {quoted(value)} leaves {remote.shown(self.root)}: set config.data.root "
                "to the folder of the pictures",
            )
        try:
            return Pair(read_bytes(path, MAX_MEMBER), row, remote.shown(path))
        except PairError as error:
            if remote.is_remote(path) or os.path.lexists(path):
                raise
            hint = "config.data.root is the folder that paths start at"
            raise PairError("unreadable", f"{error}; {hint}") from None


def _root(folder: str) -> str:
    return folder.rstrip("/") if remote.is_remote(folder) else os.path.realpath(folder)


def _inside(root: str, value: str) -> str | None:
    """Where a path of a table leads to from `root`; None where it leaves that.

    By its parts alone, as links in the folder are the user's own, such as those of the cache of
    Hugging Face; a path that leads into the folder by links elsewhere is as good. Where a name with
    backslashes is no file, they separate its parts, as in tables that Windows wrote.
    """
    if "\\" in value and not os.path.lexists(os.path.join(root, value)):
        value = value.replace("\\", "/")
    if not remote.is_remote(root):
        path = os.path.join(root, value)
        ways = (os.path.normpath(path), os.path.realpath(path))
        return next((way for way in ways if way.startswith(os.path.join(root, ""))), None)
    path = value if remote.is_remote(value) else f"{root}/{value}"
    inner = path.removeprefix(f"{root}/")
    parts = unquote(inner).replace("\\", "/").split("/")
    return None if inner == path or ".." in parts or "" in parts[:1] else path
