"""Checksums of the files of a folder, which detect accidental damage.

The checksum is CRC-32. It detects every flipped bit and every burst of up to 32 bits, misses one in
four billion of other damages, and costs a fifth of SHA-256 (docs/benchmarks.md). It does not prove
who wrote a file.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.io.buckets import BucketPath, is_bucket
from clip_jax.io.files import JsonObject

NAME = "digests.json"
_MAX_LIST = 64 << 20  # bytes of the file of digests
_CHUNK = 4 << 20  # bytes read at a time
_THREADS = 4
_REQUESTS = 16  # threads that read from a bucket


def write(folder: Path, step: int, later: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Writes the digests of all files below a folder, and the checkpoint's step, into the folder.

    Args:
      folder: the folder.
      step: the checkpoint's step.
      later: the content of files that will be written into the folder afterwards.

    Raises:
      OSError: a file cannot be read, or the disk is full.
    """
    paths = sorted(_files(folder))
    digests = dict(zip(paths, _digests(folder, paths), strict=True))
    digests |= {name: [len(content), zlib.crc32(content)] for name, content in later.items()}
    record = {"step": step, "files": digests}
    with files.atomic_write(folder / NAME) as file:
        file.write(_serialized(record))


def find_damage(folder: Path, step: int) -> str:
    """Returns what is wrong with a folder that `write` was called on, or "" if it is intact.

    Files that file managers and network file systems leave behind are ignored.

    Args:
      folder: the folder.
      step: the step that `write` was called with.
    """
    try:
        raw = (folder / NAME).read_bytes() if not _is_too_large(folder / NAME) else b""
        recorded, present = _parsed(raw), set(_files(folder))
    except UserError as error:
        return str(error)
    except OSError as error:
        return _unreadable(error, folder)
    if recorded is None:
        return f"{NAME} is damaged"
    if recorded["step"] != step:
        return f"it is that of step {recorded['step']}"
    expected = recorded["files"]
    if missing := sorted(expected.keys() - present):
        return f"{missing[0]} is missing"
    if extra := sorted(name for name in present - expected.keys() if not _is_litter(name)):
        return f"{extra[0]} was not written with it"
    paths = sorted(expected)
    try:
        for path, digest in zip(paths, _digests(folder, paths), strict=True):
            if digest != expected[path]:
                return f"{path} holds other bytes than were written"
    except OSError as error:
        return _unreadable(error, folder)
    return ""


def _is_too_large(path: Path) -> bool:
    return path.stat().st_size > _MAX_LIST


def _unreadable(error: OSError, folder: Path) -> str:
    name = str(error.filename or "")
    where = os.path.relpath(name, folder) if name else "a file"
    return f"{where} cannot be read ({error.strerror})"


def _files(folder: Path) -> Iterator[str]:
    """Yields the files below a folder, relative to it, except the file of digests.

    Raises:
      UserError: something is neither a plain file nor a folder.
    """
    if isinstance(folder, BucketPath):
        yield from (name for name in folder.files_below() if name != NAME)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from (f"{entry.name}/{path}" for path in _files(Path(entry.path)))
            elif not entry.is_file(follow_symlinks=False):
                raise UserError(f"{entry.name} is no plain file")
            elif entry.name != NAME:
                yield entry.name


def _is_litter(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(("._", ".nfs")) or name in (".DS_Store", "Thumbs.db", "desktop.ini")


def _digests(folder: Path, paths: Iterable[str]) -> Iterator[list[int]]:
    """Yields the size and checksum of each file, in order; several threads read."""
    with ThreadPoolExecutor(_REQUESTS if is_bucket(folder) else _THREADS) as pool:
        yield from pool.map(lambda path: _digest(folder / path), paths)


def _digest(path: Path) -> list[int]:
    size, checksum, buffer = 0, 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum = zlib.crc32(buffer[:count], checksum)  # releases the GIL
            size += count
    return [size, checksum]


def _serialized(record: JsonObject) -> bytes:
    """Returns the record as JSON, with a checksum of its own."""
    body = json.dumps(record, sort_keys=True)
    return json.dumps(
        {"checksum": zlib.crc32(body.encode()), "of": record}, sort_keys=True
    ).encode()


def _parsed(raw: bytes) -> JsonObject | None:
    """Returns the record that `_serialized` turned into exactly these bytes, or None."""
    try:
        record = json.loads(raw)["of"]
        return record if _serialized(record) == raw else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
