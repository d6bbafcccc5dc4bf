"""Cards and blocks: charts, tables and images under the name of their dataset."""

from __future__ import annotations

from collections.abc import Sequence

from clip_jax.evaluation.report.markup import Markup, isolated, join, tag

_UNFOLDED = 9  # cards of a grid


def block(title: str, *parts: Markup, small: str = "", framed: bool = True) -> Markup:
    """Returns a framed block with the name of a dataset as its heading.

    Args:
      title: the name of the dataset.
      parts: the content.
      small: small print beside the heading.
      framed: whether the block has a frame.
    """
    heading = tag("h3", isolated(title, 60), tag("small", small) if small else None)
    return tag("section", heading, *parts, class_="card block" if framed else "block")


def card(title: str, body: Markup, small: Markup | str = "") -> Markup:
    """Returns a chart with its name and small print above it."""
    caption = tag("figcaption", tag("h3", isolated(title, 40)), tag("p", small) if small else None)
    return tag("figure", caption, body, class_="card")


def grid(cards: Sequence[Markup]) -> Markup:
    """Places cards side by side; if there are many, the rest is collapsed."""
    shown = tag("div", *cards[:_UNFOLDED], class_="grid")
    rest = cards[_UNFOLDED:]
    if not rest:
        return shown
    summary = tag("summary", f"{len(rest)} more")
    return join(shown, tag("details", summary, tag("div", *rest, class_="grid"), class_="more"))
