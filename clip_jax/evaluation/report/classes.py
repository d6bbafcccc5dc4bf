"""Zero-shot results in detail: calibration, confusions, accuracy by class, examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.errors import counted
from clip_jax.evaluation.report import charts, formats, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.cards import block, card, grid
from clip_jax.evaluation.report.document import datasets_with
from clip_jax.evaluation.report.markup import Markup, cut, decimal, isolated, join, tag
from clip_jax.evaluation.report.tables import Cell, Column

_LABELS = 5
_FILTERED = 12  # rows of a table without a filter


def calibration(results: Mapping[str, Any]) -> Markup | None:
    """Draws reliability diagrams with the calibration errors."""
    cards = []
    for title, _, zero in datasets_with(results, "zero_shot"):
        values = zero.get("calibration")
        if values:
            drawn = charts.reliability(f"{title}: calibration", values.get("bins") or [])
            headline = f"ECE {formats.percent(values.get('ece'))}"
            if formats.number(values.get("ece_after")) is not None:
                headline += f", {formats.percent(values['ece_after'])} at temperature "
                headline += formats.plain(values.get("temperature"))
            extra = (
                ("MCE", formats.percent(values.get("mce"))),
                ("NLL", formats.plain(values.get("nll"))),
            )
            details = ", ".join(
                f"{k} {v}" for k, v in (*extra, ("Brier", formats.plain(values.get("brier"))))
            )
            cards.append(card(title, drawn, join(tag("b", headline), tag("br"), details)))
    note = tables.notes(
        "Bars: accuracy of the images of each confidence; grey: how many they are; dashed: where "
        "perfect calibration lies. ECE: the expected calibration error, before and after one "
        "temperature is fitted."
    )
    return join(note, grid(cards)) if cards else None


def confusions(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Lists the pairs of classes that are confused most often."""
    blocks = []
    for title, _, zero in datasets_with(results, "zero_shot"):
        rows = [
            [
                Cell(join(isolated(c.get("truth"), 50), " → ", isolated(c.get("predicted"), 50))),
                tables.count(c.get("count")),
                tables.percent(c.get("share")),
            ]
            for c in (zero.get("confusions") or [])[:most]
        ]
        if rows:
            hint = "of the images of the true class"
            columns = [Column("Truth → taken for", numeric=False), Column("Count")]
            columns.append(Column("Share", hint=hint))
            blocks.append(block(title, tables.table(f"{title}: confusions", columns, rows)))
    return grid(blocks) if blocks else None


def per_class(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Draws a collapsed table with the accuracy of every class, worst first."""
    datasets = [
        (t, z["per_class"]) for t, _, z in datasets_with(results, "zero_shot") if z.get("per_class")
    ]
    if not datasets:
        return None
    return join(
        *(_classes(title, classes, max(10, most // len(datasets))) for title, classes in datasets)
    )


def _classes(title: str, classes: Any, most: int) -> Markup:
    ordered = sorted(classes, key=lambda c: _first(formats.number(c.get("accuracy"))))
    rows = [
        [
            Cell(isolated(c.get("label"), 60)),
            tables.count(c.get("n")),
            Cell(_meter(c.get("accuracy")), formats.number(c.get("accuracy"))),
        ]
        for c in ordered[:most]
    ]
    columns = [Column("Class", numeric=False), Column("Images"), Column("Accuracy")]
    body = [tables.table(f"{title}: accuracy by class", columns, rows, kind="tall")]
    if len(rows) > _FILTERED:
        words = f"Filter the classes of {cut(title, 40)}"
        body.insert(
            0,
            tag(
                "input",
                type="search",
                class_="filter",
                placeholder="Filter",
                aria_label=words,
                hidden=True,
            ),
        )
    if len(ordered) > most:
        body.append(tables.notes(f"The {most} worst of {len(ordered):,}; report.json has all."))
    size = counted(len(ordered), "class", "classes")
    return tag("details", tag("summary", isolated(title, 40), " ", tag("small", size)), *body)


def _first(value: float | None) -> float:
    return 2.0 if value is None else value


def _meter(share: Any) -> Markup:
    value = formats.number(share)
    bar = None if value is None else tables.whisker(value, 0.0, value)
    return tag("span", tag("b", formats.percent(share)), bar, class_="score")


def predictions(
    results: Mapping[str, Any], album: Album, most: int, evaluator: str = "zero_shot"
) -> Markup | None:
    """Shows random images with their likeliest labels, by an evaluator that has `examples`."""
    blocks = []
    for title, dataset, zero in datasets_with(results, evaluator):
        examples = (zero.get("examples") or [])[:most]
        if not examples:
            continue
        guesses = (_guess(example, album, rank) for rank, example in enumerate(examples))
        count = formats.number(dataset.get("classes"))
        small = (
            f"the five likeliest of {formats.count(count)} labels"
            if count and count > _LABELS
            else ""
        )
        drawn = tag("div", *guesses, class_="guesses")
        blocks.append(block(title, drawn, small=small, framed=False))
    note = tables.notes(
        "Drawn at random. ✓ and green: the likeliest label is the true one; ✗ and orange: it is "
        "another. The true label is marked ✓ among the five, if it is one of them."
    )
    return join(note, *blocks) if blocks else None


def _guess(example: Mapping[str, Any], album: Album, rank: int) -> Markup:
    truth, labels = example.get("truth"), (example.get("labels") or [])[:_LABELS]
    truths = example.get("truths") or [truth]  # of an image with several true labels
    shares = [formats.number(p) for p in (example.get("probabilities") or [])[:_LABELS]]
    shares += [None] * (len(labels) - len(shares))
    right = bool(labels) and labels[0] in truths
    rank_of_truth = next((i for i, label in enumerate(labels, 1) if label in truths), None)
    place = "not among the five" if rank_of_truth is None else f"rank {rank_of_truth}"
    rows = (
        _label(label, share, label in truths, i == 0)
        for i, (label, share) in enumerate(zip(labels, shares, strict=False))
    )
    sign = tag("span", "✓" if right else "✗", role="img", aria_label="right" if right else "wrong")
    name = example.get("name")
    alt = f"{cut(truth, 60)}" + (f", {cut(name, 40)}" if name else "")
    head = tag("figcaption", sign, " ", tag("b", isolated(truth, 60)), " ", tag("small", place))
    body = tag("div", head, tag("ol", *rows))
    shown = album.show(example.get("picture"), alt, rank)
    return tag("figure", shown, body, class_="guess right" if right else "guess wrong")


def _label(label: Any, share: float | None, true: bool, first: bool) -> Markup:
    kind = "true" if true else "false" if first else None
    width = 0.0 if share is None else 100 * min(1.0, max(0.0, share))
    return tag(
        "li",
        tag("span", "✓ " if true else None, isolated(label, 60)),
        tag("em", formats.percent(share)),
        class_=kind,
        style=f"--s:{decimal(width)}%",
    )
