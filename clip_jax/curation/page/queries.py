"""The queries before and after the balance: their head and tail, and what t does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from clip_jax.curation.page.drawings import CountScale, both_bars, short
from clip_jax.errors import counted
from clip_jax.evaluation.report import cards, charts, formats, tables
from clip_jax.evaluation.report.charts import Frame, Series
from clip_jax.evaluation.report.markup import Markup, isolated, join, tag
from clip_jax.evaluation.report.section import Tile
from clip_jax.evaluation.report.tables import Cell, Column
from clip_jax.io.files import JsonObject

_SHOWN = 30  # queries of a table
_POINTS = 200  # of a curve by rank


@dataclasses.dataclass(frozen=True)
class QueryCounts:
    """The queries of all languages, one language after the other.

    Attributes:
      names: their texts.
      languages: the name of each language, and the number of its queries.
      before: the pairs of each that all other rules keep, int64 [queries].
      after: those of them that the balance keeps, too.
      limit: t of each, int64 [queries].
    """

    names: Sequence[str]
    languages: Sequence[tuple[str, int]]
    before: Int64[np.ndarray, " queries"]
    after: Int64[np.ndarray, " queries"]
    limit: Int64[np.ndarray, " queries"]

    def language(self, i: int) -> str:
        """Returns the name of the language of a query."""
        for name, count in self.languages:
            if i < count:
                return name
            i -= count
        raise IndexError(i)


def tiles(queries: QueryCounts) -> Iterator[Tile]:
    """Yields headline numbers about queries."""
    before, after = queries.before, queries.after
    reach = int((before >= queries.limit).sum())
    remark = f"of {counted(len(before), 'query', 'queries')} reach t"
    yield Tile("In the head", formats.count(reach), remark)
    shares = (_share(values, before < queries.limit) for values in (before, after))
    first, second = (formats.percent(share) for share in shares)
    yield Tile("Matches in the tail", second, f"{first} before")


def _share(values: np.ndarray, chosen: np.ndarray) -> float:
    total = int(values.sum())
    return int(values[chosen].sum()) / total if total else 0.0


def overview(report: JsonObject, queries: QueryCounts, is_balanced: bool) -> Markup:
    """Shows counts by rank, the groups of queries, the head and the tail, and what t does."""
    before = queries.before
    none = int((before == 0).sum())
    words = f"{counted(len(before), 'query', 'queries')}, {none:,} of them without a pair. "
    words += "A pair counts for every query that occurs in its caption. "
    if is_balanced:
        reach = before >= queries.limit
        words += f"{counted(int(reach.sum()), 'query has', 'queries have')} t pairs or more and "
        words += f"{formats.percent(_share(before, reach))} of all matches; "
        words += f"{formats.percent(_share(queries.after, reach))} after the balance."
    blocks = [_by_rank(queries, is_balanced)]
    if is_balanced and (by_t := curve(report)):
        blocks.append(by_t)
    groups = _groups(queries, is_balanced)
    blocks.append(cards.card("Queries by the number of their pairs", groups))
    order = np.lexsort((np.arange(len(before)), -before))
    head = [int(i) for i in order[:_SHOWN] if before[i]]
    rest = [int(i) for i in order[_SHOWN:] if before[i]]
    tail = (
        [rest[i] for i in np.unique(np.linspace(0, len(rest) - 1, _SHOWN).astype(int))]
        if rest
        else []
    )
    title = "The head: the queries with the most pairs"
    lists = [cards.block(title, _table(title, queries, head, is_balanced))]
    if tail:
        title = "The tail: queries further down, evenly by rank"
        lists.append(cards.block(title, _table(title, queries, tail, is_balanced)))
    return join(
        tables.notes(words),
        tag("div", *blocks, class_="grid"),
        languages(report, queries),
        tag("div", *lists, class_="grid two"),
    )


def _by_rank(queries: QueryCounts, is_balanced: bool) -> Markup:
    title = "Pairs of each query, by rank"
    curves = [("before", queries.before, "c2")] + [("after", queries.after, "c1")] * is_balanced
    falling = [(name, np.sort(counts)[::-1], color) for name, counts, color in curves]
    longest = max(int((counts > 0).sum()) for _, counts, _ in falling)
    most = max(int(counts.max(initial=1)) for _, counts, _ in falling)
    series = [Series(name, _ranked(counts), color) for name, counts, color in falling]
    limits = np.unique(queries.limit)
    if is_balanced and len(limits) == 1 and limits[0] <= most:
        t = int(limits[0])
        name = f"t = {t:,}"
        series.append(Series(name, [(1, t), (max(longest, 2), t)], "ink", dashed=True))
    x, y = (CountScale(1, max(2, high), "log") for high in (longest, most))
    chart = charts.lines(title, Frame(x, y, "rank of the query", "pairs"), series)
    return cards.card(title, chart, "Both axes are logarithmic.")


def _ranked(falling: np.ndarray) -> list[tuple[float, float]]:
    count = int((falling > 0).sum())
    if not count:
        return []
    ranks = np.unique(np.geomspace(1, count, _POINTS).round().astype(int))
    return [(float(rank), float(falling[rank - 1])) for rank in ranks]


def _groups(queries: QueryCounts, is_balanced: bool) -> Markup:
    """Returns a table of the queries by the number of their pairs."""
    before, after, rows = queries.before, queries.after, []
    low = 0
    while low <= int(before.max(initial=0)):
        high = 1 if low == 0 else 10 * low
        chosen = (before >= low) & (before < high)
        name = formats.count(low) if high - low == 1 else f"{short(low)} – {short(high - 1)}"
        if high > 1000:
            name = f"{short(low)} – {short(high)}"
        sums = [counts[chosen] for counts in (before, after)[: 1 + is_balanced]]
        numbers = [int(chosen.sum()), *(int(counts.sum()) for counts in sums)]
        rows.append([Cell(name, float(low)), *map(tables.count, numbers)])
        low = high
    names = ("Before", "After") if is_balanced else ("Matches",)
    hints = ("matches before the balance", "matches of the selection")
    columns = [Column("Pairs", numeric=False), Column("Queries")]
    columns += [Column(name, hint=hint) for name, hint in zip(names, hints, strict=False)]
    return tables.table("Queries by the number of their pairs", columns, rows, sortable=False)


def _table(title: str, queries: QueryCounts, chosen: Iterable[int], is_balanced: bool) -> Markup:
    chosen, rows = list(chosen), []
    most = max((int(queries.before[i]) for i in chosen), default=0)
    for i in chosen:
        before, after = int(queries.before[i]), int(queries.after[i])
        language = queries.language(i) if len(queries.languages) > 1 else ""
        small = tag("small", isolated(language, 20)) if language else None
        p = int(queries.limit[i]) / max(before, int(queries.limit[i]))
        bars = Cell(both_bars(before, after, most), float(before))
        row = [Cell(join(isolated(queries.names[i], 60), small)), bars, tables.count(before)]
        rows.append(row + [tables.plain(p), tables.count(after)] * is_balanced)
    columns = [Column("Query", numeric=False), Column("Pairs", numeric=False)]
    columns.append(Column("Before" if is_balanced else "Count"))
    if is_balanced:
        columns += [Column("p", hint="the probability of a draw, t / max(before, t)")]
        columns += [Column("After", hint="its pairs in the selection, drawn for any query")]
    return tag("div", tables.table(title, columns, rows), class_="heads")


def curve(report: JsonObject) -> Markup | None:
    """Draws how many pairs each t keeps."""
    points = [(float(t), float(pairs)) for t, pairs in report["curve"]]
    limits = list(report["limits"].values())
    if len(points) < 2 or not limits:
        return None
    title = "Pairs kept by t"
    last, most = max(points[-1][0], 2.0), max(pairs for _, pairs in points)
    frame = Frame(
        CountScale(1, last, "log"), CountScale(0, most or 1), "t, pairs of a query", "pairs kept"
    )
    t = min(float(limits[0]), last)
    series = [Series("pairs kept", points, "c1")]
    chart = charts.lines(title, frame, series, upright=t)
    small = f"The mark: t = {limits[0]:,}"
    if len(limits) > 1:
        small += f" of {next(iter(report['limits']))}; the line has one t for all languages"
    return cards.card(title, chart, f"{small}. {_advice(points, report['kept'])}")


def _advice(points: Sequence[tuple[float, float]], kept: int) -> str:
    """Returns which t would keep half or twice as many pairs."""
    most = points[-1][1]
    parts = []
    for factor, words in ((0.5, "half as many"), (2, "twice as many")):
        wanted = factor * kept
        if 0 < wanted <= most:
            t = next(t for t, pairs in points if pairs >= wanted)
            parts.append(f"about {formats.count(t)} keeps {words}")
    return ("t of " + ", of ".join(parts) + ".") if parts else ""


def languages(report: JsonObject, queries: QueryCounts) -> Markup | None:
    """Returns a table of the languages, if there are several."""
    if len(queries.languages) < 2:
        return None
    rows, start = [], 0
    for name, count in queries.languages:
        own = slice(start, start + count)
        start += count
        before, after = queries.before[own], queries.after[own]
        rows.append(
            [
                Cell(isolated(name, 40)),
                tables.count(report["limits"].get(name)),
                tables.count(count),
                tables.count(int((before >= queries.limit[own]).sum())),
                tables.count(int(before.sum())),
                tables.count(int(after.sum())),
            ]
        )
    columns = [Column("Language", numeric=False), Column("t"), Column("Queries")]
    columns += [Column("reach t"), Column("Matches before"), Column("after")]
    return tables.table("Languages", columns, rows)
