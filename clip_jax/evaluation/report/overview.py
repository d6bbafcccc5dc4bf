"""The head of the page: the model, headline numbers, the table of all datasets, prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax.errors import counted
from clip_jax.evaluation.report import formats, tables
from clip_jax.evaluation.report.document import datasets_with, part
from clip_jax.evaluation.report.markup import Markup, cut, isolated, join, tag
from clip_jax.evaluation.report.section import Document, Tile
from clip_jax.evaluation.report.tables import Cell, Column, dataset_name

METRICS = {
    "accuracy": "top-1 accuracy",
    "mean_per_class": "mean per class",
    "map_11_point": "11-point mAP",
    "roc_auc": "ROC AUC",
    "mean_top1_top5": "mean of top-1 and top-5",
}


def header(results: Mapping[str, Any]) -> Markup:
    """Returns the heading of the page: the model's name and facts about it."""
    model = part(results, "model")
    size = formats.number(model.get("image_size"))
    facts = {
        "Checkpoint": model.get("checkpoint"),
        "Step": _formatted(model.get("step"), formats.count),
        "Parameters": _formatted(model.get("parameters"), formats.count),
        "Image size": None if size is None else f"{formats.count(size)} × {formats.count(size)}",
        "Data type": model.get("dtype"),
        "Made": model.get("created"),
        "Duration": _formatted(results.get("seconds"), formats.duration),
    }
    items = (
        tag("div", tag("dt", name), tag("dd", isolated(value, 120)))
        for name, value in facts.items()
        if value is not None
    )
    return tag(
        "header",
        tag("p", "Evaluation report", class_="kicker"),
        tag("h1", isolated(model.get("name") or "A model", 80)),
        tag("dl", *items, class_="facts"),
    )


def _formatted(value: Any, speak: Any) -> str | None:
    return None if formats.number(value) is None else speak(value)


def _scores(results: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    scores = (
        (title, formats.value_of(r.get("score"))) for title, _, r in datasets_with(results, key)
    )
    return [(title, value) for title, value in scores if value is not None]


def zero_shot_tiles(document: Document) -> Iterator[Tile]:
    """Yields the mean zero-shot score, and for several datasets the best and the worst."""
    scores = _scores(document, "zero_shot")
    if not scores:
        return
    yield _mean_tile("Zero-shot, mean", scores)
    if len(scores) > 1:
        for name, choose in (("Best set", max), ("Worst set", min)):
            title, score = choose(scores, key=lambda pair: pair[1])
            yield Tile(name, formats.percent(score), title)


def probe_tiles(document: Document) -> Iterator[Tile]:
    """Yields the mean score of linear probes."""
    if scores := _scores(document, "linear_probe"):
        yield _mean_tile("Linear probe, mean", scores)


def retrieval_tiles(document: Document) -> Iterator[Tile]:
    """Yields the mean recall at 1 in each direction."""
    for way, name in (
        ("image_to_text", "Image → text R@1"),
        ("text_to_image", "Text → image R@1"),
    ):
        recalls = [
            (title, formats.value_of(part(result, way, "r1")))
            for title, _, result in datasets_with(document, "retrieval")
        ]
        known = [(title, recall) for title, recall in recalls if recall is not None]
        if known:
            yield _mean_tile(name, known, "mean over ")


def robustness_tiles(document: Document) -> Iterator[Tile]:
    """Yields the mean difference between accuracy under shift and on the reference."""
    gaps = []
    for shift in part(document, "robustness", "shifts").values():
        shifted = formats.value_of(shift.get("score"))
        reference = formats.value_of(shift.get("reference"))
        if shifted is not None and reference is not None:
            gaps.append(shifted - reference)
    if gaps:
        mean = formats.points(statistics.fmean(gaps))
        yield Tile("Under shift", mean, f"points over {counted(len(gaps), 'set')}")


def _mean_tile(name: str, scores: Sequence[tuple[str, float]], over: str = "over ") -> Tile:
    mean = formats.percent(statistics.fmean(score for _, score in scores))
    return Tile(name, mean, f"{over}{counted(len(scores), 'set')}")


def tiles(shown: Iterable[Tile]) -> Markup | None:
    """Places headline numbers side by side."""
    drawn = [
        tag(
            "div",
            tag("p", tile.name),
            tag("b", tile.value),
            tag("small", isolated(tile.remark, 40)),
            class_="tile",
        )
        for tile in shown
    ]
    return tag("div", *drawn, class_="tiles") if drawn else None


def accuracy(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table of all datasets with their official metrics."""
    rows = []
    for name, dataset in part(results, "sets").items():
        zero_shot, probe = part(dataset, "zero_shot"), part(dataset, "linear_probe")
        if not zero_shot and not probe:
            continue
        metric = str(zero_shot.get("metric") or probe.get("metric") or formats.NONE)
        top5 = part(zero_shot, "metrics", "top5")
        rows.append(
            [
                dataset_name(dataset.get("title") or name, dataset.get("split")),
                Cell(cut(METRICS.get(metric, metric), 30)),
                tables.score(zero_shot.get("score")),
                tables.percent(top5 if top5 != {} else None),
                tables.score(probe.get("score"), drawn=False),
                tables.count(dataset.get("images")),
                tables.count(dataset.get("classes")),
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
    used = [i for i in range(len(columns)) if any(row[i].shown != formats.NONE for row in rows)]
    columns, rows = [columns[i] for i in used], [[row[i] for i in used] for row in rows]
    note = tables.notes(
        "Each set by the metric its paper uses. The bar runs from 0 to 100 %; the band around the "
        "mark is the 95 % interval. A heading sorts."
    )
    remarks = [
        tag("li", isolated(dataset.get("title") or name, 40), ": ", isolated(dataset["note"], 300))
        for name, dataset in part(results, "sets").items()
        if dataset.get("note")
    ]
    below = tag("ul", *remarks, class_="note remarks") if remarks else None
    return join(note, tables.table("Accuracy on every set", columns, rows), below)


def prompts(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table of the scores by kind of prompt."""
    datasets = [
        (t, r["prompts"]) for t, _, r in datasets_with(results, "zero_shot") if r.get("prompts")
    ]
    kinds = list(dict.fromkeys(kind for _, scores in datasets for kind in scores))[:6]
    if not datasets:
        return None
    rows = []
    for title, scores in datasets:
        values = [formats.value_of(scores.get(kind)) for kind in kinds]
        first, last = values[0], values[-1]
        gain = None if first is None or last is None else last - first
        cells = [tables.score(scores.get(kind)) for kind in kinds]
        rows.append([dataset_name(title), *cells, tables.points(gain)])
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
