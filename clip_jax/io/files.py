"""Writing files completely or not at all, and reading small untrusted files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from clip_jax.errors import UserError
from clip_jax.io.buckets import BucketPath

MAX_JSON = 4 << 20  # bytes
JsonObject: TypeAlias = dict[str, Any]
_SAMPLES, _SAMPLE = 16, 4096  # blocks of a sampled digest, and their bytes


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that replaces `path` when the block ends without an error.

    Missing folders are made. Until the block ends, and after an error, `path` is unchanged.
    """
    if isinstance(path, BucketPath):
        with path.writing() as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder(name: str) -> Path:
    """Returns the folder where this user's processes cache results.

    Args:
      name: the kind of results.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "clip_jax" / name


def nearest_folder(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def try_writing(folder: Path) -> None:
    """Writes a file without a name into a folder, or into the nearest one above it that exists.

    Nothing is left behind.

    Raises:
      OSError: nothing can be written there.
    """
    with tempfile.TemporaryFile(dir=nearest_folder(folder), buffering=0) as file:
        file.write(b"x")


def sampled_digest(path: Path) -> str:
    """Returns a hash of a file's size and of blocks sampled evenly from its start to its end.

    It tells whether the file was replaced by another, however large both are, but not whether a
    single byte of a large file changed.

    Raises:
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:32]


def read_small(path: Path, most: int, what: str) -> bytes:
    """Reads a small plain file.

    Args:
      path: the file.
      most: the maximum size, in bytes.
      what: what the file should hold, for errors.

    Raises:
      UserError: there is no such file, it is not a plain file (a pipe or a device might never end),
        or it is too large.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no plain file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason})") from None
    if len(content) > most:
        raise UserError(f"{path} is over {most >> 20} MiB: that is no {what}")
    return content


def read_json(path: Path, most: int = MAX_JSON, what: str = "config") -> JsonObject:
    """Reads the object in a JSON file.

    Args:
      path: the file.
      most: the maximum size, in bytes.
      what: what the file should hold, for errors.

    Raises:
      UserError: there is no such plain file, it is too large, or it holds no JSON object.
    """
    return parse_json(read_small(path, most, what), str(path))


def parse_json(content: bytes, name: str) -> JsonObject:
    """Returns the object that JSON holds.

    Args:
      content: the JSON.
      name: where it was read, for errors.

    Raises:
      UserError: it is no JSON, or holds something else.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} must hold an object, not a {type(values).__name__}")
    return values
