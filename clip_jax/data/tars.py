"""Random access to the image–text pairs of WebDataset tars, by an index built once per tar.

A sample is the run of members whose names agree up to the first dot: `0001.jpg`, `0001.txt`.
Each picture of a sample is a pair with the sample's text; `0001.a.png` and `0001.b.png` are two.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax import files
from clip_jax.data.pairs import Pair, PairError, parse_text
from clip_jax.data.paths import expand
from clip_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
TEXTS = (".json", ".txt")
MAX_MEMBER = 256 << 20
MAX_OPEN = 256  # files; a process may open 1,024 on many machines, and a data set have 40,000 tars
_BLOCK = 512
_VERSION = 2  # of the cached index


class Index(NamedTuple):
    """Where the pairs of one tar stand.

    spans: int64 [pairs, 5]: offset and size of the picture, of its text, and whether that is json.
    names: the pictures' names.
    """

    spans: np.ndarray
    names: np.ndarray


def _pairs(sample: list[tarfile.TarInfo]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    texts = [m for end in TEXTS for m in sample if m.name.lower().endswith(end)]
    if texts:
        yield from ((m, texts[0]) for m in sample if m.name.lower().endswith(IMAGES))


def _members(tar: tarfile.TarFile, length: int) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
            continue
        if member.offset_data + member.size > length:
            raise tarfile.ReadError(f"{member.name} is longer than the file")
        yield member


def _samples(members: Iterable[tarfile.TarInfo]) -> Iterator[list[tarfile.TarInfo]]:
    def key(member: tarfile.TarInfo) -> str:
        folder, slash, base = member.name.rpartition("/")
        return folder + slash + base.split(".", 1)[0]

    yield from (list(run) for _, run in itertools.groupby(members, key))


def scan(path: str) -> Index:
    """Read the headers of a tar.

    Raises:
      UserError: the file is missing, compressed, cut short, or holds no pair.
    """
    spans, names = [], []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in _samples(_members(tar, os.fstat(file.fileno()).st_size)):
                for image, text in _pairs(sample):
                    for member in (image, text):
                        if member.size > MAX_MEMBER or member.issparse():
                            raise UserError(f"{path}: {member.name} is sparse or over 256 MiB")
                    spans.append(
                        (
                            *(image.offset_data, image.size, text.offset_data, text.size),
                            text.name.lower().endswith(".json"),
                        )
                    )
                    names.append(image.name)
            # tarfile ends without a word at a header that it cannot read
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no end of archive at byte {tar.offset:,}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_hint(path)}") from None
    if not spans:
        raise UserError(
            f"{path} holds no pair: expected members such as 0001.jpg with 0001.txt or 0001.json"
        )
    return Index(np.array(spans, np.int64), np.array(names, np.str_))


def _hint(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return "gunzip it first: a compressed tar has no random access"
    return "it is cut short or not a tar: fetch the file again"


def _load(cached: Path) -> Index | None:
    try:
        with np.load(cached, allow_pickle=False) as file:
            found = Index(file["spans"], file["names"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    good = found.spans.dtype == np.int64 and found.names.dtype.kind == "U"
    return found if good and found.spans.shape == (found.names.size, 5) else None


def index(path: str) -> Index:
    """`scan(path)`, kept in the user's cache folder until the tar changes."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    state = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {_VERSION}"
    name = hashlib.sha256(state.encode(errors="surrogateescape")).hexdigest()[:32]
    cached = files.cache_folder("index") / f"{name}.npz"
    if found := _load(cached):
        return found
    built = scan(path)
    # a cache that cannot be written only costs the next start some seconds
    with contextlib.suppress(OSError), files.whole(cached) as file:
        np.savez(file, spans=built.spans, names=built.names)
    return built


class _Open:
    """A file open for reading, closed when the last reader has let go of it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False  # others may still read


class TarSource:
    """The pairs of the tars that a pattern names; `source[i]` reads the i-th.

    Raises:
      UserError: no such file, or a tar that cannot be read.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.paths = expand(pattern)
        self._indices = [index(path) for path in self.paths]
        self._starts = np.cumsum([0] + [len(i.spans) for i in self._indices])
        self._files: dict[int, _Open] = {}  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"TarSource({self.pattern!r}, {len(self):,} pairs)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _file(self, tar: int) -> _Open:
        with self._lock:
            file = self._files.pop(tar, None) or _Open(self.paths[tar])
            self._files[tar] = file
            if len(self._files) > MAX_OPEN:
                del self._files[next(iter(self._files))]
            return file

    def __getitem__(self, i: int) -> Pair:
        tar = int(np.searchsorted(self._starts, i, side="right")) - 1
        row = i - int(self._starts[tar])
        at, size, text_at, text_size, is_json = (int(n) for n in self._indices[tar].spans[row])
        file = self._file(tar)
        name = f"{self.paths[tar]}:{self._indices[tar].names[row]}"
        image = os.pread(file.number, size, at)
        text = os.pread(file.number, text_size, text_at)
        if len(image) < size or len(text) < text_size:
            raise PairError(
                "unreadable", f"{name} is cut short: the tar changed since the run began"
            )
        return Pair(image, parse_text(text, name, bool(is_json)), name)
