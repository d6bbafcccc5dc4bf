"""What a worker does with one chunk of a curation."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt64

from clip_jax.curation import facts as facts_lib
from clip_jax.curation import hashing, ngrams, storage
from clip_jax.curation import pool as pool_lib
from clip_jax.curation import rules as rules_lib
from clip_jax.curation.duplicates import perceptual
from clip_jax.curation.engine.openings import Openings
from clip_jax.curation.facts import NO_LANGUAGE, Extraction, Extractor, Facts
from clip_jax.curation.hashing import combine
from clip_jax.curation.pool import Chunk, Pool
from clip_jax.curation.queries import balance
from clip_jax.curation.rules import KEPT, ColumnLimits, Reasons, Rules, mark
from clip_jax.errors import UserError

PARTITIONS = 64  # of hashes
BINS = 1 << 16  # of a histogram of thresholds; a second one inside a bin of it is exact

Id = tuple[int, int]
Marks = tuple[str, np.ndarray]  # a reason, and the places in a chunk of the pairs that have it
Sparse = tuple[np.ndarray, np.ndarray]  # int64: places in a long array, rising, and their values


@dataclasses.dataclass(frozen=True)
class State:
    """A chunk and the codes of its pairs so far.

    Attributes:
      chunk: the chunk.
      reasons: uint8 [n], see `rules`.
    """

    chunk: Chunk
    reasons: Reasons

    @property
    def id(self) -> Id:
        """The place of the chunk in the pool."""
        return self.chunk.id


@dataclasses.dataclass(frozen=True)
class Rows:
    """Pairs of a chunk that share a partition of hashes.

    Attributes:
      id: the chunk.
      key: uint64 [n], the hash by which they were partitioned.
      other: uint64 [n], another hash of theirs.
      place: uint32 [n], their places in the chunk, rising.
    """

    id: Id
    key: UInt64[np.ndarray, " n"]
    other: UInt64[np.ndarray, " n"]
    place: np.ndarray


def partition(keys: UInt64[np.ndarray, " n"]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of each partition that has some of the keys, and their places."""
    parts = (combine(keys) % np.uint64(PARTITIONS)).astype(np.int64)
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(PARTITIONS + 1))
    for part in range(PARTITIONS):
        places = order[bounds[part] : bounds[part + 1]]
        if len(places):
            yield part, places


