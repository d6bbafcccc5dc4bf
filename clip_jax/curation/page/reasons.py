"""Which pairs each rule leaves out, with its limit, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clip_jax.curation.overlaps import THRESHOLD
from clip_jax.curation.page.drawings import pair_card, pair_grid
from clip_jax.curation.page.samples import Place, ShownPair
from clip_jax.errors import counted
from clip_jax.evaluation.report import formats, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.markup import Markup, cut, decimal, isolated, join, tag
from clip_jax.io.files import JsonObject


def limits_of_rules(report: JsonObject) -> dict[str, str]:
    """Returns the limit of each rule that was applied, in words, by the reason that it gives.

    Args:
      report: the content of `curation.json`.
    """
    rules = report["rules"]
    queries = report["queries"]
    texts = {
        "side": ("min_side", "at least {:,} pixels"),
        "aspect": ("aspect_below", "longer side less than {:g} × the shorter"),
        "rare_words": ("frequent", "only the {:,} most frequent"),
        "many_texts": ("texts_per_image", "at most {:,} texts an image"),
        "shared_text": ("images_per_text", "at most {:,} images a text"),
        "duplicate": ("duplicates", "the first with the same {}"),
        "near_duplicate": ("near", "more than {} of 64 bits differ"),
    }
    limits = {
        reason: words.format(rules[key]) for reason, (key, words) in texts.items() if key in rules
    }
    low, high = rules.get("min_words"), rules.get("max_words")
    if low or high:
        bounds = f"{low} to {high}" if low and high else f"at least {low}" if low else ""
        bounds = bounds or f"at most {high}"
        limits["words"] = f"{bounds} words"
    if sets := rules.get("test_sets"):
        least = rules.get("test_similarity", THRESHOLD)
        limits["test_image"] = f"similarity below {least:g} to {counted(len(sets), 'test set')}"
    if len(queries) > 1:
        limits["language"] = f"{len(queries)} languages"
    if queries:
        limits["no_query"] = "one query or more"
        if rules.get("balance", True):
            limits["balance"] = limit_text(report)
    for column in report.get("columns", ()):
        name = column["column"]
        reason = name if name in report["reasons"] else f"column {name}"
        limits[reason] = column_limit(column)
    return limits


def limit_text(report: JsonObject) -> str:
    """Returns t in words, or the least and the greatest if languages differ."""
    values = list(report["limits"].values())
    if len(set(values)) == 1:
        return f"t = {values[0]:,}"
    return f"t = {min(values):,} … {max(values):,} by language" if values else formats.NONE


def column_limit(column: Mapping[str, float | None]) -> str:
    """Returns the limits of a column in words."""
    least, most = column["least"], column["most"]
    parts = [f"at least {formats.plain(least)}" if least is not None else ""]
    parts += [f"at most {formats.plain(most)}" if most is not None else ""]
    return ", ".join(filter(None, parts))


def funnel(report: JsonObject) -> Markup:
    """Draws how many pairs are left after each rule."""
    total, left = report["pairs"], report["pairs"]
    counts = {item["reason"]: item["pairs"] for item in report["left_out"]}
    limits = limits_of_rules(report)
    rows = [_row("all pairs", cut(report["data"], 120), "", total, 0, total)]
    for reason, meaning in report["reasons"].items():
        if reason in counts or reason in limits:
            out = counts.get(reason, 0)
            left -= out
            kind = "rule" if out else "rule idle"
            rows.append(_row(reason, meaning, limits.get(reason, ""), left, out, total, kind))
    rows.append(_row("kept", "what the selection holds", "", left, 0, total, "kept"))
    note = tables.notes(
        "Rules apply from top to bottom; a pair that is left out has the first reason that holds. "
        "Blue: pairs that are left; orange: pairs that the rule leaves out."
    )
    return join(note, tag("ol", *rows, class_="card funnel"))


def _row(
    name: str, meaning: str, limit: str, left: int, out: int, total: int, kind: str = ""
) -> Markup:
    """Draws a rule: the pairs that are left after it, and those that it leaves out."""

    def share(pairs: int) -> float:
        return pairs / total if total else 0.0

    style = f"--left:{decimal(100 * share(left))}%;--out:{decimal(100 * share(out))}%"
    number = formats.count(left)
    if kind.startswith("rule"):
        number = f"−{out:,}" if out else "0"
    shown = out if kind == "rule" else left
    percent = "left out" if kind == "rule idle" else formats.percent(share(shown))
    words = tag(
        "div",
        tag("b", isolated(name, 60)),
        tag("span", cut(limit, 90), class_="limit") if limit else None,
        tag("small", isolated(meaning, 160)),
        class_="name",
    )
    figures = tag("div", tag("b", number), tag("small", percent), class_="n")
    bar = tag("i", class_="flow", style=style, aria_hidden="true")
    title = f"{left:,} of {total:,} pairs are left"
    return tag("li", words, bar, figures, class_=kind or None, title=title)


def samples(report: JsonObject, pairs: Mapping[Place, ShownPair], album: Album) -> Markup:
    """Shows random pairs that are kept, and of those that each rule leaves out.

    Args:
      report: the content of `curation.json`.
      pairs: the pairs by their places.
      album: their images.
    """
    counts = {item["reason"]: item["pairs"] for item in report["left_out"]}
    counts["kept"] = report["kept"]
    meanings = {"kept": "pairs of the selection", **report["reasons"]}
    blocks = []
    for reason in ("kept", *report["reasons"]):
        chosen = [pairs[place] for place in places(report, reason) if place in pairs]
        if chosen:
            cards = [pair_card(pair, album, rank) for rank, pair in enumerate(chosen)]
            small = f"{counted(counts.get(reason, 0), 'pair')}: {meanings[reason]}"
            heading = tag("h3", isolated(reason, 60), tag("small", small))
            blocks.append(tag("section", heading, pair_grid(cards), class_="block"))
    note = tables.notes("Drawn at random by content and seed, so another run draws the same.")
    return join(note, *blocks)


def places(report: JsonObject, reason: str) -> Sequence[Place]:
    """Returns the places of the random pairs of a reason, or of kept ones."""
    return [Place(str(at["file"]), int(at["pair"])) for at in report["samples"].get(reason, ())]
