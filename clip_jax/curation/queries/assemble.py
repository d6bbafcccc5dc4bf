"""Assembling a list of queries from the candidates of its sources; what is left out is counted."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clip_jax.curation.queries.query_list import MAX_LENGTH, QueryList

NUMBERS = "numbers"
# In this order the sources fill a list that has a limit: that of MetaCLIP's code.
ORDER = (NUMBERS, "wordnet", "words", "bigrams", "titles")
# In this order a query names its sources; its count is that of the first.
_NAMING = ("words", "bigrams", "titles", "wordnet", NUMBERS)
_LETTER = re.compile(r"[^\W_]")


@dataclass
class Candidates:
    """What one source offers.

    Attributes:
      source: a name of `ORDER`.
      rows: queries and their counts, the most important first; a query can repeat.
      left_out: how many were left out already, by reason.
    """

    source: str
    rows: Sequence[tuple[str, int]]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SourceReport:
    """What became of the candidates of a source.

    Attributes:
      offered: the candidates, with those that were left out.
      kept: the queries of the list that this source has, also where another has them too.
      new: those that no earlier source of `ORDER` has.
      left_out: the others, by reason.
    """

    offered: int
    kept: int
    new: int
    left_out: Mapping[str, int]


def numbers() -> Candidates:
    """Returns "0" to "99", which MetaCLIP adds."""
    return Candidates(NUMBERS, [(str(number), 0) for number in range(100)])


def assemble(
    sources: Iterable[Candidates],
    limit: int | None = None,
    source_limits: Mapping[str, int] | None = None,
) -> tuple[QueryList, dict[str, SourceReport]]:
    """Joins the candidates of sources to a list of distinct queries.

    Left out are empty queries, punctuation alone, over `MAX_LENGTH` characters and control
    characters. White space becomes one space.

    Args:
      sources: the candidates; each source at most once.
      limit: the largest number of queries; the sources fill the list in the order of `ORDER`.
      source_limits: the largest number of new queries from each source.

    Returns:
      The queries in the order of `ORDER`, within a source as the candidates come; and a report for
      each source.
    """
    given = {candidates.source: candidates for candidates in sources}
    ordered = [given[name] for name in ORDER if name in given]
    counts: dict[str, dict[str, int]] = {}
    left_out: dict[str, Counter[str]] = {}
    for candidates in ordered:
        counts[candidates.source], left_out[candidates.source] = _clean(candidates)
    chosen: dict[str, None] = {}
    refused: list[tuple[str, str, str]] = []  # source, query, reason
    new: Counter[str] = Counter()
    for source, offered in counts.items():
        most = (source_limits or {}).get(source)
        for query in offered:
            if query in chosen:
                continue
            if most is not None and new[source] >= most:
                refused.append((source, query, f"over the limit of {most:,} {source}"))
            elif limit is not None and len(chosen) >= limit:
                refused.append((source, query, f"over the limit of {limit:,} in all"))
            else:
                chosen[query] = None
                new[source] += 1
    for source, query, reason in refused:
        left_out[source][reason] += query not in chosen  # a later source can have added it
    naming = [(source, counts[source]) for source in _NAMING if source in counts]
    names = [[(s, offered[q]) for s, offered in naming if q in offered] for q in chosen]
    kept = Counter(source for row in names for source, _ in row)
    queries = QueryList(
        tuple(chosen),
        tuple(row[0][1] for row in names),
        tuple("+".join(source for source, _ in row) for row in names),
    )
    reports = {}
    for candidates in ordered:
        source = candidates.source
        reasons = {reason: n for reason, n in left_out[source].items() if n}
        reports[source] = SourceReport(
            kept[source] + sum(reasons.values()), kept[source], new[source], reasons
        )
    return queries, reports


def _clean(candidates: Candidates) -> tuple[dict[str, int], Counter[str]]:
    """Returns the candidates that can be queries, and all reasons of the others."""
    counts: dict[str, int] = {}
    left_out = Counter(candidates.left_out)
    for query, count in candidates.rows:
        query = " ".join(query.split())
        if reason := _reason_against(query):
            left_out[reason] += 1
        elif query in counts:
            left_out["repeated"] += 1
        else:
            counts[query] = count
    return counts, left_out


def _reason_against(query: str) -> str:
    """Returns why a text cannot be a query; empty if it can."""
    if len(query) <= MAX_LENGTH and query.isprintable() and _LETTER.search(query):
        return ""  # as nearly all
    if not query:
        return "empty"
    if len(query) > MAX_LENGTH:
        return f"over {MAX_LENGTH} characters"
    categories = {unicodedata.category(letter) for letter in query}
    if categories & {"Cc", "Cs"}:
        return "control characters"
    marks = string.punctuation + " "
    if all(letter in marks or unicodedata.category(letter)[0] in "PZ" for letter in query):
        return "punctuation alone"
    return ""
