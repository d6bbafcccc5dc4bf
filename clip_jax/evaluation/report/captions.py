"""Captions that a model wrote, beside those of people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.report import tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.cards import block
from clip_jax.evaluation.report.document import datasets_with
from clip_jax.evaluation.report.markup import Markup, cut, isolated, join, tag
from clip_jax.evaluation.report.tables import Column

_TRUTHS = 5  # captions of an image


def metrics(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table of CIDEr-D and BLEU-4, by dataset."""
    columns = [
        Column("Set", numeric=False),
        Column("CIDEr-D", hint="from 0 to 10; papers state it times 100"),
        Column("BLEU-4", hint="from 0 to 1"),
        Column("Images"),
        Column("Beams"),
    ]
    rows = [
        [
            tables.dataset_name(title, dataset.get("split")),
            tables.plain(values.get("cider"), 4),
            tables.plain(values.get("bleu4"), 4),
            tables.count(values.get("images")),
            tables.count(values.get("beams")),
        ]
        for title, dataset, values in datasets_with(results, "captioning")
    ]
    return tables.table("Captioning", columns, rows) if rows else None


def examples(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Shows random images with the written caption and the true ones."""
    blocks = []
    for title, _, values in datasets_with(results, "captioning"):
        shown = (values.get("examples") or [])[:most]
        if shown:
            figures = (_figure(example, album, rank) for rank, example in enumerate(shown))
            drawn = tag("div", *figures, class_="guesses")
            blocks.append(block(title, drawn, framed=False))
    note = tables.notes("Drawn at random. Bold: written by the model; below: by people.")
    return join(note, *blocks) if blocks else None


def _figure(example: Mapping[str, Any], album: Album, rank: int) -> Markup:
    caption, truths = example.get("caption") or "", (example.get("truths") or [])[:_TRUTHS]
    head = tag("figcaption", tag("b", isolated(caption, 200) if caption else "(no words)"))
    body = tag("div", head, *(tag("p", isolated(text, 200), class_="note") for text in truths))
    shown = album.show(example.get("picture"), cut(truths[0] if truths else caption, 60), rank)
    return tag("figure", shown, body, class_="guess")
