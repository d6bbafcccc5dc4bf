"""What accuracy hides: other distributions, and groups of people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.report import charts, say, tables
from clip_jax.evaluation.report.charts import Frame, Point
from clip_jax.evaluation.report.markup import Markup, cut, join, said, tag
from clip_jax.evaluation.report.overview import part, set_name, sets_with
from clip_jax.evaluation.report.pairs import block
from clip_jax.evaluation.report.scales import around
from clip_jax.evaluation.report.tables import Cell, Column


def robustness(results: Mapping[str, Any]) -> Markup | None:
    """Accuracy under shift against accuracy on the reference, as in figure 13."""
    shifts, points, rows = part(results, "robustness", "shifts"), [], []
    compared = False
    reference = _title(results, part(results, "robustness").get("reference") or "the reference")
    for name, found in shifts.items():
        value, base = say.value_of(found.get("score")), say.value_of(found.get("reference"))
        title = _title(results, name)
        gap = None
        if value is not None and base is not None:
            points.append(Point(title, base, value))
            gap = value - base
        scores = [tables.score(found.get(key), drawn=False) for key in ("score", "reference")]
        above = say.number(found.get("effective"))
        rows.append([set_name(title), *scores, tables.points(gap), tables.points(above)])
        compared |= above is not None and gap is not None and abs(above - gap) > 1e-9
    if not rows:
        return None
    columns = [Column("Shift", numeric=False), Column("Under shift")]
    columns.append(Column(cut(reference, 24), hint="over the same classes"))
    columns.append(Column("Difference", hint="points lost under the shift"))
    words = "Both accuracies are over the same classes. Axes by the logit, as in figure 13."
    if compared:
        columns.append(Column("Effective", hint="points above standard models of this accuracy"))
        words += " Effective robustness: the points above what standard models would have."
    note = tables.notes(words)
    shown = (row[: len(columns)] for row in rows)  # uncompared, it would be the difference again
    body = tables.table("Robustness to natural shifts", columns, shown)
    if points:
        frame = Frame(
            around([p.x for p in points], "logit", share=True),
            around([p.y for p in points], "logit", share=True),
            f"{cut(reference, 24)}, same classes",
            "under shift",
            height=300,
        )
        drawn = charts.scatter("Accuracy under shift", frame, points)
        body = tag("div", tag("figure", drawn, class_="card"), body, class_="beside")
    return join(note, body)


def _title(results: Mapping[str, Any], name: Any) -> str:
    return str(part(results, "sets", str(name)).get("title") or name)


def bias(results: Mapping[str, Any]) -> Markup | None:
    """Tables of rates by group, each with its note."""
    made = []
    for title, _, found in sets_with(results, "bias"):
        listed = found.get("tables") if isinstance(found, Mapping) else found
        parts = [_table(table) for table in listed or [] if table.get("columns")]
        if parts:
            made.append(block(title, *parts, framed=False))
    note = tables.notes(
        "Rates by group on one set of pictures. They can show a harm; they cannot show that there "
        "is none (section 7.1)."
    )
    return join(note, *made) if made else None


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
        tag("h4", said(title, 120)),
        tables.table(cut(title, 120), columns, cells),
        tables.notes(said(note, 600)) if note else None,
        class_="card",
    )


def _cell(value: Any) -> Cell:
    if isinstance(value, Mapping):
        return tables.score(value, drawn=False)
    if isinstance(value, float):
        return tables.percent(value) if -1 <= value <= 1 else tables.plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return tables.count(value)
    return Cell(say.NONE if value is None else said(value, 60))
