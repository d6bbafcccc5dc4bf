"""Random access to the image–text pairs of WebDataset tars, by an index built once per tar.

A sample is the run of members whose names agree up to the first dot: `0001.jpg`, `0001.txt`.
Each picture of a sample is a pair with the sample's text; `0001.a.png` and `0001.b.png` are two.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.paths import expand
from clip_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
TEXTS = (".json", ".txt")
MAX_MEMBER = 256 << 20


class Pair(NamedTuple):
    """One picture's bytes and what is written about it. `name` says where it stands."""

    image: bytes
    text: dict[str, Any]
    name: str


class Index(NamedTuple):
    """Where the pairs of one tar stand: int64 [pairs, 4] of image and text (offset, size), names."""

    spans: np.ndarray
    names: np.ndarray


def _pairs(sample: list[tarfile.TarInfo]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    texts = [m for end in TEXTS for m in sample if m.name.lower().endswith(end)]
    if texts:
        yield from ((m, texts[0]) for m in sample if m.name.lower().endswith(IMAGES))


def _samples(tar: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    sample: list[tarfile.TarInfo] = []
    key = None
    for member in tar:
        if not member.isfile():
            continue
        folder, _, base = member.name.rpartition("/")
        here = (folder, base.split(".", 1)[0])
        if here != key and sample:
            yield sample
            sample = []
        key = here
        sample.append(member)
    if sample:
        yield sample


def scan(path: str) -> Index:
    """Read the headers of a tar.

    Raises:
      UserError: the file is missing, compressed, cut short, or holds no pair.
    """
    spans, names = [], []
    length = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for sample in _samples(tar):
                for member in sample:
                    if member.offset_data + member.size > length:
                        raise UserError(
                            f"{path} is cut short in {member.name}: fetch the file again"
                        )
                    if member.size > MAX_MEMBER or member.issparse():
                        raise UserError(f"{path}: {member.name} is sparse or over 256 MiB")
                for image, text in _pairs(sample):
                    spans.append((image.offset_data, image.size, text.offset_data, text.size))
                    names.append(image.name)
    except tarfile.TarError as error:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        hint = (
            "gunzip it first: a compressed tar has no random access"
            if compressed
            else ("it is cut short or not a tar: fetch the file again")
        )
        raise UserError(f"{path} cannot be read ({error}); {hint}") from None
    if not spans:
        raise UserError(
            f"{path} holds no pair: expected members such as 0001.jpg with 0001.txt or 0001.json"
        )
    return Index(np.array(spans, np.int64), np.array(names, np.str_))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clip_jax" / "index"


def index(path: str) -> Index:
    """`scan(path)`, kept in the user's cache folder until the tar changes."""
    stat = os.stat(path)
    state = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} 1"
    cached = _cache_folder() / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(cached, allow_pickle=False) as file:
            return Index(file["spans"], file["names"])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    built = scan(path)
    temporary = cached.with_name(f"{cached.stem}.{os.getpid()}.{threading.get_ident()}.tmp.npz")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, spans=built.spans, names=built.names)
        temporary.replace(cached)
    except OSError:  # a cache that cannot be written only costs the next start some seconds
        temporary.unlink(missing_ok=True)
    return built


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
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"TarSource({self.pattern!r}, {len(self):,} pairs)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _file(self, tar: int) -> int:
        with self._lock:
            if tar not in self._files:
                self._files[tar] = os.open(self.paths[tar], os.O_RDONLY | os.O_CLOEXEC)
            return self._files[tar]

    def _text(self, raw: bytes, name: str) -> dict[str, Any]:
        try:
            text = raw.decode()
            if not text.lstrip().startswith("{"):
                return {"caption": text.strip()}
            return json.loads(text)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{name}: its text cannot be read ({error})") from None

    def __getitem__(self, i: int) -> Pair:
        tar = int(np.searchsorted(self._starts, i, side="right")) - 1
        row = i - int(self._starts[tar])
        at, size, text_at, text_size = (int(n) for n in self._indices[tar].spans[row])
        file = self._file(tar)
        name = f"{self.paths[tar]}:{self._indices[tar].names[row]}"
        image, text = os.pread(file, size, at), os.pread(file, text_size, text_at)
        if len(image) < size or len(text) < text_size:
            raise UserError(f"{name} is cut short: the tar changed since the run began")
        return Pair(image, self._text(text, name), name)