@dataclasses.dataclass(frozen=True)
class Job:
    """A curation: what every worker needs to know.

    Attributes:
      pool: the pairs to choose from.
      extraction: what to find out about them.
      digest: that of the extraction.
      rules: the rules.
      columns: the limits on annotations.
      out: the folder of the results.
      seed: the seed of the draws.
      chunk: the most pairs of a chunk.
    """

    pool: Pool
    extraction: Extraction
    digest: str
    rules: Rules
    columns: ColumnLimits
    out: str
    seed: int = 0
    chunk: int = pool_lib.CHUNK

    def chunks(self, file: tuple[int, str]) -> Iterator[Chunk | Openings | tuple[int, str, str]]:
        """Yields the chunks of a file and what opening it left out.

        Of a file that cannot be opened it yields its number, name and fault.

        Raises:
          UserError: annotations have another number of pairs.
        """
        number, spec = file
        try:
            chunks = pool_lib.chunks(self.pool, number, spec, self.chunk)
            opening = self.pool.open(spec).opening_report()
        except UserError as error:
            yield (number, spec, str(error))
            return
        self.columns.check(spec, chunks[-1].stop if chunks else 0)
        yield from chunks
        yield Openings.of_file(number, opening)

    def facts(self, chunk: Chunk) -> Facts:
        """Returns the facts of a chunk; they are looked for only if no earlier run found them."""
        return _facts(self.pool, self.extraction, self.out, self.digest, chunk)

    def examine(self, chunk: Chunk) -> State:
        """Finds the facts of a chunk, and applies the first rules on each pair by itself."""
        return State(chunk, rules_lib.of_facts(self.rules, self.facts(chunk)))

    def examine_further(self, state: State) -> State:
        """Applies the other rules on each pair by itself."""
        reasons = state.reasons.copy()
        rules_lib.of_similarity(self.rules, self.facts(state.chunk), reasons)
        self.columns.mark(self.rules, state.chunk, reasons)
        return State(state.chunk, reasons)

    def with_marks(self, state: State, marks: list[Marks]) -> State:
        """Gives reasons to pairs of a chunk, in the order of the rules."""
        reasons = state.reasons.copy()
        for reason, places in sorted(marks, key=lambda item: self.rules.code(item[0])):
            has_reason = np.zeros(len(reasons), bool)
            has_reason[places] = True
            mark(reasons, has_reason, self.rules.code(reason))
        return State(state.chunk, reasons)

    @functools.cached_property
    def key(self) -> int:
        """A hash of the settings, which tells decisions from those of other runs."""
        values = [self.digest, dataclasses.asdict(self.rules), self.columns.limits, self.seed]
        return hashing.text_hash(json.dumps(values))

    # the pool as a whole

    def ngrams(self, state: State) -> Iterator[tuple[int, Sparse]]:
        """Yields the words and pairs of words of a chunk by partition, with their counts."""
        values = self.facts(state.chunk).ngrams
        distinct, counts = ngrams.counted(values, np.ones(len(values), np.int64))
        for part, places in partition(distinct):
            yield part, (distinct[places], counts[places])

    def mark_rare(self, state: State, written: tuple[str, int]) -> State:
        """Marks captions with a word or a pair of words that is not in a file of frequent ones.

        Args:
          state: the chunk.
          written: the file, see `write_frequent`.
        """
        facts, reasons = self.facts(state.chunk), state.reasons.copy()
        is_rare = ngrams.has_rare(facts.ngram_starts, facts.ngrams, _frequent(*written))
        mark(reasons, is_rare, self.rules.code("rare_words"))
        return State(state.chunk, reasons)

    def rows(self, state: State, key: str) -> Iterator[tuple[int, Rows]]:
        """Yields pairs of a chunk by partition.

        Args:
          state: the chunk.
          key: what partitions and compares them: "image" or "text", of all pairs that are not
            broken; "same_image", "same_pair" or "near", of the pairs that are kept so far. For
            "near" there is one row for each band of the perceptual hash.
        """
        facts = self.facts(state.chunk)
        if key in ("image", "text"):
            place = np.flatnonzero(rules_lib.is_usable(state.reasons))
            keys = facts.image if key == "image" else facts.text
            others = facts.text if key == "image" else facts.image
        else:
            place = np.flatnonzero(state.reasons == KEPT)
            keys = facts.keys if key == "same_pair" else facts.image
            others = facts.perceptual if key == "near" else facts.image
        keys, others = keys[place], others[place]
        if key == "near":
            bands = perceptual.bands(others, self.rules.near)
            keys = combine(bands, np.arange(bands.shape[1], dtype=np.uint64)).ravel()
            others, place = (np.repeat(x, bands.shape[1]) for x in (others, place))
        for part, chosen in partition(keys):
            own = place[chosen].astype(np.uint32)
            yield part, Rows(state.id, keys[chosen], others[chosen], own)

    # balance

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Where the queries of each language begin among all, int64 [languages + 1]."""
        tables = [facts_lib.query_table(path) for _, path in self.extraction.queries]
        return np.cumsum([0, *(len(table.queries) for table in tables)])

    @functools.cached_property
    def query_hashes(self) -> np.ndarray:
        """The hash of each query of each language, uint64 [queries]."""
        tables = [facts_lib.query_table(path) for _, path in self.extraction.queries]
        languages = range(len(tables))
        hashes = (
            combine(table.hashes, np.uint64(i)) if i else table.hashes
            for i, table in zip(languages, tables, strict=True)
        )
        return np.concatenate([np.zeros(0, np.uint64), *hashes])

    def mark_unmatched(self, state: State) -> State:
        """Marks pairs in whose caption no query occurs."""
        reasons = state.reasons.copy()
        if self.extraction.queries:
            lengths = balance.lengths_of(self.facts(state.chunk).starts)
            mark(reasons, lengths == 0, self.rules.code("no_query"))
        return State(state.chunk, reasons)

    def matches(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Returns the queries of the pairs that are kept so far.

        Returns:
          starts, uint32 [n + 1], as in `Facts`, and matches, int64, counted among the queries of
          all languages; a pair that is left out has none.
        """
        facts = self.facts(state.chunk)
        lengths = balance.lengths_of(facts.starts)
        matches = facts.matches.astype(np.int64)
        if len(self.extraction.queries) > 1:
            language = np.where(facts.language == NO_LANGUAGE, 0, facts.language)
            matches = matches + np.repeat(self.offsets[language], lengths)
        is_kept = state.reasons == KEPT
        own = np.where(is_kept, lengths, 0)
        starts = np.concatenate([[0], np.cumsum(own)]).astype(np.uint32)
        return starts, matches[np.repeat(is_kept, lengths)]

    def count(self, state: State) -> Sparse:
        """Returns the queries of a chunk's pairs, and the number of pairs of each."""
        distinct, counts = np.unique(self.matches(state)[1], return_counts=True)
        return distinct, counts.astype(np.int64)

    def thresholds(
        self, state: State, counts: Int64[np.ndarray, " queries"]
    ) -> UInt64[np.ndarray, " n"]:
        """Returns the threshold of each pair, see `balance`."""
        starts, matches = self.matches(state)
        keys = self.facts(state.chunk).keys
        return balance.thresholds(keys, starts, matches, self.query_hashes, counts, self.seed)

    def histogram(
        self, state: State, counts: Int64[np.ndarray, " queries"], outer: int = -1
    ) -> Int64[np.ndarray, " bins"]:
        """Counts the pairs by the least t that keeps them.

        Args:
          state: the chunk.
          counts: the number of pairs of each query.
          outer: -1 to count by the upper half of the 32 bits of t - 1; or an upper half, to count
            by the lower half those that have it.
        """
        values = self.thresholds(state, counts)
        whole = (values[values != balance.NEVER] >> np.uint64(balance.SCALE)).astype(np.int64)
        upper = whole // BINS
        chosen = upper if outer < 0 else whole[upper == outer] % BINS
        return np.bincount(chosen, minlength=BINS)

    def limit_of_pairs(self, state: State, limits: Int64[np.ndarray, " languages"]) -> np.ndarray:
        """Returns t for each pair of a chunk, uint64 [n], by its language."""
        language = self.facts(state.chunk).language
        return limits.astype(np.uint64)[np.where(language == NO_LANGUAGE, 0, language)]


