"""The pairs of a query or of a reason, found in the facts and decisions of a curation."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from clip_jax.curation.curated.reader import Curated, DecidedChunk
from clip_jax.curation.hashing import combine
from clip_jax.curation.page.samples import Place
from clip_jax.curation.queries.balance import lengths_of
from clip_jax.curation.rules import KEPT
from clip_jax.errors import UserError

_KEYS = ("image", "text")  # facts that order pairs at random
_NEAR = 5  # queries in an error
_NEAR_LENGTH = 2  # characters by which they are longer or shorter


@dataclasses.dataclass(frozen=True)
class Query:
    """A query of a language in a curation.

    Attributes:
      text: the query.
      language: the name of the language; empty if there is one list only.
      language_number: its number.
      number: that of the query in the language.
      before: the pairs of the query that all rules but the balance keep.
      after: those that are kept.
      limit: t; 0 if the queries are not balanced.
    """

    text: str
    language: str
    language_number: int
    number: int
    before: int
    after: int
    limit: int

    @property
    def probability(self) -> float:
        """The probability that the query is drawn for one of its pairs."""
        return self.limit / max(self.before, self.limit) if self.limit else 1.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which pairs are looked for.

    Attributes:
      queries: in whose captions one of these occurs; none for all.
      codes: whose reasons have these codes; none for all.
    """

    queries: tuple[Query, ...] = ()
    codes: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Found:
    """Pairs that were found.

    Attributes:
      reasons: the number of the pairs of the queries by reason, kept ones and the most first.
      pairs: some pairs at random and the reason of each, in the order of the pool.
    """

    reasons: dict[str, int]
    pairs: tuple[tuple[Place, str], ...]


def find_queries(curated: Curated, text: str) -> tuple[Query, ...]:
    """Returns a query in each language that has it.

    Raises:
      UserError: no language has it; the line names near ones.
    """
    tables = curated.query_tables()
    if not tables:
        raise UserError(f"{curated.folder} was curated without queries: give --reason instead")
    before, after = curated.query_counts()
    queries, start = [], 0
    for i, (language, table) in enumerate(tables.items()):
        if text in table.queries:
            number = table.queries.index(text)
            counts = int(before[start + number]), int(after[start + number])
            is_balanced = curated.report["rules"].get("balance", True)
            limit = int(curated.report["limits"][language]) if is_balanced else 0
            queries.append(Query(text, language, i, number, *counts, limit))
        start += len(table.queries)
    if not queries:
        near = near_queries(text, [query for table in tables.values() for query in table.queries])
        hint = f"; near ones: {', '.join(map(repr, near))}" if near else ""
        raise UserError(f"{text!r:.80} is none of the {start:,} queries{hint}")
    return tuple(queries)


def near_queries(text: str, queries: Sequence[str]) -> list[str]:
    """Returns the queries that look most like a text, whatever their case, the nearest first."""
    by_lower: dict[str, list[str]] = {}
    for query in queries:
        if abs(len(query) - len(text)) <= _NEAR_LENGTH:
            by_lower.setdefault(query.lower(), []).append(query)
    similar = difflib.get_close_matches(text.lower(), by_lower, _NEAR)
    return [query for lower in similar for query in by_lower[lower]][:_NEAR]


def find(curated: Curated, wanted: Wanted, most: int) -> Found:
    """Finds pairs, chunk by chunk; which of them are returned is drawn by content and seed.

    Args:
      curated: the curation.
      wanted: which pairs to look for.
      most: the most pairs to return.

    Raises:
      UserError: facts or decisions are missing.
    """
    counts = np.zeros(1 + len(curated.reasons), np.int64)
    best: list[tuple[int, int, int, int]] = []  # random number, file, pair, code
    for decided in curated.chunks():
        codes = decided.reasons
        has_query, numbers = _examined(curated, decided, wanted.queries)
        counts += np.bincount(codes[has_query], minlength=len(counts))
        if wanted.codes:
            has_query = has_query & np.isin(codes, list(wanted.codes))
        places = np.flatnonzero(has_query)
        places = places[np.argsort(numbers[places], kind="stable")[:most]]
        chunk = decided.chunk
        own = [(int(numbers[i]), chunk.file, chunk.start + int(i), int(codes[i])) for i in places]
        best = sorted([*best, *own])[:most]
    order = sorted(range(len(counts)), key=lambda code: (code != KEPT, -counts[code]))
    files = curated.selection.files
    return Found(
        {curated.reason(code): int(counts[code]) for code in order if counts[code]},
        tuple(
            (Place(files[file].file, pair), curated.reason(code))
            for _, file, pair, code in sorted(best, key=lambda item: item[1:])
        ),
    )


def _examined(
    curated: Curated, decided: DecidedChunk, queries: Sequence[Query]
) -> tuple[Bool[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
    """Returns which pairs of a chunk have one of the queries, and a random number of each pair."""
    names = [*_KEYS, *(("starts", "matches", "language") if queries else ())]
    facts = curated.facts(decided.chunk, names)
    seed = np.uint64(curated.report["seed"] % (1 << 64))
    numbers = combine(combine(facts["image"], facts["text"]), seed)
    if not queries:
        return np.ones(len(decided.reasons), bool), numbers
    has_query = np.zeros(len(decided.reasons), bool)
    pairs = np.repeat(np.arange(len(has_query)), lengths_of(facts["starts"]))
    for query in queries:
        own = np.zeros(len(has_query), bool)
        own[pairs[facts["matches"] == query.number]] = True
        has_query |= own & (facts["language"] == query.language_number)
    return has_query, numbers
