"""Annotation folders: numbers about every pair of a data set, such as scores by a model.

    FOLDER/annotations.json   the data, the columns and the files, once all tables are there
    FOLDER/00000.parquet      one float32 row per pair of a file, in the order of its pairs
    FOLDER/job.json           the settings of the program that writes the folder

Any program can write the first two:

    {"version": 1, "data": "/data/{00000..00099}.tar",
     "columns": {"clip_score": "the cosine of image and caption"},
     "files": [{"file": "/data/00000.tar", "pairs": 10000, "fingerprint": "…",
                "table": "00000.parquet"}, …]}

A NaN or null means that a pair has no value, such as a pair whose image cannot be decoded. An empty
fingerprint is not compared with that of the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from clip_jax.curation import storage
from clip_jax.curation.scores.parquet_files import KEY, exists, opened, require_pyarrow, write_table
from clip_jax.distributed import multihost
from clip_jax.errors import UserError, counted
from clip_jax.io import remote
from clip_jax.io.files import JsonObject, read_json
from clip_jax.io.paths import resolve

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
MANIFEST, JOB = "annotations.json", "job.json"
_COLUMN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}")  # its name: flags take NAME=VALUE
_TABLE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}\.parquet")
_MAX_JSON = 1 << 28  # bytes: a million files
_MAX_PAIRS = 1 << 28  # of a file
_ROWS = 1 << 16  # of a batch

Values = Float[np.ndarray, " pairs"]


@dataclasses.dataclass(frozen=True)
class AnnotatedFile:
    """A file whose pairs have annotations.

    Attributes:
      file: the path of the file, as the data's pattern expands.
      pairs: the number of its pairs.
      fingerprint: that of its source when the annotations were made; empty: not known.
      table: the name of the table in the folder.
    """

    file: str
    pairs: int
    fingerprint: str
    table: str


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A whole annotation folder; tables are read when they are asked for.

    Attributes:
      folder: the folder, on this machine or in a bucket.
      data: the spec of the data.
      columns: the description of each column, by its name.
      files: the files, in the order of the data.
    """

    folder: str
    data: str
    columns: Mapping[str, str]
    files: tuple[AnnotatedFile, ...]

    @classmethod
    def open(cls, folder: str | Path) -> Annotations:
        """Reads and checks `annotations.json`.

        Raises:
          UserError: the folder is none, or its tables are not complete.
        """
        folder = resolve(str(folder))
        path = storage.join(folder, MANIFEST)
        if not exists(path) and not exists(storage.join(folder, JOB)):
            raise UserError(
                f"{folder} is no annotation folder: it has no {MANIFEST}; `clip_jax curate score` "
                "writes one"
            )
        values: JsonObject = _read_json(path) if exists(path) else {"complete": False}
        if values.get("complete") is False:
            raise UserError(
                f"{folder} is not complete: start the command that writes it again, which goes on "
                "where it stopped"
            )
        if (version := values.get("version")) != VERSION:
            raise UserError(f"{path} has version {version!r:.40}: this clip_jax reads {VERSION}")
        data, columns, files = (values.get(key) for key in ("data", "columns", "files"))
        if not isinstance(data, str):
            raise UserError(f'{path}: "data" must be the spec of the data, as a text')
        described = isinstance(columns, dict) and all(isinstance(x, str) for x in columns.values())
        if not columns or not described or not all(map(_COLUMN.fullmatch, columns)):
            raise UserError(
                f'{path}: "columns" must be an object from names, of letters, digits and _.:-, to '
                "descriptions"
            )
        if not isinstance(files, list) or not files:
            raise UserError(f'{path}: "files" must be a list of files')
        parsed = tuple(_parse_file(path, n, entry) for n, entry in enumerate(files))
        if len({entry.file for entry in parsed}) < len(parsed):
            raise UserError(f'{path}: "files" names a file twice')
        return cls(folder, data, dict(columns), parsed)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {entry.file: number for number, entry in enumerate(self.files)}

    def entry(self, file: int | str) -> AnnotatedFile:
        """Returns the entry of a file, by its number or its path.

        Raises:
          UserError: the folder has no annotations of this file.
        """
        number = file if isinstance(file, int) else self._numbers.get(file, -1)
        if not 0 <= number < len(self.files):
            raise UserError(
                f"{self.folder} has no annotations of {file}: it is about "
                f"{counted(len(self.files), 'file')} of {self.data}"
            )
        return self.files[number]

    def of_file(self, file: int | str) -> dict[str, Values]:
        """Reads the annotations of the pairs of a file.

        Args:
          file: the number of the file, or its path.

        Returns:
          For each column float32 [pairs]; NaN: no value.

        Raises:
          UserError: there is no such file, or its table is damaged or of another form.
        """
        entry = self.entry(file)
        return _read_table(storage.join(self.folder, entry.table), list(self.columns), entry.pairs)


