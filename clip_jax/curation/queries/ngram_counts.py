"""Exact counts of words and bigrams, the bigrams in bounded memory.

Words are numbered as they are seen; a bigram is one 64-bit number, which is counted by
`SortedRuns`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clip_jax.curation.queries.sorted_runs import Counts, Keys, SortedRuns
from clip_jax.curation.queries.words import BREAK
from clip_jax.errors import UserError

_SHIFT = np.uint64(32)
_LOW = np.uint64((1 << 32) - 1)
_BYTES = 40  # of memory for a bigram in the buffer: key, count, and their sorted copies


class NgramCounter:
    """Counts words and bigrams.

    The words stay in memory; the bigrams beyond the buffer are in files, 16 bytes each.

    Args:
      scratch: an existing folder on the disk for them.
      memory: the bytes of the buffer of bigrams.
    """

    def __init__(self, scratch: Path, memory: int = 1 << 30) -> None:
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__
        self._numbers[BREAK]  # the number 0
        self._counts = np.zeros(1 << 16, np.int64)
        self._capacity = max(memory // _BYTES, 1)
        self._bigrams = SortedRuns(scratch, self._capacity)
        self._words: list[str] = []  # by number, as far as `texts` knows them

    def add(self, tokens: Sequence[str]) -> None:
        """Counts words and the pairs of neighbours among them; see `split_words`."""
        numbers = np.fromiter(map(self._numbers.__getitem__, tokens), np.int64, len(tokens))
        self._grow()
        np.add.at(self._counts, numbers, 1)
        self._counts[0] = 0
        touch = (numbers[:-1] != 0) & (numbers[1:] != 0)
        first, second = numbers[:-1][touch], numbers[1:][touch]
        self._bigrams.add(_keys(first, second))

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
        self._bigrams.add(_keys(numbers[:, 0], numbers[:, 1]), np.array(counts, np.int64))

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
            self._bigrams.add(_keys(first, second), counts[size].astype(np.int64))

    def numbered_words(self) -> tuple[list[str], Int64[np.ndarray, " words"]]:
        """Returns all words, `BREAK` too, and their counts, both by number."""
        return list(self._numbers), self._counts[: len(self._numbers)]

    @property
    def stored(self) -> int:
        """The bigrams on disk."""
        return self._bigrams.stored

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
        """Yields every bigram once, in blocks sorted by key; see `decode` and `texts`."""
        return self._bigrams.merged()

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
