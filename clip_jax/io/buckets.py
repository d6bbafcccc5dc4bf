"""Paths in buckets: `gs://bucket/run` and `s3://bucket/run` with the methods of `pathlib.Path`.

Object stores have no folders, renames or appends, but every object is written whole or not at all.
A `BucketPath` offers what works there. Code that needs more asks `is_bucket` and has two ways.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob as glob_lib
import io
import os
import shlex
import stat as stat_lib
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, TypeVar

from clip_jax.errors import UserError
from clip_jax.io.file_systems import is_remote, load_fsspec, system_of
from clip_jax.io.range_file import RangeFile
from clip_jax.io.retries import MissingError, RequestError, retry

T = TypeVar("T")
STORES = ("gs", "s3")
BUCKETS = tuple(f"{store}://" for store in STORES)  # what addresses in buckets start with
AHEAD = 8 << 20  # bytes that sequential reading of an object fetches at a time
_LOG_IN = {
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}


def as_path(path: str | Path) -> Path:
    """Returns a path on disk, with `~` expanded, or in a bucket (`gs://…`, `s3://…`).

    Raises:
      UserError: the path is in another store, names no bucket, or is in the home of an unknown
        user.
    """
    if isinstance(path, BucketPath):
        return path
    text = str(path)
    if not is_remote(text):
        try:
            return Path(path).expanduser()
        except RuntimeError:
            raise UserError(f"{text!r:.200} is in the home of an unknown user") from None
    store, _, inner = text.partition("://")
    if store not in STORES or not inner.strip("/"):
        raise UserError(
            f"{text!r:.200} is no folder that can be written: give a folder on disk, "
            "gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
        )
    _set_up(store)
    return BucketPath(text)


def on_disk(path: str | Path) -> Path:
    """Returns a path on disk, with `~` expanded.

    Raises:
      UserError: the path is in a bucket or on a server.
    """
    if is_remote(str(path)):
        raise UserError(f"{path!s:.200}: give a path on disk, and copy what is in it")
    return as_path(path)


def is_bucket(path: Path) -> bool:
    """Returns whether a path is in a bucket, and not on disk."""
    return isinstance(path, BucketPath)


def copy_command(path: Path) -> str:
    """Returns the command by which a user copies a file of a bucket into the current folder."""
    tool = "gcloud storage" if str(path).startswith("gs://") else "aws s3"
    return f"{tool} cp {shlex.quote(str(path))} ."


def is_file(path: Path) -> bool:
    """Returns whether there is a file; False, too, for a name that no file can have."""
    return path.is_file() if is_bucket(path) else os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Returns whether there is a folder; False, too, for a name that no folder can have."""
    return path.is_dir() if is_bucket(path) else os.path.isdir(path)