@functools.lru_cache(maxsize=1)  # the functions of a chunk are called one after the other
def _facts(pool: Pool, extraction: Extraction, out: str, digest: str, chunk: Chunk) -> Facts:
    path = facts_lib.path_of(out, chunk, digest)
    facts = Facts.read(path, len(chunk))
    if facts is None:
        _check_inputs(extraction, digest)
        facts = Extractor(pool, extraction)(chunk)
        facts.write(path)
    return facts


@functools.lru_cache(maxsize=1)
def _check_inputs(extraction: Extraction, digest: str) -> None:
    """Checks that this process has the queries and the test sets that the curation began with.

    Raises:
      UserError: it has others.
    """
    if extraction.digest() != digest:
        raise UserError(
            "the queries or the test sets changed since the curation began: start it again"
        )


def write_frequent(folder: str, hashes: UInt64[np.ndarray, " n"]) -> tuple[str, int]:
    """Writes the hashes of frequent words and pairs of words; returns the file and its hash.

    Workers read it instead of receiving it: a hundred million take 800 MB.
    """
    path, hashes = storage.join(folder, "facts/frequent.npz"), np.sort(hashes)
    storage.write_arrays(path, {"hashes": hashes})
    return path, hashing.bytes_hash(hashes.tobytes())


@functools.lru_cache(maxsize=1)
def _frequent(path: str, digest: int) -> UInt64[np.ndarray, " n"]:
    hashes = (storage.read_arrays(path) or {}).get("hashes", np.zeros(0, np.uint64))
    if hashing.bytes_hash(hashes.tobytes()) != digest:
        raise UserError(f"{path} was removed or changed by another program: start again")
    return hashes
