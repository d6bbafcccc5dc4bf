"""Linear probes beside zero-shot, their regularisation, and few labels a class."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.report import charts, say, tables
from clip_jax.evaluation.report.charts import Frame, Series
from clip_jax.evaluation.report.markup import Markup, decimal, join, said, tag
from clip_jax.evaluation.report.overview import sets_with
from clip_jax.evaluation.report.scales import Scale, around

_UNFOLDED = 9  # cards


def against_zero_shot(results: Mapping[str, Any]) -> Markup | None:
    """The difference on every set, as figure 5 of the paper draws it."""
    found = []
    for title, whole, probe in sets_with(results, "linear_probe"):
        zero = say.value_of((whole.get("zero_shot") or {}).get("score"))
        value = say.value_of(probe.get("score"))
        if zero is not None and value is not None:
            found.append((title, zero - value))
    if not found:
        return None
    found.sort(key=lambda pair: -pair[1])
    most = max(0.01, *(abs(difference) for _, difference in found))
    wins = sum(difference > 0 for _, difference in found)
    note = tables.notes(
        f"Zero-shot less linear probe, in points: zero-shot is ahead on {wins} of {len(found)}. ",
        "The probe has seen every training label, zero-shot none (figure 5).",
    )
    rows = (_bar(title, difference, difference / most) for title, difference in found)
    return join(note, tag("ol", *rows, class_="bars card"))


def _bar(title: str, difference: float, share: float) -> Markup:
    width = f"width:{decimal(50 * abs(share))}%"
    bar = tag("i", class_="plus" if difference > 0 else "minus", style=width)
    return tag(
        "li",
        tag("span", said(title, 40), class_="name"),
        tag("span", bar, class_="track", aria_hidden="true"),
        tables.signed(difference),
    )


def _pairs(xs: Any, ys: Any) -> list[tuple[float, float]]:
    found = ((say.number(x), say.number(y)) for x, y in zip(xs or (), ys or (), strict=False))
    return [(x, y) for x, y in found if x is not None and y is not None]


def sweep(results: Mapping[str, Any]) -> Markup | None:
    """Validation accuracy by λ, where it was tried."""
    made = []
    for title, _, probe in sets_with(results, "linear_probe"):
        tried = probe.get("sweep") or []
        points = _pairs([t.get("lambda") for t in tried], [t.get("accuracy") for t in tried])
        points = sorted(point for point in points if point[0] > 0)
        chosen = say.number(probe.get("lambda"))
        chosen = chosen if chosen and chosen > 0 else None
        if not points:
            continue
        x = around([p[0] for p in points] + ([chosen] if chosen else []), "log")
        frame = Frame(x, around([p[1] for p in points], share=True), "λ", "validation", 190)
        drawn = charts.lines(
            f"{title}: accuracy by λ",
            frame,
            [Series("accuracy", points, marks=True)],
            upright=chosen,
        )
        train, held = say.count(probe.get("train")), say.count(probe.get("validation"))
        line = f"λ = {say.plain(chosen)}; {train} to train, {held} to validate"
        made.append(card(title, drawn, line))
    if not made:
        return None
    note = tables.notes(
        "Tried by halving from seven values; the orange line is the λ that was kept."
    )
    return join(note, grid(made))


def few_shot(results: Mapping[str, Any]) -> Markup | None:
    """Accuracy by labels a class, beside zero-shot, as in figure 6."""
    found = sets_with(results, "few_shot")
    made = [drawn for title, _, values in found if (drawn := _few(title, values))]
    if not made:
        return None
    alike = [v for _, _, v in found if v.get("shots") == found[0][2].get("shots")]
    mean = _mean(alike) if len(alike) > 1 else None
    if mean and (drawn := _few(f"Mean of {len(alike)} sets", mean)):
        made.insert(0, drawn)
    note = tables.notes(
        "Logistic regression on few labels a class. Band: one standard deviation over seeds; "
        "dashed: zero-shot, which needs no label (figure 6)."
    )
    return join(note, grid(made))


def _mean(values: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    columns = [v.get("mean") or [] for v in values]
    zero = [say.number(v.get("zero_shot")) for v in values]
    if len({len(c) for c in columns}) != 1 or any(
        say.number(x) is None for c in columns for x in c
    ):
        return None
    mean = [statistics.fmean(column) for column in zip(*columns, strict=True)]
    known = [z for z in zero if z is not None]
    level = statistics.fmean(known) if len(known) == len(values) else None
    return {"shots": values[0].get("shots"), "mean": mean, "zero_shot": level}


def _few(title: str, values: Mapping[str, Any]) -> Markup | None:
    points = [p for p in _pairs(values.get("shots"), values.get("mean")) if p[0] > 0]
    zero = say.number(values.get("zero_shot"))
    if not points:
        return None
    spread = dict(_pairs(values.get("shots"), values.get("std")))
    band = [(x, y - spread[x], y + spread[x]) for x, y in points if x in spread]
    ys = [y for _, y in points] + [y for _, *ends in band for y in ends]
    x = Scale(points[0][0], max(points[-1][0], 1.01 * points[0][0]), "log")
    frame = Frame(
        x,
        around(ys + ([] if zero is None else [zero]), share=True),
        "labels a class",
        "accuracy",
        200,
    )
    series = [Series("linear probe", points, band=band, marks=True)]
    if zero is not None:
        ends = [(x.low, zero), (x.high, zero)]
        series.append(Series("zero-shot", ends, "c2", dashed=True))
    ticks = [(shots, say.plain(shots)) for shots, _ in points]
    drawn = charts.lines(f"{title}: accuracy by labels a class", frame, series, x_ticks=ticks)
    seeds = say.number(values.get("seeds"))
    crossed = next((s for s, y in points if zero is not None and y >= zero), None)
    words = [f"{say.count(seeds)} seeds"] if seeds else []
    if zero is not None:
        equal = (
            f"reaches zero-shot with {say.plain(crossed)}" if crossed else "stays below zero-shot"
        )
        words.append(equal)
    return card(title, drawn, "; ".join(words))


def card(title: str, body: Markup, small: Markup | str = "") -> Markup:
    """A chart with its name."""
    caption = tag("figcaption", tag("h3", said(title, 40)), tag("p", small) if small else None)
    return tag("figure", caption, body, class_="card")


def grid(cards: Sequence[Markup]) -> Markup:
    """Cards side by side, as many as there is width for; where they are many, the rest folded."""
    shown = tag("div", *cards[:_UNFOLDED], class_="grid")
    rest = cards[_UNFOLDED:]
    if not rest:
        return shown
    summary = tag("summary", f"{len(rest)} more")
    return join(shown, tag("details", summary, tag("div", *rest, class_="grid"), class_="more"))
