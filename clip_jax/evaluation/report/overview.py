"""The head of the page: the model, the summary, the table of all sets, prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import counted
from clip_jax.evaluation.report import say, tables
from clip_jax.evaluation.report.markup import Markup, cut, join, said, tag
from clip_jax.evaluation.report.tables import Cell, Column

METRICS = {
    "accuracy": "top-1 accuracy",
    "mean_per_class": "mean per class",
    "map_11_point": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
}


def part(values: Any, *keys: str) -> Any:
    """What lies under keys of dicts in dicts; {} where one is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return {} if values is None else values


def pruned(values: Any) -> Any:
    """The same without what is None, but for places in lists of numbers and texts."""
    if isinstance(values, Mapping):
        return {k: pruned(v) for k, v in values.items() if v is not None}
    if isinstance(values, (list, tuple)):
        flat = any(v is not None and not isinstance(v, (Mapping, list, tuple)) for v in values)
        return [pruned(v) for v in values if flat or v is not None]
    return values


def sets_with(results: Mapping[str, Any], key: str) -> list[tuple[str, Any, Any]]:
    """Title, all of a set's results, and those under `key`, of the sets that have such."""
    sets = part(results, "sets")
    return [
        (str(found.get("title") or name), found, found[key])
        for name, found in sets.items()
        if isinstance(found, Mapping) and found.get(key)
    ]


def header(results: Mapping[str, Any]) -> Markup:
    """The model's name and what there is to know of it."""
    model = part(results, "model")
    size = say.number(model.get("image_size"))
    facts = {
        "Checkpoint": model.get("checkpoint"),
        "Step": _given(model.get("step"), say.count),
        "Parameters": _given(model.get("parameters"), say.count),
        "Image size": None if size is None else f"{say.count(size)} × {say.count(size)}",
        "Computed in": model.get("dtype"),
        "Made": model.get("created"),
        "Took": _given(results.get("seconds"), say.duration),
    }
    items = (
        tag("div", tag("dt", name), tag("dd", said(value, 120)))
        for name, value in facts.items()
        if value is not None
    )
    return tag(
        "header",
        tag("p", "Evaluation report", class_="kicker"),
        tag("h1", said(model.get("name") or "A model", 80)),
        tag("dl", *items, class_="facts"),
    )


def _given(value: Any, speak: Any) -> str | None:
    return None if say.number(value) is None else speak(value)


def _scores(results: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    found = ((title, say.value_of(r.get("score"))) for title, _, r in sets_with(results, key))
    return [(title, value) for title, value in found if value is not None]


def tiles(results: Mapping[str, Any]) -> Markup | None:
    """The run in a few large numbers."""
    zero, probe = _scores(results, "zero_shot"), _scores(results, "linear_probe")
    shown = []
    if zero:
        best, worst = max(zero, key=lambda s: s[1]), min(zero, key=lambda s: s[1])
        shown.append(_tile("Zero-shot, mean", _mean(zero), f"over {counted(len(zero), 'set')}"))
        if len(zero) > 1:
            shown.append(_tile("Best set", say.percent(best[1]), best[0]))
            shown.append(_tile("Worst set", say.percent(worst[1]), worst[0]))
    if probe:
        shown.append(
            _tile("Linear probe, mean", _mean(probe), f"over {counted(len(probe), 'set')}")
        )
    for way, title in (
        ("image_to_text", "Image → text R@1"),
        ("text_to_image", "Text → image R@1"),
    ):
        found = [
            (t, say.value_of(part(r, way, "r1"))) for t, _, r in sets_with(results, "retrieval")
        ]
        known = [(t, v) for t, v in found if v is not None]
        if known:
            shown.append(_tile(title, _mean(known), f"mean over {counted(len(known), 'set')}"))
    gaps = []
    for shift in part(results, "robustness", "shifts").values():
        value, base = say.value_of(shift.get("score")), say.value_of(shift.get("reference"))
        if value is not None and base is not None:
            gaps.append(value - base)
    if gaps:
        mean = say.points(statistics.fmean(gaps))
        shown.append(_tile("Under shift", mean, f"points over {counted(len(gaps), 'set')}"))
    return tag("div", *shown, class_="tiles") if shown else None


def _mean(values: Iterable[tuple[str, float]]) -> str:
    return say.percent(statistics.fmean(value for _, value in values))


def _tile(name: str, value: str, more: str) -> Markup:
    return tag("div", tag("p", name), tag("b", value), tag("small", said(more, 40)), class_="tile")


def accuracy(results: Mapping[str, Any]) -> Markup | None:
    """Every set with its official metric."""
    rows = []
    for name, found in part(results, "sets").items():
        zero, probe = part(found, "zero_shot"), part(found, "linear_probe")
        if not zero and not probe:
            continue
        metric = str(zero.get("metric") or probe.get("metric") or say.NONE)
        top5 = part(zero, "metrics", "top5")
        rows.append(
            [
                set_name(found.get("title") or name, found.get("split")),
                Cell(cut(METRICS.get(metric, metric), 30)),
                tables.score(zero.get("score")),
                tables.percent(top5 if top5 != {} else None),
                tables.score(probe.get("score"), drawn=False),
                tables.count(found.get("images")),
                tables.count(found.get("classes")),
            ]
        )
    columns = [
        Column("Set", numeric=False),
        Column("Metric", numeric=False),
        Column("Zero-shot", hint="the set's metric; the band is its 95 % interval"),
        Column("Top-5", hint="zero-shot, the true label among the five likeliest"),
        Column("Linear probe", hint="logistic regression on the features before the projection"),
        Column("Images"),
        Column("Classes"),
    ]
    if not rows:
        return None
    kept = [i for i in range(len(columns)) if any(row[i].shown != say.NONE for row in rows)]
    columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    note = tables.notes(
        "Each set by the metric its paper uses. The bar runs from 0 to 100 %; the band around the "
        "mark is the 95 % interval. A heading sorts."
    )
    remarks = [
        tag("li", said(found.get("title") or name, 40), ": ", said(found["note"], 300))
        for name, found in part(results, "sets").items()
        if found.get("note")
    ]
    below = tag("ul", *remarks, class_="note remarks") if remarks else None
    return join(note, tables.table("Accuracy on every set", columns, rows), below)


def set_name(title: Any, split: Any = None) -> Cell:
    """The name of a set as the heading of a row."""
    small = tag("small", said(split, 20)) if split else None
    return Cell(join(said(title, 40), small), None)


def prompts(results: Mapping[str, Any]) -> Markup | None:
    """What templates around the label are worth."""
    found = [(t, r["prompts"]) for t, _, r in sets_with(results, "zero_shot") if r.get("prompts")]
    kinds = list(dict.fromkeys(kind for _, scores in found for kind in scores))[:6]
    if not found:
        return None
    rows = []
    for title, scores in found:
        values = [say.value_of(scores.get(kind)) for kind in kinds]
        first, last = values[0], values[-1]
        gain = None if first is None or last is None else last - first
        cells = [tables.score(scores.get(kind)) for kind in kinds]
        rows.append([set_name(title), *cells, tables.points(gain)])
    columns = [
        Column("Set", numeric=False),
        *(Column(cut(kind, 40).capitalize()) for kind in kinds),
    ]
    columns.append(Column("Gain", hint=f"points from “{cut(kinds[0])}” to “{cut(kinds[-1])}”"))
    note = tables.notes(
        "A label alone is often ambiguous. The paper gains 1.3 points on ImageNet by “a photo of a "
        "{}.” and 3.5 more by averaging 80 templates (section 3.1.4)."
    )
    return join(note, tables.table("Prompts compared", columns, rows))
