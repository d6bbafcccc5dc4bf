"""Images and texts: retrieval, galleries, arithmetic, similarities; and overlapping pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.report import formats, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.cards import block
from clip_jax.evaluation.report.document import datasets_with, part
from clip_jax.evaluation.report.markup import Markup, cut, decimal, isolated, join, tag
from clip_jax.evaluation.report.tables import Cell, Column, dataset_name

_WAYS = {"image_to_text": "Image → text", "text_to_image": "Text → image"}
_SHOWN = 10  # images in a row
_SIDE = 32  # rows and columns of the similarities
_HOT = 0.6  # of the colour scale, where black and white text have equal contrast


def retrieval(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table of recall in both directions."""
    rows = []
    for title, _, result in datasets_with(results, "retrieval"):
        recalls = [part(result, way, f"r{k}") for way in _WAYS for k in (1, 5, 10)]
        if any(recalls):
            cells = [tables.score(recall, drawn=False) for recall in recalls]
            counts = [tables.count(result.get(key)) for key in ("images", "texts")]
            rows.append([dataset_name(title), *cells, *counts])
    if not rows:
        return None
    recall = [Column(f"{way} R@{k}") for way in _WAYS.values() for k in (1, 5, 10)]
    columns = [Column("Set", numeric=False), *recall, Column("Images"), Column("Texts")]
    note = tables.notes(
        "R@k: the share of queries with one of their own among the k most similar. Small: 95 % "
        "interval."
    )
    return join(note, tables.table("Retrieval", columns, rows))


