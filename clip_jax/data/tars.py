"""Random access to the image–text pairs of WebDataset tars."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import numpy as np

from clip_jax.data import catalogue
from clip_jax.data.pairs import Pair, PairError, parse_text
from clip_jax.data.paths import expand

MAX_OPEN = 256  # files; a process may open 1,024 on many machines, and a data set have 40,000 tars


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
        self._pairs = catalogue.of(self.paths)
        self._files: dict[int, _Open] = {}  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs.ends)

    def __repr__(self) -> str:
        return f"TarSource({self.pattern!r}, {len(self):,} pairs)"

    def __getstate__(self) -> dict[str, Any]:
        pairs = catalogue.shared(self._pairs)
        return {**self.__dict__, "_pairs": pairs, "_files": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pairs = catalogue.received(state["_pairs"])
        self.__dict__.update(state, _pairs=pairs, _lock=threading.Lock())

    def _file(self, tar: int) -> _Open:
        with self._lock:
            file = self._files.pop(tar, None) or _Open(self.paths[tar])
            self._files[tar] = file
            if len(self._files) > MAX_OPEN:
                del self._files[next(iter(self._files))]
            return file

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        tar = int(np.searchsorted(self._pairs.starts, i, side="right")) - 1
        at, size, text_at, text_size, is_json = (int(n) for n in self._pairs.spans[i])
        file = self._file(tar)
        name = f"{self.paths[tar]}:{self._pairs.name(i)}"
        image = os.pread(file.number, size, at)
        text = os.pread(file.number, text_size, text_at)
        if len(image) < size or len(text) < text_size:
            raise PairError(
                "unreadable", f"{name} is cut short: the tar changed since the run began"
            )
        return Pair(image, parse_text(text, name, bool(is_json)), name)
