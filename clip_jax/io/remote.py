"""Bytes here or on the other side of a network: gs://, s3://, http(s):// and all that fsspec knows.

A local path costs no more than the file. What is far away is read in ranges, and asked for again
where an answer fails, is late or short; wrong bytes are never given.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from clip_jax.errors import UserError, redacted
from clip_jax.io import files

AHEAD = 8 << 20  # bytes that a file read in order fetches at a time
ATTEMPTS = 6
PATIENCE = 120.0  # seconds, after which nothing is tried again
FIRST_PAUSE = 0.5  # seconds; each is up to twice the one before
SLOWEST = 256 << 10  # bytes a second, below which an answer is late
LATE = 30.0  # seconds, for the first byte
_REDIRECTS = "CLIP_JAX_REDIRECTS"  # the environment reaches processes that read for this one
_TOGETHER = 64  # questions asked at once
_LISTED = 16  # files of a folder, from which one list of it is quicker than a question for each
_REMOTE = re.compile(r"([a-z][a-z0-9+.-]+)://")
_EXTRAS = ("http", "https", "s3", "s3a", "gs", "gcs")
_TAGS = ("ETag", "etag", "generation", "Last-Modified", "LastModified", "mtime", "created")

T = TypeVar("T")
_jitter = random.Random()
_systems: dict[tuple[int, str, str], Any] = {}


class State(NamedTuple):
    """What changes when a file does: its size in bytes, and its version or time."""

    size: int
    tag: str


class MissingError(UserError):
    """There is no such file."""


def is_remote(path: str) -> bool:
    """Whether a path names what is not in this machine's file system: `gs://bucket/x`."""
    return bool(_REMOTE.match(path))


def shown(path: str) -> str:
    """A path as a line may show it: without the password and the signature of a URL."""
    return redacted(path)


@functools.cache
def _fsspec() -> Any:
    import fsspec
    import fsspec.asyn

    # a lock that another thread held during a fork would be held for ever
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)
    return fsspec


def _system(path: str) -> Any:
    """The file system of a remote path: one for all threads, where it can be, and never one of
    another process, as what a fork carries over has no thread that answers.
    """
    fsspec = _fsspec()
    protocol = _REMOTE.match(path)[1]  # type: ignore[index]  # only remote paths come here
    try:
        kind = fsspec.get_filesystem_class(protocol)
        options = kind._get_kwargs_from_urls(path)
        if protocol in ("http", "https"):
            options |= {"client_kwargs": {"trace_configs": [_redirects()]}}
        if not kind.async_impl:
            return fsspec.filesystem(protocol, **options)
        shown_options = {k: v for k, v in options.items() if k != "client_kwargs"}
        key = (os.getpid(), protocol, repr(shown_options))
        if key not in _systems:
            _systems.setdefault(key, kind(**options, skip_instance_cache=True))
        return _systems[key]
    except ImportError as error:
        how = "pip install 'clip_jax[remote]'" if protocol in _EXTRAS else "pip install it"
        why = " ".join(str(error).split())
        raise UserError(f"{shown(path)} needs a package that is missing ({why}): {how}") from None
    except Exception as error:  # of any file system that may be installed
        raise UserError(f"{shown(path)} cannot be reached ({_why(error)})") from error


def allow_redirects(sites: Iterable[str]) -> None:
    """Lets web servers send this process, and those that it starts, on to other sites.

    sites: `hf.co` for it and all below it; `any` for all.
    """
    os.environ[_REDIRECTS] = ",".join(sites)


