"""Reading and writing files that are local or remote: gs://, s3://, http(s):// and all of fsspec.

A local path costs no more than the file itself. Remote files are read in ranges. A request is
retried if it fails, is late or returns too little; wrong bytes are never returned.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from clip_jax.errors import UserError, redacted
from clip_jax.io import files, retries
from clip_jax.io.file_systems import is_http, is_remote, run, system_of
from clip_jax.io.range_file import RangeFile
from clip_jax.io.retries import MissingError, reason, retry

__all__ = [
    "MissingError",
    "State",
    "glob",
    "identity",
    "is_folder",
    "is_remote",
    "list_files",
    "open_file",
    "read_range",
    "read_whole",
    "redact",
    "state",
    "states",
    "write",
]

AHEAD = 8 << 20  # bytes that sequential reading of a file fetches at a time
SLOWEST = 256 << 10  # bytes a second, below which an answer is late
LATE = 30.0  # seconds, for the first byte
_CONCURRENT = 64  # requests at the same time
_LISTED = 16  # files of a folder, from which on one listing is faster than a request for each
_TAGS = ("ETag", "etag", "generation", "Last-Modified", "LastModified", "mtime", "created")


class State(NamedTuple):
    """The state of a file, which changes when the file does.

    Attributes:
      size: in bytes.
      tag: the version, or the time of the last change.
    """

    size: int
    tag: str


def redact(path: str) -> str:
    """Returns a path without the password and the signature of a URL, for messages."""
    return redacted(path)


async def _http_range(
    system: Any, path: str, first: int, last: int, tag: str
) -> tuple[State, bytes]:
    """Returns the state of a file and its bytes `first` to `last`, both included, read by HTTP.

    fsspec does not notice a server that ignores ranges and sends the whole file.
    """
    options = dict(system.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    headers["Range"] = f"bytes={first}-{last}"
    session = await system.set_session()
    async with session.get(system.encode_url(path), headers=headers, **options) as answer:
        content_range = answer.headers.get("Content-Range", "")
        if answer.status == 416 and content_range.replace(" ", "") == "bytes*/0":
            return State(0, ""), b""
        answer.raise_for_status()
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        if answer.status != 206 or not match or answer.headers.get("Content-Encoding"):
            raise UserError(
                f"{redact(path)}: its server gives no parts of files (it answers a range with "
                f"HTTP {answer.status}): copy the files to where ranges can be read"
            )
        begin, end, total = map(int, match.groups())
        state = State(total, _version(answer.headers))
        if tag and state.tag != tag:
            raise UserError(f"{redact(path)} changed since the run began")
        if begin != first or end < min(last, total - 1) or end > last:
            raise EOFError(f"asked for bytes {first}-{last}, given {content_range}")
        return state, await answer.content.readexactly(end - begin + 1)


def _version(info: Any) -> str:
    """Returns the version of a file from its metadata; empty if there is none."""
    return next((str(info[tag]).removeprefix("W/") for tag in _TAGS if info.get(tag)), "")


def state(path: str) -> State:
    """Returns the size and version of a local or remote file.

    Raises:
      UserError: there is no such file, or its state cannot be read.
    """
    if not is_remote(path):
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        return State(stat.st_size, str(stat.st_mtime_ns))
    system = system_of(path)
    if is_http(path):
        return retry(path, lambda: run(system, _http_range(system, path, 0, 0, ""), LATE))[0]
    info = retry(path, lambda: system.info(path))
    if info.get("type") != "file":
        raise UserError(f"{path} is no file")
    return State(int(info["size"]), _version(info))


def states(paths: Sequence[str]) -> list[State]:
    """Returns the state of each file; remote files are requested concurrently."""
    remote_paths = [path for path in paths if is_remote(path)]
    known: dict[str, State] = {}
    for folder, count in Counter(path.rpartition("/")[0] for path in remote_paths).items():
        if count >= _LISTED and not is_http(folder):
            known |= _list_states(folder)
    if rest := [path for path in dict.fromkeys(remote_paths) if path not in known]:
        with ThreadPoolExecutor(_CONCURRENT) as pool:
            known |= zip(rest, pool.map(state, rest), strict=True)
    return [known[path] if path in known else state(path) for path in paths]


def _list_states(folder: str) -> dict[str, State]:
    system = system_of(folder)
    system.invalidate_cache()
    entries = retry(folder, lambda: system.ls(folder, detail=True))
    return {
        f"{folder}/{info['name'].rpartition('/')[2]}": State(int(info["size"]), _version(info))
        for info in entries
        if info["type"] == "file"
    }


def identity(paths: Sequence[str], states: Sequence[State]) -> str:
    """Returns a hash of the paths, sizes and versions of files, which changes when a file does."""
    places = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    content = json.dumps([places, [tuple(state) for state in states]])
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]


def read_range(path: str, at: int, size: int, tag: str = "") -> bytes:
    """Reads a range of a remote file.

    Args:
      path: the file.
      at: the offset of the first byte.
      size: the number of bytes.
      tag: the version that the file must have; empty for any.

    Raises:
      UserError: the range cannot be read, the file is shorter, or it has changed.
    """
    if size <= 0:
        return b""
    system, seconds = system_of(path), LATE + size / SLOWEST

    def request() -> bytes:
        if is_http(path):
            content = run(system, _http_range(system, path, at, at + size - 1, tag), seconds)[1]
        elif system.async_impl:
            content = run(system, system._cat_file(path, start=at, end=at + size), seconds)
        else:
            content = system.cat_file(path, start=at, end=at + size)
        if len(content) != size:
            raise EOFError(f"{size:,} bytes asked for, {len(content):,} given")
        return content

    return retry(path, request)


def read_whole(path: str, most: int) -> bytes:
    """Reads a remote file of at most `most` bytes.

    Raises:
      UserError: the file cannot be read, or is larger.
    """
    if is_http(path):
        system = system_of(path)
        return retry(path, lambda: run(system, _http_whole(system, path, most), retries.PATIENCE))
    size = state(path).size
    if size > most:
        raise _too_large(path, most)
    return read_range(path, 0, size)


def _too_large(path: str, most: int) -> UserError:
    return UserError(f"{redact(path)} is over {most >> 20} MiB")


async def _http_whole(system: Any, path: str, most: int) -> bytes:
    """Reads a whole file by HTTP, also from a server that does not support ranges."""
    session, content = await system.set_session(), bytearray()
    async with session.get(system.encode_url(path), **system.kwargs) as answer:
        answer.raise_for_status()
        async for chunk in answer.content.iter_chunked(1 << 16):
            content += chunk
            if len(content) > most:
                raise _too_large(path, most)
    return bytes(content)


def _ranges(path: str) -> RangeFile:
    """Returns a remote file as a file object."""
    found = state(path)
    tag = found.tag if is_http(path) else ""
    return RangeFile(found.size, lambda at, count: read_range(path, at, count, tag))


def open_file(path: str) -> BinaryIO:
    """Opens a local or remote file for reading; a remote file is fetched `AHEAD` bytes at a time.

    Raises:
      UserError: a remote file cannot be read, now or at a later read.
      OSError: a local file cannot be opened.
    """
    if not is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(_ranges(path), AHEAD)


def write(path: str, content: bytes) -> None:
    """Writes a local or remote file completely or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    if not is_remote(path):
        with files.atomic_write(Path(path)) as file:
            file.write(content)
        return
    try:
        if is_http(path):
            raise PermissionError("web servers are only read from")
        system_of(path).pipe_file(path, content)
    except Exception as error:
        raise OSError(f"{redact(path)} cannot be written ({reason(error)})") from error


