"""Linear probes beside zero-shot, their regularisation, and few-shot classifiers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.report import charts, formats, tables
from clip_jax.evaluation.report.cards import card, grid
from clip_jax.evaluation.report.charts import Frame, Series
from clip_jax.evaluation.report.document import datasets_with
from clip_jax.evaluation.report.markup import Markup, cut, decimal, isolated, join, tag
from clip_jax.evaluation.report.scales import Scale, scale_around
from clip_jax.evaluation.report.tables import Column
from clip_jax.io.files import JsonObject


def against_zero_shot(results: Mapping[str, Any]) -> Markup | None:
    """Draws the difference between probe and zero-shot on every dataset, as in figure 5."""
    gaps = []
    for title, dataset, probe in datasets_with(results, "linear_probe"):
        zero = formats.value_of((dataset.get("zero_shot") or {}).get("score"))
        value = formats.value_of(probe.get("score"))
        if zero is not None and value is not None:
            gaps.append((title, zero - value))
    if not gaps:
        return None
    gaps.sort(key=lambda pair: -pair[1])
    largest = max(0.01, *(abs(gap) for _, gap in gaps))
    wins = sum(gap > 0 for _, gap in gaps)
    note = tables.notes(
        f"Zero-shot less linear probe, in points: zero-shot is ahead on {wins} of {len(gaps)}. ",
        "The probe has seen every training label, zero-shot none (figure 5).",
    )
    rows = (_bar(title, gap, gap / largest) for title, gap in gaps)
    return join(note, tag("ol", *rows, class_="bars card"))


def trained_classifier(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table of the accuracy of the model's own classifier beside zero-shot."""
    return _beside_zero_shot(results, "classifier", "Classifier")


