"""Counting 64-bit keys that do not fit into memory: sorted runs on disk, merged range by range."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, UInt64

Keys: TypeAlias = UInt64[np.ndarray, " keys"]
Counts: TypeAlias = Int64[np.ndarray, " keys"]
_MAX_RUNS = 64  # each holds two open files
_SAMPLED = 256  # keys of a buffer's worth of keys, from which ranges are chosen
_LAST = (1 << 64) - 1


class SortedRuns:
    """Counts of keys, of which only a buffer is in memory.

    The buffer is sorted and counted each time that it is full. If it is still more than half full
    then, it is written to disk as a run. The files have no names, so that nothing is left of a
    process that is killed.

    Args:
      scratch: an existing folder on the disk for the runs.
      capacity: the keys that the buffer holds.
    """

    def __init__(self, scratch: Path, capacity: int) -> None:
        self._scratch, self._capacity = scratch, capacity
        self._buffer: list[tuple[Keys, Counts | None]] = []
        self._size = 0  # keys in the buffer
        self._runs: list[tuple[Keys, Counts]] = []  # mapped files

    @property
    def stored(self) -> int:
        """The keys on disk, of 16 bytes each."""
        return sum(len(keys) for keys, _ in self._runs)

    def add(self, keys: Keys, counts: Counts | None = None) -> None:
        """Adds to the counts of keys, in any order and repeated; without counts, 1 for each."""
        self._buffer.append((keys, counts))
        self._size += len(keys)
        if self._size >= self._capacity:
            self._buffer = [_merged(self._buffer)]
            self._size = len(self._buffer[0][0])
            if self._size > self._capacity // 2:
                self._write_buffer()

    def merged(self) -> Iterator[tuple[Keys, Counts]]:
        """Yields every key once, in order, in blocks of about a buffer."""
        if not self._runs:
            yield _merged(self._buffer)
            return
        self._write_buffer()
        yield from self._merged_runs()

    def _write_buffer(self) -> None:
        if self._size:
            self._runs.append(self._store([_merged(self._buffer)]))
        self._buffer, self._size = [], 0
        if len(self._runs) > _MAX_RUNS:
            self._runs = [self._store(self._merged_runs())]

    def _store(self, blocks: Iterable[tuple[Keys, Counts]]) -> tuple[Keys, Counts]:
        """Writes a run of blocks that follow each other; returns its mapped arrays."""
        with (
            tempfile.TemporaryFile(dir=self._scratch) as key_file,
            tempfile.TemporaryFile(dir=self._scratch) as count_file,
        ):
            for keys, counts in blocks:
                key_file.write(keys.tobytes())
                count_file.write(counts.tobytes())
            key_file.flush()
            count_file.flush()
            return np.memmap(key_file, np.uint64, "r"), np.memmap(count_file, np.int64, "r")

    def _merged_runs(self) -> Iterator[tuple[Keys, Counts]]:
        for low, high in pairwise(self._bounds()):
            parts: list[tuple[Keys, Counts | None]] = []
            for keys, counts in self._runs:
                start, end = np.searchsorted(keys, [low, high])
                parts.append((np.array(keys[start:end]), np.array(counts[start:end])))
            yield _merged(parts)

    def _bounds(self) -> list[np.uint64]:
        """Returns rising bounds; the keys of all runs between two of them fit into the buffer."""
        step = max(self._capacity // _SAMPLED, 1)
        samples = np.sort(np.concatenate([keys[::step] for keys, _ in self._runs]))
        ranges = 2 * self.stored // self._capacity + 1
        places = np.linspace(0, len(samples), ranges + 1)[1:-1].astype(int)
        inner = np.unique(samples[places]).tolist()
        return [np.uint64(0), *map(np.uint64, inner), np.uint64(_LAST)]


def _merged(parts: Sequence[tuple[Keys, Counts | None]]) -> tuple[Keys, Counts]:
    """Returns the distinct keys of several arrays in order, and the sums of their counts."""
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    keys = np.concatenate([keys for keys, _ in parts])
    if all(counts is None for _, counts in parts):
        keys.sort()
        starts = _starts(keys)
        return keys[starts], np.diff(np.append(starts, len(keys)))
    all_counts = [np.ones(len(keys), np.int64) if c is None else c for keys, c in parts]
    counts = np.concatenate(all_counts)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = _starts(keys)
    return keys[starts], np.add.reduceat(counts[order], starts) if len(keys) else counts


def _starts(keys: Keys) -> Int64[np.ndarray, " distinct"]:
    """Returns where each distinct key of a sorted array begins."""
    if not len(keys):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