def galleries(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Shows texts with the most similar images."""
    blocks = []
    for title, _, result in datasets_with(results, "retrieval"):
        queries = (result.get("gallery") or [])[:most]
        if queries:
            rows = (_query(query, album, 10 * rank) for rank, query in enumerate(queries))
            blocks.append(block(title, *rows))
    note = tables.notes("The most similar first. “✓ own” marks an image that the text belongs to.")
    return join(note, *blocks) if blocks else None


def _query(query: Mapping[str, Any], album: Album, rank: int) -> Markup:
    pictures = query.get("pictures") or []
    similar, own = query.get("similarities") or [], query.get("own") or []
    shown = []
    for i, name in enumerate(pictures[:_SHOWN]):
        is_own = i < len(own) and bool(own[i])
        value = formats.number(similar[i]) if i < len(similar) else None
        words = "" if value is None else f"{value:.3f}"
        words_own = tag("b", "✓ own", class_="up") if is_own else None
        alt = f"found image {i + 1}" + (", its own" if is_own else "")
        shown.append(thumb(album, name, alt, join(words, " ", words_own), rank + i, own=is_own))
    heading = tag("h4", "“", isolated(query.get("text") or "", 160), "”")
    return tag("div", heading, strip(shown), class_="query")


def thumb(
    album: Album, name: Any, alt: str, below: Markup | str, rank: int, own: bool = False
) -> Markup:
    """Returns an image with a line below it."""
    return tag(
        "figure",
        album.show(name, alt, rank),
        tag("figcaption", below),
        class_="own" if own else None,
    )


def strip(parts: Sequence[Markup]) -> Markup:
    """Places images in a row that wraps."""
    return tag("div", *parts, class_="strip")


def arithmetic(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Shows images plus or minus texts, and the nearest images."""
    blocks = []
    for title, _, result in datasets_with(results, "retrieval"):
        sums = (result.get("arithmetic") or [])[:most]
        if sums:
            rows = (_sum(values, album, 10 * rank) for rank, values in enumerate(sums))
            blocks.append(block(title, *rows))
    note = tables.notes("An image's features plus or less twice a text's, and what lies nearest.")
    return join(note, *blocks) if blocks else None


def _sum(values: Mapping[str, Any], album: Album, rank: int) -> Markup:
    sign = "−" if str(values.get("sign", "+")) in "-−" else "+"
    text = cut(values.get("text") or "", 40)
    left = thumb(album, values.get("picture"), "the image asked with", "", rank)
    right = [
        thumb(album, name, f"found with {sign} {text}, number {i + 1}", "", rank + i)
        for i, name in enumerate((values.get("found") or [])[:_SHOWN])
    ]
    term = tag("b", f"{sign} ", tag("bdi", text), class_="term")
    return tag("div", left, term, tag("span", "=", class_="equals"), strip(right), class_="sum")


def similarity(results: Mapping[str, Any], album: Album) -> Markup | None:
    """Draws the similarities of a batch: texts down, images across, as in figure 1 of the paper."""
    values = part(results, "similarity")
    pictures = (values.get("pictures") or [])[:_SIDE]
    texts = (values.get("texts") or [])[:_SIDE]
    matrix = [
        [formats.number(v) for v in row[: len(texts)]]
        for row in (values.get("matrix") or [])[:_SIDE]
    ]
    cosines = [v for row in matrix for v in row if v is not None]
    if not cosines or not pictures or not texts:
        return None
    low, high = min(cosines), max(cosines)
    alts = (texts[i] if i < len(texts) else "picture" for i in range(len(pictures)))
    head = (
        tag("th", album.show(name, alt, 2), scope="col")
        for name, alt in zip(pictures, alts, strict=True)
    )
    rows = []
    for j, text in enumerate(texts):
        column = [row[j] if j < len(row) else None for row in matrix][: len(pictures)]
        cells = (_heat(v, low, high, i == j) for i, v in enumerate(column))
        rows.append(tag("tr", tag("th", isolated(text, 60), scope="row"), *cells))
    caption = tag("caption", "Cosine similarity of texts and images", class_="hidden")
    table = tag("table", caption, tag("thead", tag("tr", tag("td"), *head)), tag("tbody", *rows))
    matched = sum(
        row[i] is not None and row[i] == max(v for v in row if v is not None)
        for i, row in enumerate(matrix)
        if i < len(row)
    )
    dataset = f" of {cut(values['set'], 40)}" if values.get("set") else ""
    note = tables.notes(
        f"Cosines of {len(texts)} texts and {len(matrix)} images{dataset}; frames: pairs that "
        f"belong together. {matched} of {len(matrix)} images are most similar to their own text."
    )
    label = "Similarities of a batch"
    box = tag("div", table, class_="scroll heat", tabindex="0", role="region", aria_label=label)
    ramp = tag("i", class_="ramp", aria_hidden="true")
    scale = tag("p", f"{low:.2f} ".replace("-", "−"), ramp, f" {high:.2f}", class_="scale")
    return join(note, box, scale)


def _heat(value: float | None, low: float, high: float, own: bool) -> Markup:
    if value is None:
        return tag("td", formats.NONE)
    share = (value - low) / (high - low) if high > low else 0.5
    kind = " ".join(filter(None, ("hot" if share > _HOT else "", "own" if own else "")))
    text = f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
    return tag("td", text, class_=kind or None, style=f"--t:{decimal(100 * share)}%")


def overlap(results: Mapping[str, Any], album: Album, most: int) -> Markup | None:
    """Shows test images that are in the training data, and their effect on accuracy (section 5)."""
    datasets = datasets_with(results, "overlap")
    rows, blocks = [], []
    for title, _, result in datasets:
        low, high = formats.number(result.get("low")), formats.number(result.get("high"))
        spread = (
            formats.NONE
            if low is None or high is None
            else f"{100 * low:.1f}–{formats.percent(high)}"
        )
        scores = [tables.score(result.get(key), drawn=False) for key in ("all", "clean", "overlap")]
        rows.append(
            [
                dataset_name(title),
                tables.count(result.get("overlapping")),
                Cell(formats.percent(result.get("share"), 2), formats.number(result.get("share"))),
                *scores,
                Cell(spread, low),
                tables.points(result.get("difference")),
                tables.plain(result.get("p_value"), 2),
                tables.plain(result.get("threshold")),
            ]
        )
        twins = [_twins(p, album, i) for i, p in enumerate((result.get("pairs") or [])[:most])]
        if twins:
            blocks.append(block(f"{title}: pairs found", strip(twins)))
    if not rows:
        return None
    names = ["Overlapping", "Share", "All", "Clean", "Overlap", "99.5 % of overlap", "All − clean"]
    columns = [Column("Set", numeric=False), *map(Column, names)]
    columns += [Column("p", hint="one-tailed binomial"), Column("Threshold")]
    note = tables.notes(
        "Accuracy on all test images, on those without a near-duplicate in the training data, "
        "and on those with one. All − clean, in points, is what the overlap is worth."
    )
    return join(note, tables.table("Overlap with the training data", columns, rows), *blocks)


def _twins(pair: Mapping[str, Any], album: Album, rank: int) -> Markup:
    value = formats.number(pair.get("similarity"))
    test = album.show(pair.get("test"), "test image", rank)
    train = album.show(pair.get("train"), "training image", rank)
    words = "test, train" if value is None else f"test, train: {value:.3f}"
    return tag("figure", tag("div", test, train, class_="twins"), tag("figcaption", words))
