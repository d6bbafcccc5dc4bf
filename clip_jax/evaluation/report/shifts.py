"""Accuracy under shift, and rates by group of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.report import charts, formats, tables
from clip_jax.evaluation.report.cards import block, card, grid
from clip_jax.evaluation.report.charts import Frame, Point
from clip_jax.evaluation.report.document import datasets_with, part
from clip_jax.evaluation.report.markup import Markup, cut, isolated, join, tag
from clip_jax.evaluation.report.scales import Scale, log_odds, scale_around, share_of
from clip_jax.evaluation.report.tables import Cell, Column, dataset_name

_LINE = ("slope", "intercept", "knee")
_MOST = 400  # standard models in a chart


def robustness(results: Mapping[str, Any]) -> Markup | None:
    """Draws accuracy under shift against accuracy on the reference, as in figure 13."""
    shifts, points, rows, panels = part(results, "robustness", "shifts"), [], [], []
    compared = False
    reference_name = part(results, "robustness").get("reference") or "the reference"
    reference = cut(_title(results, reference_name), 24)
    model = cut(part(results, "model").get("name") or "this model", 18)
    for name, shift in shifts.items():
        value, base = (
            formats.value_of(shift.get("score")),
            formats.value_of(shift.get("reference")),
        )
        effective = formats.number(shift.get("effective"))
        title = _title(results, name)
        gap = None
        if value is not None and base is not None:
            gap = value - base
            others = _pairs(shift.get("standard"))
            if others:
                point = Point(model, base, value)
                panels.append(_panel(title, reference, point, others, shift.get("line"), effective))
            else:
                points.append(Point(title, base, value))
        scores = [tables.score(shift.get(key), drawn=False) for key in ("score", "reference")]
        if effective is None or gap is None or abs(effective - gap) < 1e-9:
            effective = None  # beside no standard models it is the difference again
        rows.append([dataset_name(title), *scores, tables.points(gap), tables.points(effective)])
        compared |= effective is not None
    if not rows:
        return None
    columns = [Column("Shift", numeric=False), Column("Under shift")]
    columns.append(Column(reference, hint="over the same classes"))
    columns.append(Column("Difference", hint="points lost under the shift"))
    note = "Both accuracies are over the same classes. Axes by the logit, as in figure 13."
    if compared:
        columns.append(Column("Effective", hint="points above standard models of this accuracy"))
        note += " Effective robustness: the points above what standard models would have."
    if panels:
        note += " Small dots: standard models, and the line fitted to them. Dashed: no loss."
    cells = (row[: len(columns)] for row in rows)
    body = tables.table("Robustness to natural shifts", columns, cells)
    if points:
        frame = Frame(
            scale_around([p.x for p in points], "logit", share=True),
            scale_around([p.y for p in points], "logit", share=True),
            f"{reference}, same classes",
            "under shift",
            height=300,
        )
        drawn = charts.scatter("Accuracy under shift", frame, points)
        body = tag("div", tag("figure", drawn, class_="card"), body, class_="beside")
    return join(tables.notes(note), grid(panels) if panels else None, body)


def _pairs(values: Any) -> list[tuple[float, float]]:
    """Returns the pairs of numbers among values of any kind."""
    pairs = []
    for item in values if isinstance(values, (list, tuple)) else ():
        if isinstance(item, (list, tuple)) and len(item) == 2:
            x, y = map(formats.number, item)
            if x is not None and y is not None:
                pairs.append((x, y))
    return pairs[:_MOST]


def _panel(
    title: str,
    reference: str,
    point: Point,
    others: Sequence[tuple[float, float]],
    line: Any,
    effective: float | None,
) -> Markup:
    """Draws a chart of one shift: the model, the standard models and their line."""
    x, y = _axis([point.x, *(x for x, _ in others)]), _axis([point.y, *(y for _, y in others)])
    frame = Frame(x, y, f"{reference}, same classes", "under shift", height=230)
    line = line if isinstance(line, Mapping) else {}
    ends = _ends(frame, point, *(formats.number(line.get(key)) for key in _LINE))
    drawn = charts.scatter(f"{title}: accuracy under shift", frame, [point], others, ends)
    count = formats.count(line.get("models"))
    remark = (
        ""
        if effective is None
        else f"{formats.points(effective)} points from the line of {count} models"
    )
    return card(title, drawn, remark)


def _axis(shares: Sequence[float]) -> Scale:
    """Returns a logit scale over all values, with equal margins at both ends."""
    ends = log_odds(min(shares)), log_odds(max(shares))
    air = 0.08 * (ends[1] - ends[0]) or 0.5
    return Scale(share_of(ends[0] - air), share_of(ends[1] + air), "logit", share=True)


def _ends(
    frame: Frame,
    point: Point,
    slope: float | None,
    intercept: float | None,
    knee: float | None,
) -> list[tuple[float, float]]:
    """Returns the ends of a log-odds line within the frame, on the point's side of its knee."""
    if slope is None or intercept is None:
        return []
    low, high = log_odds(frame.x.low), log_odds(frame.x.high)
    steps = (low + (high - low) * i / 200 for i in range(201))
    drawn = ((share_of(x), share_of(slope * x + intercept)) for x in steps)
    inside = [
        (x, y)
        for x, y in drawn
        if frame.y.low <= y <= frame.y.high and (knee is None or (x > knee) == (point.x > knee))
    ]
    return [inside[0], inside[-1]] if inside else []


def _title(results: Mapping[str, Any], name: Any) -> str:
    return str(part(results, "sets", str(name)).get("title") or name)


def bias(results: Mapping[str, Any]) -> Markup | None:
    """Returns tables of rates by group, each with a note."""
    blocks = []
    for title, _, result in datasets_with(results, "bias"):
        table_values = result.get("tables") if isinstance(result, Mapping) else result
        parts = [_table(table) for table in table_values or [] if table.get("columns")]
        if parts:
            blocks.append(block(title, *parts, framed=False))
    notes = tables.notes(
        "Rates by group on one set of images. They can show a harm; they cannot show that there "
        "is none (section 7.1)."
    )
    return join(notes, *blocks) if blocks else None


def _table(values: Mapping[str, Any]) -> Markup:
    names, title = list(values["columns"]), values.get("title") or "Rates by group"
    rows = [[*row, *[None] * len(names)][: len(names)] for row in values.get("rows") or []]
    numeric = [
        i > 0 and all(not isinstance(row[i], str) or not row[i] for row in rows)
        for i in range(len(names))
    ]
    columns = [Column(cut(name, 40), n) for name, n in zip(names, numeric, strict=True)]
    cells = [[_cell(value) for value in row] for row in rows]
    note = values.get("note")
    return tag(
        "div",
        tag("h4", isolated(title, 120)),
        tables.table(cut(title, 120), columns, cells),
        tables.notes(isolated(note, 600)) if note else None,
        class_="card",
    )


def _cell(value: Any) -> Cell:
    if isinstance(value, Mapping):
        return tables.score(value, drawn=False)
    if isinstance(value, float):
        return tables.percent(value) if -1 <= value <= 1 else tables.plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return tables.count(value)
    return Cell(formats.NONE if value is None else isolated(value, 60))
