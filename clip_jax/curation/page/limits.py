"""How many pairs other limits would keep: sides, aspects, words, and columns of annotations."""

from __future__ import annotations

from typing import Any

from clip_jax.curation.page.drawings import CountScale, histogram
from clip_jax.curation.page.reasons import column_limit
from clip_jax.data.example import REASONS
from clip_jax.errors import counted
from clip_jax.evaluation.report import cards, charts, formats, tables
from clip_jax.evaluation.report.charts import Frame, Series
from clip_jax.evaluation.report.markup import Markup, isolated, join, tag
from clip_jax.evaluation.report.scales import Scale
from clip_jax.io.files import JsonObject

# Of each of the report's "yields": the title, the axis, values of it, and the rule with the limit.
_YIELDS = {
    "least side": ("Shorter side, at least", "pixels", (32, 64, 128, 256, 512, 1024), "min_side"),
    "aspect below": (
        "Aspect, less than",
        "longer side / shorter",
        (1.5, 2, 3, 5, 10),
        "aspect_below",
    ),
    "most words": (
        "Words, at most",
        "words of the caption",
        (1, 2, 5, 10, 20, 50, 100),
        "max_words",
    ),
}


def yields(report: JsonObject) -> Markup | None:
    """Draws the share of pairs that each value of a limit would keep by itself."""
    drawn = [_yield(report, name) for name in _YIELDS if report["yields"].get(name)]
    drawn += [_column(column) for column in report.get("columns", ())]
    if not drawn:
        return None
    note = tables.notes(
        "Of all pairs that can be read, whatever the other rules say. The mark is the limit of "
        "this curation."
    )
    return join(note, tag("div", *drawn, class_="grid"))


def _yield(report: JsonObject, name: str) -> Markup:
    title, x_label, values, rule = _YIELDS[name]
    points = report["yields"][name]
    usable = report["pairs"] - sum(
        item["pairs"] for item in report["left_out"] if item["reason"] in REASONS
    )
    shares = [(float(value), pairs / usable if usable else 0.0) for value, pairs in points]
    limit = report["rules"].get(rule)
    x = Scale(shares[0][0], shares[-1][0], "log")
    frame = Frame(x, Scale(0, 1, share=True), x_label, "share of pairs")
    ticks = [(float(v), formats.plain(v)) for v in values if x.low <= v <= x.high]
    series = [Series("share of pairs", shares, "c1", marks=True)]
    chart = charts.lines(
        title,
        frame,
        series,
        x_ticks=ticks,
        upright=limit if limit and x.low <= limit <= x.high else None,
    )
    words = f"Limit: {formats.plain(limit)}" if limit else "No limit in this curation"
    return cards.card(title, chart, words)


def _column(column: JsonObject) -> Markup:
    words = f"Limit: {column_limit(column)}. " if column_limit(column) else ""
    words += f"{counted(column['values'], 'value')}, {column['missing']:,} pairs without one."
    bars: list[list[Any]] = column["histogram"]
    edges, heights = [edge for edge, _ in bars], [height for _, height in bars[:-1]]
    if not heights or edges[0] == edges[-1]:
        return cards.card(column["column"], tables.notes("All values are the same."), words)
    x, y = Scale(edges[0], edges[-1]), CountScale(0, max(heights))
    marks = [
        value
        for value in (column["least"], column["most"])
        if value is not None and x.low <= value <= x.high
    ]
    chart = histogram(
        column["column"], Frame(x, y, column["column"][:40], "pairs"), edges, heights, marks
    )
    quantiles = (
        tag("li", f"{formats.percent(share)}: {formats.plain(value)}")
        for share, value in column["quantiles"]
        if share in (0.05, 0.25, 0.5, 0.75, 0.95)
    )
    return cards.card(
        column["column"],
        join(chart, tag("ul", *quantiles, class_="legend")),
        words,
    )


def settings(report: JsonObject) -> Markup:
    """Returns a table of the settings of the curation."""
    values = {
        "data": report["data"],
        "captions": ", ".join(map(str, report["captions"])),
        **{f"queries {name}".strip(): path for name, path in report["queries"].items()},
        "seed": report["seed"],
        **report["rules"],
    }
    rows = [
        [tables.Cell(isolated(name, 60)), tables.Cell(isolated(value, 300))]
        for name, value in values.items()
    ]
    columns = [tables.Column("Setting", numeric=False), tables.Column("Value", numeric=False)]
    faults = [
        tag("li", isolated(item["file"], 120), ": ", isolated(item["fault"], 300))
        for item in report["broken_files"]
    ]
    broken = counted(report["broken_files_count"], "file")
    remarks = _opening(report["opening"])
    return join(
        tag("div", tables.table("Settings", columns, rows, sortable=False), class_="wide"),
        tag("h3", f"{broken} cannot be opened", class_="after") if faults else None,
        tag("ul", *faults, class_="note remarks") if faults else None,
        tag("h3", "When files were opened", class_="after") if remarks else None,
        tag("ul", *remarks, class_="note remarks") if remarks else None,
    )


def _opening(opening: JsonObject) -> list[Markup]:
    """Returns the items of a list of what opening left out, and the notes about files."""
    items = [
        tag(
            "li",
            f"{item['count']:,} of {opening['seen']:,} {opening['unit']} are left out: "
            f"{item['meaning']}, such as ",
            isolated(item["example"], 120),
        )
        for item in opening["left_out"]
    ]
    items += [tag("li", isolated(note, 300)) for note in opening["notes"]]
    if more := opening["notes_count"] - len(opening["notes"]):
        items.append(tag("li", f"and {counted(more, 'note')} more"))
    return items
