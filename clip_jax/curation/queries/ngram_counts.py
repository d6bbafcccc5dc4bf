"""Exact counts of words and bigrams in bounded memory.

Words are numbered as they are seen; a bigram is one 64-bit number. Bigrams are collected in a
buffer, which is sorted, counted and written to disk as a run each time that it is full. In the end
the runs are merged range by range.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from clip_jax.curation.queries.words import BREAK
from clip_jax.errors import UserError

_SHIFT = np.uint64(32)
_LOW = np.uint64((1 << 32) - 1)
_BYTES = 40  # of memory for a bigram in the buffer: key, count, and their sorted copies
_SAMPLES = 1024  # keys of each run from which the ranges are chosen
Keys = UInt64[np.ndarray, " bigrams"]
Counts = Int64[np.ndarray, " bigrams"]


class NgramCounter:
    """Counts words and bigrams.

    The words stay in memory; the bigrams beyond the buffer are in files, 16 bytes each.

    Args:
      scratch: an existing folder for the runs; whoever made it removes it.
      memory: the bytes of the buffer of bigrams.
    """

    def __init__(self, scratch: Path, memory: int = 1 << 30) -> None:
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__
        self._numbers[BREAK]  # the number 0
        self._counts = np.zeros(1 << 16, np.int64)
        self._capacity = max(memory // _BYTES, 1)
        self._scratch = scratch
        self._pending: list[tuple[Keys, Counts | None]] = []
        self._pending_size = 0
        self._runs: list[Path] = []
        self._words: list[str] = []  # by number, as far as `texts` knows them

    def add(self, tokens: Sequence[str]) -> None:
        """Counts words and the pairs of neighbours among them; see `split_words`."""
        numbers = np.fromiter(map(self._numbers.__getitem__, tokens), np.int64, len(tokens))
        self._grow()
        np.add.at(self._counts, numbers, 1)
        self._counts[0] = 0
        touch = (numbers[:-1] != 0) & (numbers[1:] != 0)
        first, second = numbers[:-1][touch], numbers[1:][touch]
        self._collect(_keys(first, second), None)

    def add_word(self, word: str, count: int) -> None:
        """Adds to the count of a word."""
        number = self._numbers[word]
        self._grow()
        self._counts[number] += count

    def add_bigrams(self, bigrams: Sequence[tuple[str, str]], counts: Sequence[int]) -> None:
        """Adds to the counts of bigrams, but not to those of their words."""
        numbers = np.array(
            [(self._numbers[first], self._numbers[second]) for first, second in bigrams], np.int64
        ).reshape(-1, 2)
        self._grow()
        self._collect(_keys(numbers[:, 0], numbers[:, 1]), np.array(counts, np.int64))

    def add_words(
        self, words: Sequence[str], counts: Int64[np.ndarray, " words"]
    ) -> Int64[np.ndarray, " words"]:
        """Adds to the counts of distinct words; returns their numbers, for `add_keys`."""
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        self._grow()
        self._counts[numbers] += counts
        self._counts[0] = 0
        return numbers

    def add_keys(self, keys: Keys, counts: Keys, numbers: Int64[np.ndarray, " words"]) -> None:
        """Adds to the counts of bigrams that another counter numbered.

        Args:
          keys: the other counter's keys.
          counts: how often each was seen.
          numbers: the number here of each word of the other counter.
        """
        for start in range(0, len(keys), self._capacity):
            part = np.array(keys[start : start + self._capacity])
            first, second = numbers[_first(part)], numbers[_second(part)]
            size = slice(start, start + len(part))
            self._collect(_keys(first, second), counts[size].astype(np.int64))

    def numbered_words(self) -> tuple[list[str], Int64[np.ndarray, " words"]]:
        """Returns all words, `BREAK` too, and their counts, both by number."""
        return list(self._numbers), self._counts[: len(self._numbers)]

    @property
    def total(self) -> int:
        """The number of words counted."""
        return int(self._counts.sum())

    def words(self) -> Iterator[tuple[str, int]]:
        """Yields every word that was counted with its count."""
        for word, count in zip(self._numbers, self._counts.tolist(), strict=False):
            if count:
                yield word, count

    def bigrams(self) -> Iterator[tuple[Keys, Counts]]:
        """Yields every bigram once, in blocks sorted by key; see `decode`."""
        if not self._runs:
            yield _merged(self._pending)
            return
        self._write_run()
        runs = [np.load(path, mmap_mode="r") for path in self._runs]
        for low, high in pairwise(self._bounds([run[0] for run in runs])):
            parts: list[tuple[Keys, Counts | None]] = []
            for keys, counts in runs:
                start, end = np.searchsorted(keys, [low, high])
                parts.append((np.array(keys[start:end]), counts[start:end].astype(np.int64)))
            yield _merged(parts)

    def _bounds(self, runs: Iterable[Keys]) -> list[np.uint64]:
        """Returns ascending bounds between which all runs together fit into the buffer."""
        size, sample = 0, []
        for keys in runs:
            size += len(keys)
            sample.append(keys[:: max(len(keys) // _SAMPLES, 1)])
        samples = np.sort(np.concatenate(sample))
        ranges = 2 * size // self._capacity + 1
        places = np.linspace(0, len(samples), ranges + 1)[1:-1].astype(int)
        inner = np.unique(samples[places]).tolist()
        return [np.uint64(0), *map(np.uint64, inner), np.uint64((1 << 64) - 1)]

    def decode(self, keys: Keys) -> tuple[Int64[np.ndarray, " bigrams"], ...]:
        """Returns the counts of the first and of the second word of bigrams."""
        return self._counts[_first(keys)], self._counts[_second(keys)]

    def texts(self, keys: Keys) -> Iterator[tuple[str, str]]:
        """Yields the words of bigrams."""
        if len(self._words) != len(self._numbers):
            self._words = list(self._numbers)
        for first, second in zip(_first(keys).tolist(), _second(keys).tolist(), strict=True):
            yield self._words[first], self._words[second]

    def _grow(self) -> None:
        size = len(self._numbers)
        if size >= 1 << 32:
            raise UserError("over four thousand million different words: count in several parts")
        if size > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(size, np.int64)])

    def _collect(self, keys: Keys, counts: Counts | None) -> None:
        self._pending.append((keys, counts))
        self._pending_size += len(keys)
        if self._pending_size >= self._capacity:
            self._pending = [_merged(self._pending)]
            self._pending_size = len(self._pending[0][0])
            if self._pending_size > self._capacity // 2:
                self._write_run()

    def _write_run(self) -> None:
        keys, counts = _merged(self._pending)
        path = self._scratch / f"bigrams-{len(self._runs)}.npy"
        np.save(path, np.stack([keys, counts.astype(np.uint64)]))
        self._runs.append(path)
        self._pending, self._pending_size = [], 0


@dataclass(frozen=True)
class Bigram:
    """Two words, how often they touch, and their pointwise mutual information in bits."""

    first: str
    second: str
    count: int
    pmi: float


def select_bigrams(
    counter: NgramCounter, min_pmi: float, min_count: int
) -> tuple[list[Bigram], dict[str, int]]:
    """Selects the bigrams whose words stand together more often than by chance.

    The pointwise mutual information is log2(count · total) − log2(first · second), in which total
    is the number of words, as NLTK and so MetaCLIP compute it. It is at most log2(total / count).

    Returns:
      The bigrams, of the highest information first, then of the highest count; and how many were
      left out, by reason.
    """
    selected: list[Bigram] = []
    unknown = rare = low = 0
    total = np.float64(counter.total)
    for keys, counts in counter.bigrams():
        first, second = counter.decode(keys)
        known = (first > 0) & (second > 0)
        frequent = known & (counts >= min_count)
        with np.errstate(divide="ignore"):
            pmi = np.log2(counts * total) - np.log2(first * second.astype(np.float64))
        high = frequent & (pmi >= min_pmi)
        unknown += len(keys) - int(known.sum())
        rare += int(known.sum() - frequent.sum())
        low += int(frequent.sum() - high.sum())
        texts = counter.texts(keys[high])
        rows = zip(texts, counts[high].tolist(), pmi[high].tolist(), strict=True)
        selected += [Bigram(*words, count, value) for words, count, value in rows]
    selected.sort(key=lambda b: (-b.pmi, -b.count, b.first, b.second))
    reasons = {
        "with a word of no count": unknown,
        f"under {min_count:,} times": rare,
        f"under PMI {min_pmi:g}": low,
    }
    return selected, reasons


def _first(keys: Keys) -> Int64[np.ndarray, " bigrams"]:
    return (keys >> _SHIFT).astype(np.int64)


def _second(keys: Keys) -> Int64[np.ndarray, " bigrams"]:
    return (keys & _LOW).astype(np.int64)


def _keys(first: Int64[np.ndarray, " bigrams"], second: Int64[np.ndarray, " bigrams"]) -> Keys:
    return (first.astype(np.uint64) << _SHIFT) | second.astype(np.uint64)


def _merged(parts: Sequence[tuple[Keys, Counts | None]]) -> tuple[Keys, Counts]:
    """Returns the distinct keys of several arrays in order, and the sums of their counts.

    Keys without counts count once each.
    """
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    if all(counts is None for _, counts in parts):
        keys = np.concatenate([keys for keys, _ in parts])
        keys.sort()
        starts = _starts(keys)
        return keys[starts], np.diff(np.append(starts, len(keys)))
    keys = np.concatenate([keys for keys, _ in parts])
    counts = np.concatenate(
        [np.ones(len(keys), np.int64) if counts is None else counts for keys, counts in parts]
    )
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = _starts(keys)
    sums = np.add.reduceat(counts[order], starts) if len(keys) else counts
    return keys[starts], sums


def _starts(keys: Keys) -> Int64[np.ndarray, " distinct"]:
    """Returns where each distinct key of a sorted array begins."""
    if not len(keys):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