def _parse_file(path: str, number: int, entry: Any) -> AnnotatedFile:
    """Returns an entry of the list of files; raises UserError for anything else."""
    where = f'{path}: entry {number} of "files"'
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object")
    texts: JsonObject = {key: entry.get(key) for key in ("file", "fingerprint", "table")}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise UserError(f"{where}: {wrong[0]!r} must be a text")
    pairs = entry.get("pairs")
    if type(pairs) is not int or not 0 <= pairs <= _MAX_PAIRS:
        raise UserError(f"{where}: 'pairs' must be a number from 0 to {_MAX_PAIRS:,}")
    if not _TABLE.fullmatch(texts["table"]):
        raise UserError(
            f"{where}: 'table' must be the name of a file in the folder, such as 00000.parquet, "
            f"not {texts['table']!r:.60}"
        )
    return AnnotatedFile(pairs=pairs, **texts)


def _read_json(path: str) -> JsonObject:
    what = "annotation folder"
    if remote.is_remote(path):
        return storage.read_json(path, what)
    return read_json(Path(path), _MAX_JSON, what)


def _read_table(path: str, columns: Sequence[str], pairs: int) -> dict[str, Values]:
    """Returns the columns of a table, each float32 [pairs]."""
    require_pyarrow(path)
    import pyarrow as pa

    values = {name: np.full(pairs, np.nan, np.float32) for name in columns}
    try:
        with opened(path) as file:
            for name in columns:
                _check_column(path, file.schema_arrow, name)
            done = 0
            for batch in file.iter_batches(_ROWS, columns=list(columns)):
                if done + len(batch) > pairs:
                    done += len(batch)
                    break
                for name, array in zip(batch.schema.names, batch.columns, strict=True):
                    part = array.to_numpy(zero_copy_only=False)
                    values[name][done : done + len(batch)] = part
                done += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}): {_again(path)}") from None
    if done != pairs:
        raise UserError(
            f"{path} has {'more than ' if done > pairs else ''}{min(done, pairs):,} rows, and "
            f"{MANIFEST} says {pairs:,} pairs: {_again(path)}"
        )
    return values


def _check_column(path: str, schema: pa.Schema, name: str) -> None:
    import pyarrow as pa

    number = schema.get_field_index(name)
    if number < 0:
        raise UserError(f"{path} has no column {name!r}, or several, which {MANIFEST} describes")
    if schema.field(number).type != pa.float32():
        kind = str(schema.field(number).type)
        raise UserError(f"{path}: column {name!r} is {kind:.40}, and must be float32")


def _again(path: str) -> str:
    return f"remove it and write {path.rpartition('/')[0]} again"


