"""The rows of tables as one Arrow stream in the cache folder, for random access.

Parquet is compressed in groups of rows, and CSV and JSON lines have no index.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from clip_jax.data.opening import LeftOut, quoted
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.data.sources.tables import columns, reading
from clip_jax.data.sources.tables.reading import Account, FileReader
from clip_jax.errors import UserError
from clip_jax.io import files, remote

_VERSION = 4
_MAX_NOTES = 20
_MAX_JSON = 64 << 20  # bytes: a data set may have many files


@dataclasses.dataclass(frozen=True)
class Cached:
    """Tables in the cache folder.

    Attributes:
      stream: the file with the rows that are used.
      image: the column of the images.
      names: all columns.
      is_json: whether a row is the text of an object, in the column `columns.RAW`.
      starts: int64 [files + 1]: the number of each file's first row, counting rows left out.
      left: int64 [rows left out]: their numbers, rising.
      left_out: the rows left out by reason.
      notes: lines to print.
    """

    stream: Path
    image: str
    names: list[str]
    is_json: bool
    starts: np.ndarray
    left: np.ndarray
    left_out: dict[str, LeftOut]
    notes: tuple[str, ...]


def table(
    paths: Sequence[str],
    image: str,
    root: str,
    options: TableOptions,
    needed: frozenset[str] | None,
    max_bad_fraction: float,
    addresses: bool = False,
) -> Cached:
    """Returns the rows of files as one table, from the cache if it is there.

    Args:
      paths: the files, of one kind.
      image: the column of the images; empty for the one that looks like it.
      root: the folder that image paths start at.
      options: how text tables are written.
      needed: the columns that are needed beside the images; None for all. If one of them is missing
        in all files, all columns are read, so that a later error can name them.
      max_bad_fraction: the share of rows that may be damaged.
      addresses: whether the column of the images may hold web addresses.

    Raises:
      UserError: a file cannot be read, the columns do not fit, or too many rows are damaged.
      OSError: the cache cannot be written.
    """
    state: list[Any] = [remote.identity(paths, remote.states(paths)), image, root, _VERSION]
    state += [dataclasses.astuple(options), None if needed is None else sorted(needed)]
    state += ["addresses"] if addresses else []
    name = hashlib.sha256(json.dumps(state).encode(errors="surrogateescape")).hexdigest()[:32]
    stream = files.cache_folder("tables") / f"{name}.arrow"
    if cached := _load(stream):
        bad = cached.left_out.get("unreadable", LeftOut(0, ""))
        _check_damaged(bad, int(cached.starts[-1]), max_bad_fraction)
        return cached
    reader, account = _Reader(paths, image, root, options, needed, addresses), Account()
    with files.atomic_write(stream) as file:
        starts = reader.write(file, account)
        left_out = account.tally.left_out()
        bad = left_out.get("unreadable", LeftOut(0, ""))
        _check_damaged(bad, account.seen, max_bad_fraction)
    with files.atomic_write(stream.with_suffix(".left")) as file:
        file.write(np.frombuffer(account.left, np.int64).tobytes())
    head = {
        **dict(image=reader.image, names=reader.names, is_json=reader.is_json, starts=starts),
        "left_out": {k: dataclasses.astuple(v) for k, v in left_out.items()},
        "notes": reader.notes(),
        "digests": _digests(stream),
    }
    with files.atomic_write(stream.with_suffix(".json")) as file:  # last: it marks completion
        file.write(json.dumps(head).encode())
    cached = _load(stream)
    assert cached, "just written"
    return cached


def _check_damaged(bad: LeftOut, rows: int, most: float) -> None:
    if bad.count > most * rows:
        raise UserError(
            f"{bad.example}; {bad.count:,} of {rows:,} rows cannot be read, more than "
            f"config.data.max_bad_fraction={most:g}"
        )


def _digests(stream: Path) -> list[str]:
    """Returns the digests of the rows, and of the numbers of those left out."""
    return [files.sampled_digest(path) for path in (stream, stream.with_suffix(".left"))]


def _load(stream: Path) -> Cached | None:
    """Returns the table in the cache folder, or None if it is missing, incomplete or damaged."""
    try:
        head = files.read_json(stream.with_suffix(".json"), _MAX_JSON)
        if head["digests"] != _digests(stream):
            return None
        left = np.fromfile(stream.with_suffix(".left"), np.int64)
        left_out = {
            k: LeftOut(int(n), str(example)) for k, (n, example) in head["left_out"].items()
        }
        if len(left) != sum(item.count for item in left_out.values()):
            return None
        return Cached(
            stream,
            str(head["image"]),
            [str(name) for name in head["names"]],
            bool(head["is_json"]),
            np.array(head["starts"], np.int64),
            left,
            left_out,
            tuple(map(str, head["notes"])),
        )
    except (OSError, UserError, ValueError, TypeError, KeyError, AttributeError):
        return None


class _Reader:
    """Reads tables that are not in the cache yet."""

    def __init__(
        self,
        paths: Sequence[str],
        image: str,
        root: str,
        options: TableOptions,
        needed: frozenset[str] | None,
        addresses: bool,
    ) -> None:
        self.addresses = addresses
        self.readers = [_open_reader(path, options) for path in paths]
        self.is_json = reading.is_json(paths[0])
        for path in paths:
            if reading.is_json(path) != self.is_json:
                raise UserError(
                    f"{remote.redact(path)} and {remote.redact(paths[0])} are of two kinds: name "
                    "them as two sources, see config.data.mix"
                )
        self.names = list(dict.fromkeys(name for reader in self.readers for name in reader.names))
        self.image = self._image(image, root)
        selected = None if needed is None or needed - set(self.names) else needed | {self.image}
        schemas = [(remote.redact(reader.path), reader.schema()) for reader in self.readers]
        self.schema = schemas[0][1] if self.is_json else columns.unified(schemas, selected)

    def _image(self, image: str, root: str) -> str:
        first, *_ = self.readers
        where = remote.redact(first.path)
        with _one_line(where):
            if not image:
                rows = itertools.chain.from_iterable(reader.peek() for reader in self.readers)
                if column := columns.find_images(rows, where, root, self.addresses):
                    return column
                fault = next((reader.fault for reader in self.readers if reader.fault), "")
                raise UserError(fault or f"{where} holds no rows")
            if image not in self.names:
                raise UserError(
                    f"{where} has no column {quoted(image)!r} (config.data.image): there are "
                    f"{columns.named(self.names)}"
                )
            if not self.addresses:
                columns.check_addresses(first.peek(), image, where, root)
        return image

    def write(self, file: BinaryIO, account: Account) -> list[int]:
        """Writes the stream; returns how many rows were seen before each file, and in all."""
        starts = [0]
        with pa.ipc.new_stream(file, self.schema) as writer:
            for reader in self.readers:
                with _one_line(remote.redact(reader.path)):
                    for batch in reader.batches(self.schema, self.image, account):
                        writer.write_batch(batch)
                starts.append(account.seen)
        return starts

    def notes(self) -> list[str]:
        """Returns the notes of the readers, and notes about columns that some files lack."""
        notes = [note for reader in self.readers for note in reader.notes]
        if not self.is_json:
            for reader in self.readers:
                if lacking := [name for name in self.schema.names if name not in reader.names]:
                    notes.append(
                        f"{remote.redact(reader.path)} has no column {columns.named(lacking)}, "
                        "which others have: it is null there"
                    )
        more = len(notes) - _MAX_NOTES
        return notes[:_MAX_NOTES] + ([f"and {more:,} more such notes"] if more > 0 else [])


def _open_reader(path: str, options: TableOptions) -> FileReader:
    with _one_line(remote.redact(path)):
        return reading.reader_of(path, options)


@contextlib.contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Turns errors of a table into one line; errors of the machine pass."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a table ({why})") from None