def _set_up(store: str) -> None:
    """Makes all users of fsspec in this process, orbax and JAX among them, see fresh listings."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks for each bucket
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
    load_fsspec()
    from fsspec.config import conf

    conf.setdefault(store, {}).setdefault("use_listings_cache", False)


def check_writable(path: Path) -> None:
    """Writes an object into a bucket and removes it, so that mistakes show before a long start.

    Raises:
      UserError: the bucket does not exist, nobody is logged in, a package is missing, or the
        account may not write.
    """
    if not is_bucket(path):
        return
    store, bucket = str(path).partition("://")[0], path.parts[1]
    system_of(str(path))  # whose package may be missing
    probe = path / f".can_be_written_{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no bucket {store}://{bucket}: create it first") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): log in to an account that may read and "
            f"write objects there ({_LOG_IN[store]})"
        ) from None


class BucketPath(PosixPath):
    """A path in a bucket. Its methods raise `OSError`s as those of paths on disk do.

    Requests are retried (`retries`). Folders exist as long as there is an object below them.
    """

    def __str__(self) -> str:
        return f"{self.parts[0]}//{'/'.join(self.parts[1:])}"

    def __fspath__(self) -> str:
        return str(self)

    def _request(self, request: Callable[[Any, str], T]) -> T:
        """Makes a request with the file system and this path's address."""
        address = str(self)
        system = system_of(address)
        try:
            return retry(address, lambda: request(system, address))
        except MissingError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
        except RequestError as error:
            raise OSError(errno.EIO, error.reason, address) from None

    def _info(self) -> dict[str, Any] | None:
        """Returns what the store says about an object or a folder; None if there is neither."""
        try:
            info: dict[str, Any] = self._request(lambda system, address: system.info(address))
        except FileNotFoundError:
            return None
        return info

    def exists(self, **_: Any) -> bool:
        """Returns whether there is an object of this name, or one below it."""
        return self._info() is not None

    def is_file(self, **_: Any) -> bool:
        """Returns whether there is an object of this name."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self, **_: Any) -> bool:
        """Returns whether there is an object below this name."""
        return (self._info() or {}).get("type") == "directory"

    def is_symlink(self) -> bool:
        """Returns False."""
        return False

    def absolute(self) -> BucketPath:
        """Returns the path itself."""
        return self

    def expanduser(self) -> BucketPath:
        """Returns the path itself."""
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        """Returns the path itself."""
        return self

    def stat(self, **_: Any) -> os.stat_result:
        """Returns the size and the type; the other numbers are 0."""
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        kind = stat_lib.S_IFREG if info["type"] == "file" else stat_lib.S_IFDIR
        return os.stat_result((kind, 0, 0, 0, 0, 0, int(info.get("size") or 0), 0, 0, 0))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing."""

    def iterdir(self) -> Generator[Any, None, None]:
        """Yields the paths directly below this one."""
        entries = self._request(lambda system, address: system.ls(address, detail=False))
        names = {entry.rstrip("/").rpartition("/")[2] for entry in entries}
        yield from (self / name for name in sorted(names - {"", self.name}))

    def glob(self, pattern: str, **_: Any) -> Generator[Any, None, None]:
        """Yields the paths below this one that a pattern without `**` matches."""
        first, _slash, rest = str(pattern).partition("/")
        names = [self / first]
        if glob_lib.has_magic(first):
            children = list(self.iterdir()) if self.is_dir() else []
            names = [path for path in children if fnmatch.fnmatchcase(path.name, first)]
        for path in names:
            if rest:
                yield from path.glob(rest)
            elif path.exists():
                yield path

    def files_below(self) -> dict[str, int]:
        """Returns the sizes of all objects below this path, by their names relative to it."""
        entries = self._request(lambda system, address: system.find(address, detail=True))
        start = "/".join(self.parts[1:]) + "/"
        names = {name.partition("://")[2] or name: info for name, info in entries.items()}
        sizes = {name.removeprefix(start): info["size"] for name, info in names.items()}
        return {name: int(size or 0) for name, size in sizes.items() if name}

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Opens an object for reading bytes; `files.atomic_write` writes objects."""
        if mode != "rb":
            raise io.UnsupportedOperation(f"{self} can only be opened for reading bytes")
        return io.BufferedReader(_ranges(self), AHEAD)

    def read_range(self, start: int, end: int) -> bytes:
        """Returns some bytes of an object."""
        content: bytes = self._request(
            lambda system, address: system.cat_file(address, start=start, end=end)
        )
        return content

    def read_bytes(self) -> bytes:
        """Returns the content of an object."""
        content: bytes = self._request(lambda system, address: system.cat_file(address))
        return content

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:
        """Returns the content of an object as text."""
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: Any) -> int:
        """Writes an object, whole or not at all."""
        content = bytes(data)
        self._request(lambda system, address: system.pipe_file(address, content))
        return len(content)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        """Writes text as an object, whole or not at all."""
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, content: bytes) -> None:
        """Writes an object that must not exist. Of several writers at most one succeeds.

        Raises:
          FileExistsError: it exists. That may be so because a request was answered too late and
            repeated: the content tells whose it is.
        """

        def request(system: Any, address: str) -> None:
            try:
                system.pipe_file(address, content, mode="create")
            except Exception as error:  # of another type in each package
                code = getattr(error, "code", getattr(error, "status", None))
                if code in (409, 412) or "PreconditionFailed" in f"{error!r} {error.__cause__!r}":
                    raise FileExistsError(errno.EEXIST, "it exists", address) from None
                raise

        self._request(request)

    @contextlib.contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Opens a temporary file that becomes the object when the block ends without an error."""
        with tempfile.NamedTemporaryFile() as file:
            yield file  # type: ignore[misc]  # it has the methods of a binary file
            file.flush()
            self._request(lambda system, address: system.put_file(file.name, address))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        try:
            self._request(lambda system, address: system.rm_file(address))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self, first: str = "") -> None:
        """Removes all objects below this path, beginning with the one of a name."""
        names = self.files_below() if self.exists() else {}
        for name in sorted(names, key=lambda name: name != first):
            (self / name).unlink(missing_ok=True)

    def rename(self, target: Any) -> Any:
        """Copies all objects below this path to another, and then removes them."""
        for name in self.files_below():
            (self / name)._copy(target / name)
        self.remove_tree()
        return target

    def _copy(self, target: Path) -> None:
        self._request(lambda system, address: system.cp_file(address, str(target)))


def _ranges(path: BucketPath) -> RangeFile:
    """Returns an object of a bucket as a file that is read."""

    def read(at: int, count: int) -> bytes:
        content = path.read_range(at, at + count)
        if len(content) != count:
            raise OSError(errno.EIO, "the store gave too few bytes", str(path))
        return content

    return RangeFile(path.stat().st_size, read)


class Mirror:
    """A folder that is written by code that knows only files on disk.

    On disk it is the folder itself. For a bucket it is a temporary folder whose files are uploaded.

    Args:
      folder: the folder.

    Attributes:
      path: the folder on disk.
      is_copy: whether it is a temporary one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.is_copy = is_bucket(folder)
        self._temporary = tempfile.TemporaryDirectory() if self.is_copy else None
        self.path = Path(self._temporary.name) if self._temporary else folder
        self._sizes: dict[str, int] = {}
        self.path.mkdir(parents=True, exist_ok=True)

    def upload(self) -> None:
        """Uploads the files that have grown since they were uploaded.

        Raises:
          OSError: the bucket cannot be written.
        """
        for path in sorted(self.path.iterdir()) if self.is_copy else ():
            content = path.read_bytes()
            if len(content) != self._sizes.get(path.name):
                (self._folder / path.name).write_bytes(content)
                self._sizes[path.name] = len(content)

    def close(self) -> None:
        """Uploads what is left, and removes the temporary folder."""
        try:
            self.upload()
        finally:
            if self._temporary:
                self._temporary.cleanup()