class AnnotationWriter:
    """Writes an annotation folder, one table at a time; what is there is not written again.

    Several hosts may write one folder, each the tables of its own files.

    Args:
      folder: the folder; it may hold the tables of an earlier run with the same settings.
      data: the spec of the data.
      columns: the description of each column.
      files: the files of the data, in order.
      settings: what the values depend on beside the files, as values of JSON; a folder with others
        is refused.
      hint: how an error names the flag that gives another folder.

    Raises:
      UserError: the folder was written with other settings, or holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        data: str,
        columns: Mapping[str, str],
        files: Sequence[str],
        settings: Mapping[str, Any],
        hint: str = "--out",
    ) -> None:
        require_pyarrow("an annotation folder")
        self.folder = resolve(str(folder))
        self.data, self.columns, self.files = data, dict(columns), tuple(files)
        if wrong := [name for name in columns if not _COLUMN.fullmatch(name)]:
            raise UserError(f"{wrong[0]!r:.120} is no name of a column: use letters, digits and _")
        self._settings = json.loads(json.dumps(dict(settings)))
        self._hint = hint
        self._tables: dict[str, str] = multihost.broadcast_from_first(self._plan)

    def _plan(self) -> dict[str, str]:
        """Returns the name of each file's table; files keep the tables that they have."""
        path = storage.join(self.folder, JOB)
        facts = {"data": self.data, "columns": self.columns, "settings": self._settings}
        before: JsonObject = {"version": VERSION, "tables": {}, **facts}
        if exists(path):
            found = _read_json(path)
            tables = self._check_job(found)
            if any(exists(storage.join(self.folder, name)) for name in tables.values()):
                self._check_settings(found)
                before = found
        elif exists(storage.join(self.folder, MANIFEST)):
            raise UserError(
                f"{self.folder} holds annotations by another program: give another {self._hint}"
            )
        tables = dict(before["tables"])
        for file in self.files:
            tables.setdefault(file, f"{len(tables):05d}.parquet")
        storage.write_json(path, {"version": VERSION, **facts, "tables": tables})
        return {file: tables[file] for file in self.files}

    def _check_job(self, found: JsonObject) -> dict[str, str]:
        """Returns the tables that a job file names; raises UserError if it is of another kind."""
        tables, settings = found.get("tables"), found.get("settings")
        is_job = isinstance(tables, dict) and isinstance(settings, dict)
        if found.get("version") != VERSION or not is_job:
            raise UserError(
                f"{storage.join(self.folder, JOB)} is of another program: give another {self._hint}"
            )
        names = dict(tables or {})
        if not all(_TABLE.fullmatch(str(name)) for name in names.values()):
            raise UserError(
                f"{storage.join(self.folder, JOB)} names no tables: give another {self._hint}"
            )
        return {str(file): str(name) for file, name in names.items()}

    def _check_settings(self, found: JsonObject) -> None:
        """Raises UserError if the folder has tables that were written with other settings."""
        now = {"data": self.data, **self._settings, "columns": self.columns}
        then = {"data": found.get("data"), **found["settings"], "columns": found.get("columns")}
        for key in (*now, *then):
            if now.get(key) != then.get(key):
                raise UserError(
                    f"{self.folder} was written with {key}={_shown(then.get(key))}, and now it is "
                    f"{_shown(now.get(key))}: give another {self._hint}, or the same settings"
                )

    @cached_property
    def _digest(self) -> str:
        facts = [self.columns, self._settings]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    def table(self, file: str) -> str:
        """Returns the name of a file's table, which names other files about it as well."""
        return self._tables[file]

    def is_done(self, file: str, pairs: int, fingerprint: str) -> bool:
        """Returns whether the table of a file is there, intact at its end, and up to date.

        Args:
          file: one of `files`.
          pairs: the number of its pairs now.
          fingerprint: that of its source now.
        """
        entry = self._written(file)
        return entry is not None and (entry.pairs, entry.fingerprint) == (pairs, fingerprint)

    def _written(self, file: str) -> AnnotatedFile | None:
        """Returns what the table of a file says of itself; None without a table of these settings.

        The end of a Parquet file says it, so that a file that was cut short says nothing.
        """
        import pyarrow as pa

        name = self._tables[file]
        try:
            with opened(storage.join(self.folder, name)) as table:
                metadata = table.metadata
            facts = json.loads(metadata.metadata[KEY])
            if facts["digest"] != self._digest or facts["file"] != file:
                return None
            return AnnotatedFile(file, metadata.num_rows, str(facts["fingerprint"]), name)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, remote.MissingError):
            return None

    def write(self, file: str, fingerprint: str, values: Mapping[str, Values]) -> None:
        """Writes the table of a file, whole or not at all.

        Args:
          file: one of `files`.
          fingerprint: that of its source.
          values: for each column float32 [pairs]; NaN: no value.
        """
        import pyarrow as pa

        manifest = storage.join(self.folder, MANIFEST)
        if exists(manifest):  # it would describe the old table
            storage.write_json(manifest, {"version": VERSION, "complete": False})
        arrays = {name: pa.array(np.asarray(values[name], np.float32)) for name in self.columns}
        about = {"file": file, "fingerprint": fingerprint, "digest": self._digest}
        write_table(storage.join(self.folder, self._tables[file]), pa.table(arrays), about)

    def finish(self) -> bool:
        """Writes `annotations.json` if the tables of all files are there, and returns whether."""
        entries = [self._written(file) for file in self.files]
        complete = [dataclasses.asdict(entry) for entry in entries if entry is not None]
        if len(complete) < len(entries):
            return False
        facts = {"version": VERSION, "data": self.data, "columns": self.columns}
        storage.write_json(storage.join(self.folder, MANIFEST), {**facts, "files": complete})
        return True


def _shown(value: Any) -> str:
    return "unset" if value is None else f"{json.dumps(value, ensure_ascii=False):.120}"
