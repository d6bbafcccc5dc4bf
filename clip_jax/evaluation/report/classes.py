"""Zero-shot class by class: calibration, confusions, accuracies, and single pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.errors import counted
from clip_jax.evaluation.report import charts, say, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.markup import Markup, cut, decimal, join, said, tag
from clip_jax.evaluation.report.overview import sets_with
from clip_jax.evaluation.report.pairs import block
from clip_jax.evaluation.report.probes import card, grid
from clip_jax.evaluation.report.tables import Cell, Column

_LABELS = 5
_FILTERED = 12  # rows: more have a field to filter by


def calibration(results: Mapping[str, Any]) -> Markup | None:
    """Whether a model that says 70 % is right in 70 of 100 cases."""
    made = []
    for title, _, zero in sets_with(results, "zero_shot"):
        values = zero.get("calibration")
        if values:
            drawn = charts.reliability(f"{title}: calibration", values.get("bins") or [])
            words = f"ECE {say.percent(values.get('ece'))}"
            if say.number(values.get("ece_after")) is not None:
                words += f", {say.percent(values['ece_after'])} at temperature "
                words += say.plain(values.get("temperature"))
            more = (("MCE", say.percent(values.get("mce"))), ("NLL", say.plain(values.get("nll"))))
            rest = ", ".join(
                f"{k} {v}" for k, v in (*more, ("Brier", say.plain(values.get("brier"))))
            )
            made.append(card(title, drawn, join(tag("b", words), tag("br"), rest)))
    note = tables.notes(
        "Bars: accuracy of the pictures of each confidence; grey: how many they are; dashed: where "
        "perfect calibration lies. ECE: the expected calibration error, before and after one "
        "temperature is fitted."
    )
    return join(note, grid(made)) if made else None


def confusions(results: Mapping[str, Any], most: int) -> Markup | None:
    """The pairs of classes taken for one another most often."""
    made = []
    for title, _, zero in sets_with(results, "zero_shot"):
        rows = [
            [
                Cell(join(said(c.get("truth"), 50), " → ", said(c.get("predicted"), 50))),
                tables.count(c.get("count")),
                tables.percent(c.get("share")),
            ]
            for c in (zero.get("confusions") or [])[:most]
        ]
        if rows:
            hint = "of the pictures of the true class"
            columns = [Column("Truth → taken for", numeric=False), Column("Count")]
            columns.append(Column("Share", hint=hint))
            made.append(block(title, tables.table(f"{title}: confusions", columns, rows)))
    return grid(made) if made else None


def per_class(results: Mapping[str, Any], most: int) -> Markup | None:
    """Accuracy of every class, worst first, folded."""
    found = [
        (t, z["per_class"]) for t, _, z in sets_with(results, "zero_shot") if z.get("per_class")
    ]
    if not found:
        return None
    return join(
        *(_classes(title, classes, max(10, most // len(found))) for title, classes in found)
    )


def _classes(title: str, classes: Any, most: int) -> Markup:
    ordered = sorted(classes, key=lambda c: _first(say.number(c.get("accuracy"))))
    rows = [
        [
            Cell(said(c.get("label"), 60)),
            tables.count(c.get("n")),
            Cell(_meter(c.get("accuracy")), say.number(c.get("accuracy"))),
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
    return tag("details", tag("summary", said(title, 40), " ", tag("small", size)), *body)


def _first(value: float | None) -> float:
    return 2.0 if value is None else value


def _meter(share: Any) -> Markup:
    found = say.number(share)
    bar = None if found is None else tables.whisker(found, 0.0, found)
    return tag("span", tag("b", say.percent(share)), bar, class_="score")


def predictions(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Pictures drawn at random with the likeliest labels."""
    made = []
    for title, whole, zero in sets_with(results, "zero_shot"):
        examples = (zero.get("examples") or [])[:most]
        if not examples:
            continue
        cards = (_guess(example, album, rank) for rank, example in enumerate(examples))
        of = say.number(whole.get("classes"))
        small = f"the five likeliest of {say.count(of)} labels" if of and of > _LABELS else ""
        shown = tag("div", *cards, class_="guesses")
        made.append(block(title, shown, small=small, framed=False))
    note = tables.notes(
        "Drawn at random. ✓ and green: the likeliest label is the true one; ✗ and orange: it is "
        "another. The true label is marked ✓ among the five, if it is one of them."
    )
    return join(note, *made) if made else None


def _guess(example: Mapping[str, Any], album: Album, rank: int) -> Markup:
    truth, labels = example.get("truth"), (example.get("labels") or [])[:_LABELS]
    own = example.get("truths") or [truth]  # of a picture with several true labels
    shares = [say.number(p) for p in (example.get("probabilities") or [])[:_LABELS]]
    shares += [None] * (len(labels) - len(shares))
    right = bool(labels) and labels[0] in own
    where = next((i for i, label in enumerate(labels, 1) if label in own), None)
    place = "not among the five" if where is None else f"rank {where}"
    rows = (
        _label(label, share, label in own, i == 0)
        for i, (label, share) in enumerate(zip(labels, shares, strict=False))
    )
    sign = tag("span", "✓" if right else "✗", role="img", aria_label="right" if right else "wrong")
    name = example.get("name")
    alt = f"{cut(truth, 60)}" + (f", {cut(name, 40)}" if name else "")
    head = tag("figcaption", sign, " ", tag("b", said(truth, 60)), " ", tag("small", place))
    body = tag("div", head, tag("ol", *rows))
    shown = album.show(example.get("picture"), alt, rank)
    return tag("figure", shown, body, class_="guess right" if right else "guess wrong")


def _label(label: Any, share: float | None, true: bool, first: bool) -> Markup:
    kind = "true" if true else "false" if first else None
    width = 0.0 if share is None else 100 * min(1.0, max(0.0, share))
    return tag(
        "li",
        tag("span", "✓ " if true else None, said(label, 60)),
        tag("em", say.percent(share)),
        class_=kind,
        style=f"--s:{decimal(width)}%",
    )
