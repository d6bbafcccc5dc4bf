"""The file that locks a run's folder: on disk, and in a bucket.

It contains a record that names the process. A counter shows other hosts that the process exists.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Protocol

from clip_jax.errors import UserError
from clip_jax.io.buckets import BucketPath
from clip_jax.io.files import JsonObject

NAME = "in_use.json"
_MAX_BYTES = 1 << 14


class LockFile(Protocol):
    """The lock of a folder.

    Attributes:
      path: the file of the record.
    """

    path: Path

    def read(self) -> JsonObject | None:
        """Reads the record.

        The result is empty if the file is damaged or being written, and None if there is none.
        """

    def beats(self, record: JsonObject) -> Any:
        """Returns something that changes when the owner of a record counts."""

    def create(self, record: JsonObject) -> bool:
        """Writes the file if there is none; returns whether this process wrote it."""

    def count(self, record: JsonObject, beats: int) -> None:
        """Writes the counter of a record, unless the file is now another trainer's."""

    def remove(self) -> None:
        """Removes the file."""

    def forget(self, record: JsonObject) -> None:
        """Removes what the owner of a record wrote beside the file."""


def lock_file(workdir: Path) -> LockFile:
    """Returns the lock of a run's folder."""
    if isinstance(workdir, BucketPath):
        return _BucketLockFile(workdir / NAME)
    return _DiskLockFile(workdir / NAME)


class _DiskLockFile:
    """A file on disk, whose counter is written in place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> JsonObject | None:
        try:
            # not a dangling link, or a pipe that would block
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise UserError(f"{self.path} is no plain file: remove it")
            with open(self.path, "rb") as file:
                raw = file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None
        return _parsed(raw) or {}

    def beats(self, record: JsonObject) -> Any:
        return record.get("beats")

    def create(self, record: JsonObject) -> bool:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(_serialized(record))
            file.flush()
            os.fsync(file.fileno())
        return True

    def count(self, record: JsonObject, beats: int) -> None:
        with open(self.path, "r+b") as file:
            current = _parsed(file.read(_MAX_BYTES))
            if current and current.get("token") == record["token"]:
                file.seek(0)
                file.write(_serialized({**record, "beats": beats}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def forget(self, record: JsonObject) -> None:
        pass


class _BucketLockFile:
    """An object that is created on condition that there is none, and never written again.

    The counter is an object of its own, so that a trainer that counts cannot write over the record
    of another that has just taken the folder.
    """

    def __init__(self, path: BucketPath) -> None:
        self.path: Path = path
        self._object = path

    def read(self) -> JsonObject | None:
        try:
            with self._object.open("rb") as file:
                return _parsed(file.read(_MAX_BYTES)) or {}
        except FileNotFoundError:
            return None

    def _counter(self, record: JsonObject) -> BucketPath:
        token = str(record.get("token"))
        return self._object.with_name(f"in_use.{token if token.isalnum() else ''}.beats")

    def beats(self, record: JsonObject) -> Any:
        try:
            return self._counter(record).read_bytes()
        except FileNotFoundError:
            return b""

    def create(self, record: JsonObject) -> bool:
        try:
            self._object.create(_serialized(record))
        except FileExistsError:
            # perhaps by this process, if the store's answer was late and the request repeated
            return (self.read() or {}).get("token") == record["token"]
        return True

    def count(self, record: JsonObject, beats: int) -> None:
        self._counter(record).write_bytes(str(beats).encode())

    def remove(self) -> None:
        if record := self.read():
            self.forget(record)
        self._object.unlink(missing_ok=True)

    def forget(self, record: JsonObject) -> None:
        self._counter(record).unlink(missing_ok=True)


def _serialized(record: JsonObject) -> bytes:
    """Returns the record as JSON, of the same length for any value of the counter."""
    return json.dumps({**record, "beats": f"{record['beats']:012}"}).encode() + b"\n"


def _parsed(raw: bytes) -> JsonObject | None:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