def _redirects() -> Any:
    """What aiohttp calls before it follows a redirect: one to another site ends in an error."""
    import aiohttp
    from yarl import URL

    async def check(_: Any, __: Any, params: Any) -> None:
        headers = params.response.headers
        target = params.url.join(URL(headers.get("Location") or headers.get("URI") or ""))
        allowed = os.environ.get(_REDIRECTS, "").replace(",", " ").split()
        if not (_same_site(params.url, target) or any(_is_below(target.host, s) for s in allowed)):
            raise UserError(
                f"{shown(str(params.url))} redirects to another site, {target.scheme}://"
                f"{target.host}:{target.port}: name the files there, or allow it by "
                f"config.data.redirects=({str(target.host)!r},)"
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    return trace


def _same_site(old: Any, new: Any) -> bool:
    """Whether a URL is of the same host as another, or one above or below it, and as safe."""
    related = _is_below(new.host, old.host) or _is_below(old.host, new.host)
    same_port = old.port == new.port and old.scheme == new.scheme
    upgraded = (old.scheme, old.port, new.scheme, new.port) == ("http", 80, "https", 443)
    return related and (same_port or upgraded)


def _is_below(host: str | None, site: str | None) -> bool:
    if not host or not site:
        return False
    host, site = host.lower(), site.lower()
    below = host.endswith(f".{site}") and "." in site and not site.replace(".", "").isdigit()
    return site == "any" or host == site or below


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _why(error: BaseException) -> str:
    if isinstance(status := _status(error), int):
        return f"HTTP {status}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _status(error: BaseException) -> int | None:
    found = getattr(error, "status", None) or getattr(error, "code", None)
    return found if isinstance(found, int) else None


def _for_good(error: BaseException) -> bool:
    """Whether asking again would give the same."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 425, 429)
    given_up = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
    refused = "credential" in type(error).__name__.lower() or str(error).startswith("Forbidden")
    return refused or isinstance(error, (*given_up, NotImplementedError, ValueError, TypeError))


def _patiently(path: str, act: Callable[[], T]) -> T:
    """What `act` gives, tried again with ever longer pauses while that may help.

    Raises:
      MissingError: there is no such file.
      UserError: it cannot be had.
    """
    end = time.monotonic() + PATIENCE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return act()
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) or _status(error) in (404, 410):
                raise MissingError(f"no file {shown(path)}") from None
            pause = FIRST_PAUSE * 2 ** (attempt - 1) * _jitter.uniform(0.5, 1)
            if _for_good(error):
                raise UserError(f"{shown(path)} cannot be read ({_why(error)})") from None
            if attempt == ATTEMPTS or time.monotonic() + pause > end:
                raise UserError(
                    f"{shown(path)} cannot be read: {_why(error)} at attempt {attempt}, the last"
                ) from None
        time.sleep(pause)
    raise AssertionError


def _run(system: Any, job: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of a coroutine of a file system, in the thread that asks."""

    async def timed() -> T:
        return await asyncio.wait_for(job, seconds)

    return _fsspec().asyn.sync(system.loop, timed)


async def _answer(system: Any, path: str, first: int, last: int, tag: str) -> tuple[State, bytes]:
    """Bytes `first` to `last` of a file by HTTP, and its state.

    fsspec would take the whole file of a server that ignores ranges for the part.
    """
    options = dict(system.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    headers["Range"] = f"bytes={first}-{last}"
    session = await system.set_session()
    async with session.get(system.encode_url(path), headers=headers, **options) as answer:
        where = answer.headers.get("Content-Range", "")
        if answer.status == 416 and where.replace(" ", "") == "bytes*/0":
            return State(0, ""), b""
        answer.raise_for_status()
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", where)
        if answer.status != 206 or not found or answer.headers.get("Content-Encoding"):
            raise UserError(
                f"{shown(path)}: its server gives no parts of files (it answers a range with "
                f"HTTP {answer.status}): copy the files to where ranges can be read"
            )
        begin, end, total = map(int, found.groups())
        state = State(total, _version(answer.headers))
        if tag and state.tag != tag:
            raise UserError(f"{shown(path)} changed since the run began")
        if begin != first or end < min(last, total - 1) or end > last:
            raise EOFError(f"asked for bytes {first}-{last}, given {where}")
        return state, await answer.content.readexactly(end - begin + 1)


def _version(info: Any) -> str:
    """The mark of a file's version among what is known of it."""
    return next((str(info[tag]).removeprefix("W/") for tag in _TAGS if info.get(tag)), "")


def state(path: str) -> State:
    """Of a file, here or far away.

    Raises:
      UserError: there is none, or nothing can be known of it.
    """
    if not is_remote(path):
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None
        return State(stat.st_size, str(stat.st_mtime_ns))
    system = _system(path)
    if _is_http(path):
        return _patiently(path, lambda: _run(system, _answer(system, path, 0, 0, ""), LATE))[0]
    info = _patiently(path, lambda: system.info(path))
    if info.get("type") != "file":
        raise UserError(f"{path} is no file")
    return State(int(info["size"]), _version(info))


def states(paths: Sequence[str]) -> list[State]:
    """`state` of each; those far away are asked for together."""
    far = [path for path in paths if is_remote(path)]
    known: dict[str, State] = {}
    for folder, count in Counter(path.rpartition("/")[0] for path in far).items():
        if count >= _LISTED and not _is_http(folder):
            known |= _listed(folder)
    if rest := [path for path in dict.fromkeys(far) if path not in known]:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            known |= zip(rest, pool.map(state, rest), strict=True)
    return [known[path] if path in known else state(path) for path in paths]


def _listed(folder: str) -> dict[str, State]:
    system = _system(folder)
    system.invalidate_cache()
    found = _patiently(folder, lambda: system.ls(folder, detail=True))
    return {
        f"{folder}/{info['name'].rpartition('/')[2]}": State(int(info["size"]), _version(info))
        for info in found
        if info["type"] == "file"
    }


def identity(paths: Sequence[str], states: Sequence[State]) -> str:
    """What changes when one of some files does: a hash of their places, sizes and versions."""
    where = [path if is_remote(path) else os.path.abspath(path) for path in paths]
    content = json.dumps([where, [tuple(one) for one in states]])
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]


def read(path: str, at: int, size: int, tag: str = "") -> bytes:
    """`size` bytes from `at` of a remote file; `tag`, where given, is the one it must still have.

    Raises:
      UserError: they cannot be had, the file is shorter, or it is another now.
    """
    if size <= 0:
        return b""
    system, seconds = _system(path), LATE + size / SLOWEST

    def act() -> bytes:
        if _is_http(path):
            found = _run(system, _answer(system, path, at, at + size - 1, tag), seconds)[1]
        elif system.async_impl:
            found = _run(system, system._cat_file(path, start=at, end=at + size), seconds)
        else:
            found = system.cat_file(path, start=at, end=at + size)
        if len(found) != size:
            raise EOFError(f"{size:,} bytes asked for, {len(found):,} given")
        return found

    return _patiently(path, act)


def whole(path: str, most: int) -> bytes:
    """A remote file of at most `most` bytes.

    Raises:
      UserError: it cannot be had, or is longer.
    """
    if _is_http(path):
        system = _system(path)
        return _patiently(path, lambda: _run(system, _entire(system, path, most), PATIENCE))
    size = state(path).size
    if size > most:
        raise UserError(_over(path, most))
    return read(path, 0, size)


def _over(path: str, most: int) -> str:
    return f"{shown(path)} is over {most >> 20} MiB"


async def _entire(system: Any, path: str, most: int) -> bytes:
    """A file by HTTP, from a server that need not know ranges."""
    session, found = await system.set_session(), bytearray()
    async with session.get(system.encode_url(path), **system.kwargs) as answer:
        answer.raise_for_status()
        async for chunk in answer.content.iter_chunked(1 << 16):
            found += chunk
            if len(found) > most:
                raise UserError(_over(path, most))
    return bytes(found)


class _Ranges(io.RawIOBase):
    """A remote file as a file."""

    def __init__(self, path: str) -> None:
        self._path, self._state, self._at = path, state(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._state.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, into: Any) -> int:
        count = max(0, min(len(into), self._state.size - self._at))
        tag = self._state.tag if _is_http(self._path) else ""
        into[:count] = read(self._path, self._at, count, tag)
        self._at += count
        return count


def open_file(path: str) -> BinaryIO:
    """A file to read, mostly in order: of a remote one `AHEAD` bytes are fetched at a time.

    Raises:
      UserError: a remote one cannot be had, now or at any read.
      OSError: a local one cannot be opened.
    """
    if not is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(_Ranges(path), AHEAD)


def write(path: str, content: bytes) -> None:
    """A file, whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    if not is_remote(path):
        with files.whole(Path(path)) as file:
            file.write(content)
        return
    try:
        if _is_http(path):
            raise PermissionError("web servers are only read from")
        _system(path).pipe_file(path, content)
    except Exception as error:
        raise OSError(f"{shown(path)} cannot be written ({_why(error)})") from error


def glob(pattern: str) -> list[str]:
    """The remote files that a pattern matches, in order.

    Raises:
      UserError: its protocol lists no files.
    """
    system = _system(pattern)
    system.invalidate_cache()
    return sorted(_named(pattern, _patiently(pattern, lambda: system.glob(pattern))))


def is_folder(path: str) -> bool:
    """Whether a remote path is a folder: by HTTP only its last slash says so."""
    if path.endswith("/") or _is_http(path):
        return path.endswith("/")
    system = _system(path)
    return bool(_patiently(path, lambda: system.isdir(path)))


def below(folder: str) -> dict[str, State]:
    """All files of a remote folder, relative to it, in order.

    Raises:
      UserError: its protocol lists no files.
    """
    system, start = _system(folder), folder.rstrip("/") + "/"
    system.invalidate_cache()
    found = _patiently(folder, lambda: system.find(start, detail=True))
    inner = {}
    for path, info in zip(_named(folder, found), found.values(), strict=True):
        name = path.removeprefix(start)
        if name != path and ".." not in name.split("/"):
            inner[name] = State(int(info.get("size") or 0), _version(info))
    return dict(sorted(inner.items()))


def _named(like: str, found: Iterable[str]) -> Iterator[str]:
    """What a file system found, with the protocol that it may have left out."""
    protocol = like.partition("://")[0]
    for path in found:
        yield path if is_remote(path) else f"{protocol}://{path.lstrip('/')}"
