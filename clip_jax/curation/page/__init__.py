"""curation.html: a curation as a page to look at and to judge."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

import numpy as np

from clip_jax.curation import storage
from clip_jax.curation.curated.reader import Curated
from clip_jax.curation.page import limits, queries, reasons
from clip_jax.curation.page.queries import QueryCounts
from clip_jax.curation.page.samples import Place, ShownPair, album_of, read_pairs
from clip_jax.errors import counted
from clip_jax.evaluation.report import formats
from clip_jax.evaluation.report import overview as report_overview
from clip_jax.evaluation.report.markup import Markup, isolated, tag
from clip_jax.evaluation.report.section import Tile
from clip_jax.evaluation.report.shell import Part, whole_page
from clip_jax.io import remote
from clip_jax.io.files import JsonObject
from clip_jax.version import __version__

PAGE = "curation.html"


def write(folder: str) -> str:
    """Writes the page of a finished curation into its folder; returns its path.

    The pairs that it shows are read from the pool; one that cannot be read is shown by its fault.

    Raises:
      UserError: the folder holds no finished curation.
    """
    curated = Curated.open(folder)
    report = curated.report
    wanted = [place for name in report["samples"] for place in reasons.places(report, name)]
    pairs = read_pairs(curated.pool, report["captions"], wanted)
    path = storage.join(curated.folder, PAGE)
    content = render(report, query_counts(curated), pairs)
    remote.write(path, content.encode("utf-8", "replace"))
    return path


def query_counts(curated: Curated) -> QueryCounts | None:
    """Returns the counts of the queries of a curation, None for one without queries."""
    tables = curated.query_tables()
    if not tables:
        return None
    before, after = curated.query_counts()
    sizes = [(name, len(table.queries)) for name, table in tables.items()]
    values = [curated.report["limits"][name] for name, _ in sizes]
    return QueryCounts(
        [query for table in tables.values() for query in table.queries],
        sizes,
        before,
        after,
        np.repeat(np.array(values, np.int64), [count for _, count in sizes]),
    )


def style() -> str:
    """Returns the rules of the style sheet that pages of curations add to those of reports."""
    return resources.files(__package__).joinpath("curation.css").read_text(encoding="utf-8")


def render(report: JsonObject, counts: QueryCounts | None, pairs: Mapping[Place, ShownPair]) -> str:
    """Renders the page: one HTML file that loads no other files.

    The same arguments give the same page. All texts may contain anything.

    Args:
      report: the content of `curation.json`.
      counts: the queries; None for a curation without queries.
      pairs: the sampled pairs of the report by their places.
    """
    album = album_of(pairs.values())
    is_balanced = counts is not None and report["rules"].get("balance", True)
    parts = [Part("pairs", "Pairs in and out", reasons.funnel(report))]
    if counts is not None:
        parts.append(Part("queries", "Queries", queries.overview(report, counts, is_balanced)))
    if (drawn := limits.yields(report)) is not None:
        parts.append(Part("limits", "Limits and what they keep", drawn))
    parts.append(Part("samples", "Random pairs", reasons.samples(report, pairs, album)))
    parts.append(Part("settings", "Settings", limits.settings(report)))
    share = report["kept"] / report["pairs"] if report["pairs"] else None
    shown = [
        Tile("Pairs", formats.count(report["pairs"]), "in the pool"),
        Tile("Kept", formats.count(report["kept"]), formats.percent(share)),
    ]
    if is_balanced and counts is not None:
        shown += queries.tiles(counts)
    return whole_page(
        "Curation",
        _header(report, counts, is_balanced),
        parts,
        album,
        top=[report_overview.tiles(shown)],
        words=f"Made by clip_jax {__version__}. curation.json beside this page holds the numbers.",
        css=style(),
    )


def _header(report: JsonObject, counts: QueryCounts | None, is_balanced: bool) -> Markup:
    facts = {"Data": report["data"], "Captions": ", ".join(map(str, report["captions"]))}
    if counts is not None:
        facts["Queries"] = formats.count(len(counts.names))
    if is_balanced:
        facts["Balance"] = reasons.limit_text(report)
    facts["Seed"] = report["seed"]
    items = (
        tag("div", tag("dt", name), tag("dd", isolated(value, 160)))
        for name, value in facts.items()
    )
    kept = f"{formats.count(report['kept'])} of {counted(report['pairs'], 'pair')}"
    return tag(
        "header",
        tag("p", "Curation", class_="kicker"),
        tag("h1", kept),
        tag("dl", *items, class_="facts"),
    )
