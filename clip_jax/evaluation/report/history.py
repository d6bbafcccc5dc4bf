"""The curves of the run, and what could not be evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.report import charts, formats, tables
from clip_jax.evaluation.report.cards import card, grid
from clip_jax.evaluation.report.charts import Frame, Series
from clip_jax.evaluation.report.document import part
from clip_jax.evaluation.report.markup import Markup, cut, isolated, join, tag
from clip_jax.evaluation.report.scales import scale_around
from clip_jax.evaluation.report.tables import Cell, Column

_MOST = 48  # charts
_FIRST = ("loss", "learning_rate", "lr", "logit_scale", "grad_norm", "zero_shot", "retrieval")
_SHARES = ("zero_shot", "retrieval", "accuracy", "linear_probe")


def curves(results: Mapping[str, Any]) -> Markup | None:
    """Draws the curves of the run's metrics, without smoothing."""
    by_name = []
    for name, values in part(results, "curves").items():
        pairs = (pair for pair in values if len(pair) == 2)
        numbers = ((formats.number(step), formats.number(y)) for step, y in pairs)
        points = sorted((x, y) for x, y in numbers if x is not None and y is not None)
        if len(points) > 1:
            by_name.append((str(name), points))
    by_name.sort(key=lambda curve: (_place(curve[0]), curve[0]))
    cards = [_curve(name, points, i) for i, (name, points) in enumerate(by_name[:_MOST])]
    if not cards:
        return None
    note = "As written, nothing smoothed."
    if len(by_name) > _MOST:
        note += f" The first {_MOST} of {len(by_name)}; report.json has all."
    return join(tables.notes(note), grid(cards))


def _place(name: str) -> int:
    starts = (i for i, start in enumerate(_FIRST) if name.startswith(start))
    return next(starts, len(_FIRST))


def _curve(name: str, points: list[tuple[float, float]], i: int) -> Markup:
    share = any(word in name for word in _SHARES) and all(0 <= y <= 1 for _, y in points)
    low, high = points[0][0], points[-1][0]
    title, series = cut(name.replace("/", " · "), 60), [Series(cut(name), points)]

    def drawn(kind: Any) -> Markup:
        y = scale_around([y for _, y in points], kind, share=share)
        x = scale_around([low, high])
        return charts.lines(f"{title} by step", Frame(x, y, "step", "", 190), series)

    small = f"last {formats.percent(points[-1][1]) if share else formats.plain(points[-1][1], 4)}"
    if "loss" not in name or any(y <= 0 for _, y in points):
        return card(title, drawn("linear"), small)
    switch = [
        part_
        for kind in ("linear", "log")
        for part_ in (
            tag(
                "input",
                type="radio",
                name=f"axis{i}",
                id=f"axis{i}{kind}",
                class_=f"to-{kind}",
                checked=kind == "linear",
            ),
            tag("label", kind, for_=f"axis{i}{kind}"),
        )
    ]
    charts_ = (tag("div", drawn(kind), class_=f"as-{kind}") for kind in ("linear", "log"))
    group = dict(class_="switch", role="group", aria_label=f"{title}: vertical axis")
    return card(title, tag("div", *switch, *charts_, **group), small)


def missing(results: Mapping[str, Any]) -> Markup | None:
    """Lists datasets that are missing, and what to do."""
    rows = [
        [Cell(isolated(m.get("set"), 40)), Cell(isolated(m.get("why"), 400))]
        for m in results.get("missing") or []
    ]
    columns = [
        Column("Set", numeric=False),
        Column("What to download, and where to", numeric=False),
    ]
    return tables.table("Sets that were not judged", columns, rows, kind="wide") if rows else None