def scoring(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table of the accuracy of the scoring classifier beside zero-shot."""
    drawn = _beside_zero_shot(results, "scoring", "Scoring")
    note = tables.notes(
        "The label whose prompts are the likeliest captions, by the head that predicts words."
    )
    return join(note, drawn) if drawn else None


def _beside_zero_shot(results: Mapping[str, Any], evaluator: str, name: str) -> Markup | None:
    """Returns a table of an evaluator's scores beside those of zero-shot.

    A dataset with a note in place of a score is listed below the table.
    """
    rows, notes = [], []
    for title, dataset, result in datasets_with(results, evaluator):
        if note := str(result.get("note") or ""):
            notes.append(f"{cut(title, 40)}: {cut(note, 200)}.")
            continue
        zero_shot = (dataset.get("zero_shot") or {}).get("score")
        scores = (tables.score(value) for value in (result.get("score"), zero_shot))
        rows.append([tables.dataset_name(title), *scores])
    if not rows and not notes:
        return None
    columns = [Column("Set", numeric=False), Column(name), Column("Zero-shot")]
    table = tables.table(name, columns, rows) if rows else None
    return join(table, tables.notes(*notes) if notes else None)


def _bar(title: str, difference: float, share: float) -> Markup:
    width = f"width:{decimal(50 * abs(share))}%"
    bar = tag("i", class_="plus" if difference > 0 else "minus", style=width)
    return tag(
        "li",
        tag("span", isolated(title, 40), class_="name"),
        tag("span", bar, class_="track", aria_hidden="true"),
        tables.signed(difference),
    )


def _pairs(xs: Any, ys: Any) -> list[tuple[float, float]]:
    numbers = (
        (formats.number(x), formats.number(y)) for x, y in zip(xs or (), ys or (), strict=False)
    )
    return [(x, y) for x, y in numbers if x is not None and y is not None]


def sweep(results: Mapping[str, Any]) -> Markup | None:
    """Draws validation accuracy by λ."""
    cards = []
    for title, _, probe in datasets_with(results, "linear_probe"):
        tried = probe.get("sweep") or []
        points = _pairs([t.get("lambda") for t in tried], [t.get("accuracy") for t in tried])
        points = sorted(point for point in points if point[0] > 0)
        chosen = formats.number(probe.get("lambda"))
        chosen = chosen if chosen and chosen > 0 else None
        if not points:
            continue
        x = scale_around([p[0] for p in points] + ([chosen] if chosen else []), "log")
        frame = Frame(x, scale_around([p[1] for p in points], share=True), "λ", "validation", 190)
        drawn = charts.lines(
            f"{title}: accuracy by λ",
            frame,
            [Series("accuracy", points, marks=True)],
            upright=chosen,
        )
        train, validating = (
            formats.count(probe.get("train")),
            formats.count(probe.get("validation")),
        )
        caption = f"λ = {formats.plain(chosen)}; {train} to train, {validating} to validate"
        cards.append(card(title, drawn, caption))
    if not cards:
        return None
    note = tables.notes(
        "Tried by halving from seven values; the orange line is the λ that was kept."
    )
    return join(note, grid(cards))


def few_shot(results: Mapping[str, Any]) -> Markup | None:
    """Draws accuracy by labels per class, beside zero-shot, as in figure 6 of the paper."""
    datasets = datasets_with(results, "few_shot")
    cards = [drawn for title, _, values in datasets if (drawn := _few(title, values))]
    if not cards:
        return None
    comparable = [v for _, _, v in datasets if v.get("shots") == datasets[0][2].get("shots")]
    mean = _mean(comparable) if len(comparable) > 1 else None
    if mean and (drawn := _few(f"Mean of {len(comparable)} sets", mean)):
        cards.insert(0, drawn)
    note = tables.notes(
        "Logistic regression on few labels a class. Band: one standard deviation over seeds; "
        "dashed: zero-shot, which needs no label (figure 6)."
    )
    return join(note, grid(cards))


def _mean(values: Sequence[Mapping[str, Any]]) -> JsonObject | None:
    columns = [v.get("mean") or [] for v in values]
    zero = [formats.number(v.get("zero_shot")) for v in values]
    if len({len(c) for c in columns}) != 1 or any(
        formats.number(x) is None for c in columns for x in c
    ):
        return None
    mean = [statistics.fmean(column) for column in zip(*columns, strict=True)]
    known = [z for z in zero if z is not None]
    level = statistics.fmean(known) if len(known) == len(values) else None
    return {"shots": values[0].get("shots"), "mean": mean, "zero_shot": level}


def _few(title: str, values: Mapping[str, Any]) -> Markup | None:
    points = [p for p in _pairs(values.get("shots"), values.get("mean")) if p[0] > 0]
    zero = formats.number(values.get("zero_shot"))
    if not points:
        return None
    spread = dict(_pairs(values.get("shots"), values.get("std")))
    band = [(x, y - spread[x], y + spread[x]) for x, y in points if x in spread]
    ys = [y for _, y in points] + [y for _, *ends in band for y in ends]
    x = Scale(points[0][0], max(points[-1][0], 1.01 * points[0][0]), "log")
    frame = Frame(
        x,
        scale_around(ys + ([] if zero is None else [zero]), share=True),
        "labels a class",
        "accuracy",
        200,
    )
    series = [Series("linear probe", points, band=band, marks=True)]
    if zero is not None:
        ends = [(x.low, zero), (x.high, zero)]
        series.append(Series("zero-shot", ends, "c2", dashed=True))
    ticks = [(shots, formats.plain(shots)) for shots, _ in points]
    drawn = charts.lines(f"{title}: accuracy by labels a class", frame, series, x_ticks=ticks)
    seeds = formats.number(values.get("seeds"))
    crossed = next((s for s, y in points if zero is not None and y >= zero), None)
    remarks = [f"{formats.count(seeds)} seeds"] if seeds else []
    if zero is not None:
        remark = (
            f"reaches zero-shot with {formats.plain(crossed)}"
            if crossed
            else "stays below zero-shot"
        )
        remarks.append(remark)
    return card(title, drawn, "; ".join(remarks))