def glob(pattern: str) -> list[str]:
    """Returns the remote files that a pattern matches, sorted.

    Raises:
      UserError: the protocol cannot list files.
    """
    system = system_of(pattern)
    system.invalidate_cache()
    return sorted(_with_protocol(pattern, retry(pattern, lambda: system.glob(pattern))))


def is_folder(path: str) -> bool:
    """Returns whether a remote path is a folder; by HTTP, whether it ends in a slash."""
    if path.endswith("/") or is_http(path):
        return path.endswith("/")
    system = system_of(path)
    return bool(retry(path, lambda: system.isdir(path)))


def list_files(folder: str) -> dict[str, State]:
    """Returns the states of all files below a remote folder.

    Returns:
      A dict from paths relative to the folder to states, sorted.

    Raises:
      UserError: the protocol cannot list files.
    """
    system, start = system_of(folder), folder.rstrip("/") + "/"
    system.invalidate_cache()
    entries = retry(folder, lambda: system.find(start, detail=True))
    inner = {}
    for path, info in zip(_with_protocol(folder, entries), entries.values(), strict=True):
        name = path.removeprefix(start)
        if name != path and ".." not in name.split("/"):
            inner[name] = State(int(info.get("size") or 0), _version(info))
    return dict(sorted(inner.items()))


def _with_protocol(like: str, paths: Iterable[str]) -> Iterator[str]:
    """Yields paths of a file system, with the protocol of `like` where they lack one."""
    protocol = like.partition("://")[0]
    for path in paths:
        yield path if is_remote(path) else f"{protocol}://{path.lstrip('/')}"
