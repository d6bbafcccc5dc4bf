"""The rows of tables as one Arrow stream in the cache folder.

Parquet is compressed in groups of rows, and CSV and JSON lines have no index: none of them has
random access.
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
from clip_jax.data.sources.tables.reading import Account, Reader
from clip_jax.errors import UserError
from clip_jax.io import files, remote

_VERSION = 3
_MOST_NOTES = 20
_MOST_JSON = 64 << 20  # bytes: a data set may have many files


@dataclasses.dataclass(frozen=True)
class Cached:
    """Tables in the cache folder.

    stream: the file of the rows that can be used.
    image: the column of the pictures. names: all columns that there are.
    is_json: whether a row is the text of an object, in the column `columns.RAW`.
    starts: int64 [files + 1]: the number of each file's first row, counting also those left out.
    left: int64 [rows left out]: their numbers, rising.
    left_out: how many for which reason. notes: lines to say.
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
    wanted: frozenset[str] | None,
    max_bad_fraction: float,
) -> Cached:
    """The rows of files as one table, read where the cache does not hold them.

    Args:
      paths: the files, of one kind.
      image: the column of the pictures; empty: the one that looks so.
      root: the folder that paths of pictures start at.
      options: how text tables are written.
      wanted: the columns that are needed beside the pictures; None: all. Where one of them is
        missing everywhere all columns are read, so that a later error can name them.
      max_bad_fraction: of rows that may be damaged.

    Raises:
      UserError: a file cannot be read, the columns do not fit, or too many rows are damaged.
      OSError: the cache cannot be written.
    """
    state: list[Any] = [remote.identity(paths, remote.states(paths)), image, root, _VERSION]
    state += [dataclasses.astuple(options), None if wanted is None else sorted(wanted)]
    name = hashlib.sha256(json.dumps(state).encode(errors="surrogateescape")).hexdigest()[:32]
    stream = files.cache_folder("tables") / f"{name}.arrow"
    if found := _load(stream):
        bad = found.left_out.get("unreadable", LeftOut(0, ""))
        _check_broken(bad, int(found.starts[-1]), max_bad_fraction)
        return found
    made, account = _Making(paths, image, root, options, wanted), Account()
    with files.whole(stream) as file:
        starts = made.write(file, account)
        left_out = account.tally.left_out()
        bad = left_out.get("unreadable", LeftOut(0, ""))
        _check_broken(bad, account.seen, max_bad_fraction)
    with files.whole(stream.with_suffix(".left")) as file:
        file.write(np.frombuffer(account.left, np.int64).tobytes())
    head = {
        **dict(image=made.image, names=made.names, is_json=made.is_json, starts=starts),
        "left_out": {k: dataclasses.astuple(v) for k, v in left_out.items()},
        "notes": made.notes(),
    }
    with files.whole(stream.with_suffix(".json")) as file:  # last: now it is whole
        file.write(json.dumps(head).encode())
    found = _load(stream)
    assert found, "just written"
    return found


def _check_broken(bad: LeftOut, rows: int, most: float) -> None:
    if bad.count > most * rows:
        raise UserError(
            f"{bad.example}; {bad.count:,} of {rows:,} rows cannot be read, more than "
            f"config.data.max_bad_fraction={most:g}"
        )


def _load(stream: Path) -> Cached | None:
    """What is in the cache folder; None where that is not all of it."""
    try:
        head = files.read_json(stream.with_suffix(".json"), _MOST_JSON)
        left = np.fromfile(stream.with_suffix(".left"), np.int64)
        if not stream.is_file():
            return None
        left_out = {k: LeftOut(int(n), str(like)) for k, (n, like) in head["left_out"].items()}
        if len(left) != sum(one.count for one in left_out.values()):
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


class _Making:
    """A table that is not in the cache yet, up to its first row."""

    def __init__(
        self,
        paths: Sequence[str],
        image: str,
        root: str,
        options: TableOptions,
        wanted: frozenset[str] | None,
    ) -> None:
        self.readers = [_opened(path, options) for path in paths]
        self.is_json = reading.is_json(paths[0])
        for path in paths:
            if reading.is_json(path) != self.is_json:
                raise UserError(
                    f"{remote.shown(path)} and {remote.shown(paths[0])} are of two kinds: name "
                    "them as two sources, see config.data.mix"
                )
        self.names = list(dict.fromkeys(name for one in self.readers for name in one.names))
        self.image = self._image(image, root)
        needed = None if wanted is None or wanted - set(self.names) else wanted | {self.image}
        schemas = [(remote.shown(one.path), one.schema()) for one in self.readers]
        self.schema = schemas[0][1] if self.is_json else columns.unified(schemas, needed)

    def _image(self, image: str, root: str) -> str:
        first, *_ = self.readers
        where = remote.shown(first.path)
        with _one_line(where):
            if not image:
                rows = itertools.chain.from_iterable(one.peek() for one in self.readers)
                if found := columns.find_images(rows, where, root):
                    return found
                fault = next((one.fault for one in self.readers if one.fault), "")
                raise UserError(fault or f"{where} holds no rows")
            if image not in self.names:
                raise UserError(
                    f"{where} has no column {quoted(image)!r} (config.data.image): there are "
                    f"{columns.named(self.names)}"
                )
            columns.check_addresses(first.peek(), image, where, root)
        return image

    def write(self, file: BinaryIO, account: Account) -> list[int]:
        """Writes the stream; gives how many rows were seen before each file, and in all."""
        starts = [0]
        with pa.ipc.new_stream(file, self.schema) as writer:
            for one in self.readers:
                with _one_line(remote.shown(one.path)):
                    for batch in one.batches(self.schema, self.image, account):
                        writer.write_batch(batch)
                starts.append(account.seen)
        return starts

    def notes(self) -> list[str]:
        """What readers say of their files, and columns that some files lack."""
        notes = [note for one in self.readers for note in one.notes]
        if not self.is_json:
            for one in self.readers:
                if lacking := [name for name in self.schema.names if name not in one.names]:
                    notes.append(
                        f"{remote.shown(one.path)} has no column {columns.named(lacking)}, which "
                        "others have: it is null there"
                    )
        more = len(notes) - _MOST_NOTES
        return notes[:_MOST_NOTES] + ([f"and {more:,} more such notes"] if more > 0 else [])


def _opened(path: str, options: TableOptions) -> Reader:
    with _one_line(remote.shown(path)):
        return reading.reader_of(path, options)


@contextlib.contextmanager
def _one_line(path: str) -> Iterator[None]:
    """Whatever is wrong with a table in one line; what is wrong with the machine as it is."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, ArithmeticError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a table ({why})") from None
