"""The run behind the model, and what could not be judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.report import charts, say, tables
from clip_jax.evaluation.report.charts import Frame, Series
from clip_jax.evaluation.report.markup import Markup, cut, join, said, tag
from clip_jax.evaluation.report.overview import part
from clip_jax.evaluation.report.probes import card, grid
from clip_jax.evaluation.report.scales import around
from clip_jax.evaluation.report.tables import Cell, Column

_MOST = 48  # charts
_FIRST = ("loss", "learning_rate", "lr", "logit_scale", "grad_norm", "zero_shot", "retrieval")
_SHARES = ("zero_shot", "retrieval", "accuracy", "linear_probe")


def curves(results: Mapping[str, Any]) -> Markup | None:
    """Every curve of the run as it was written; no smoothing."""
    found = []
    for name, values in part(results, "curves").items():
        pairs = (pair for pair in values if len(pair) == 2)
        numbers = ((say.number(step), say.number(y)) for step, y in pairs)
        points = sorted((x, y) for x, y in numbers if x is not None and y is not None)
        if len(points) > 1:
            found.append((str(name), points))
    found.sort(key=lambda curve: (_place(curve[0]), curve[0]))
    made = [_curve(name, points, i) for i, (name, points) in enumerate(found[:_MOST])]
    if not made:
        return None
    words = "As written, nothing smoothed."
    if len(found) > _MOST:
        words += f" The first {_MOST} of {len(found)}; report.json has all."
    return join(tables.notes(words), grid(made))


def _place(name: str) -> int:
    starts = (i for i, start in enumerate(_FIRST) if name.startswith(start))
    return next(starts, len(_FIRST))


def _curve(name: str, points: list[tuple[float, float]], i: int) -> Markup:
    share = any(word in name for word in _SHARES) and all(0 <= y <= 1 for _, y in points)
    low, high = points[0][0], points[-1][0]
    title, series = cut(name.replace("/", " · "), 60), [Series(cut(name), points)]

    def drawn(kind: Any) -> Markup:
        y = around([y for _, y in points], kind, share=share)
        x = around([low, high])
        return charts.lines(f"{title} by step", Frame(x, y, "step", "", 190), series)

    small = f"last {say.percent(points[-1][1]) if share else say.plain(points[-1][1], 4)}"
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
    """Sets that were asked for and are not there, with what to do."""
    rows = [
        [Cell(said(m.get("set"), 40)), Cell(said(m.get("why"), 400))]
        for m in results.get("missing") or []
    ]
    columns = [
        Column("Set", numeric=False),
        Column("What to download, and where to", numeric=False),
    ]
    return tables.table("Sets that were not judged", columns, rows, kind="wide") if rows else None
