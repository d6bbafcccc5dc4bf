"""Some of many files, held open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """What `open` makes of paths, held until `most` others were asked for since.

    Safe under threads; pickled without what it holds.
    """

    def __init__(self, open: Callable[[str], T], most: int) -> None:
        self._open, self._most = open, most
        self._held: dict[str, T] = {}  # the least recently used first
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, (self._open, self._most)

    def __getitem__(self, path: str) -> T:
        with self._lock:
            found = self._held.pop(path, None) or self._open(path)
            self._held[path] = found
            if len(self._held) > self._most:
                del self._held[next(iter(self._held))]
            return found
