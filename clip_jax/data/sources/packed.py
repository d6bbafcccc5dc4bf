"""Many short byte strings in little memory; a list of millions of them takes gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


class Packed:
    """A sequence of byte strings, stored as one byte string."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        parts = list(parts)
        self._bytes, self._ends = b"".join(parts), np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self):,}, and no {i}")
        return self._bytes[self._ends[i] : self._ends[i + 1]]
