"""A bounded number of open files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OpenFiles(Generic[T]):
    """Opens files by their paths and keeps the most recently used ones open.

    It is thread-safe. A pickle contains no open files.

    Args:
      open: opens a file by its path.
      limit: the number of files to keep open.
    """

    def __init__(self, open: Callable[[str], T], limit: int) -> None:
        self._open, self._limit = open, limit
        self._files: dict[str, T] = {}  # the least recently used first
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self._open, self._limit)

    def __getitem__(self, path: str) -> T:
        with self._lock:
            file = self._files.pop(path, None) or self._open(path)
            self._files[path] = file
            if len(self._files) > self._limit:
                del self._files[next(iter(self._files))]
            return file
