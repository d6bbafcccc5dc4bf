"""Pictures of pairs, bars and scales that the pages of a curation have beside those of reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from clip_jax.curation.page.samples import ShownPair, image_name
from clip_jax.curation.queries.matching import needs_space
from clip_jax.evaluation.report import charts, formats
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.charts import BOTTOM, Frame
from clip_jax.evaluation.report.markup import Markup, cut, decimal, join, tag
from clip_jax.evaluation.report.scales import Scale

_CAPTION = 220  # characters of a caption
_EDGE = r" \t\n\r,.;:?!`"  # what a query stands between
_UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


class CountScale(Scale):
    """A scale of counts: its ticks are short, as 20 k."""

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Returns tick values with their text."""
        return [(value, short(value)) for value, _ in super().ticks(most) if value == int(value)]


def short(count: float) -> str:
    """Formats a count in few characters, as `950`, `20 k` or `1.6 G`."""
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g}\u202f{letter}"
    return formats.count(count)


def histogram(
    title: str,
    frame: Frame,
    edges: Sequence[float],
    heights: Sequence[float],
    limits: Iterable[float] = (),
) -> Markup:
    """Draws a histogram, with a mark at each limit.

    Args:
      title: of the chart, for readers who do not see it.
      frame: the axes.
      edges: where bars begin, and where the last ends.
      heights: of the bars.
      limits: places on the horizontal axis.
    """
    parts = [frame.axes()]
    for i, height in enumerate(heights):
        (x, y), (end, bottom) = frame.at(edges[i], height), frame.at(edges[i + 1], 0)
        words = f"{formats.plain(edges[i])} to {formats.plain(edges[i + 1])}: "
        box = dict(x=x + 0.5, y=y, width=max(0.5, end - x - 1), height=max(0.0, bottom - y))
        title_of_bar = tag("title", words + formats.count(height))
        parts.append(tag("rect", title_of_bar, **box, class_="bar c1"))
    for limit in limits:
        x, y = frame.at(limit, frame.y.high)
        d = f"M{decimal(x)} {decimal(y)}V{decimal(frame.height - BOTTOM)}"
        parts.append(tag("path", d=d, class_="mark"))
    highest = max(range(len(heights)), key=lambda i: heights[i])
    peak = f"{formats.plain(edges[highest])} to {formats.plain(edges[highest + 1])}"
    return charts.svg(title, f"{frame.y_label} by {frame.x_label}, most at {peak}", *parts)


def both_bars(before: float, after: float, most: float) -> Markup:
    """Draws a number before and after as two bars, one in the other, of the width of `most`."""

    def share(value: float) -> str:
        return f"{decimal(100 * value / most if most else 0)}%"

    style = f"--b:{share(before)};--a:{share(after)}"
    return tag("i", class_="both", style=style, aria_hidden="true")


def pair_card(
    pair: ShownPair, album: Album, rank: int = 0, query: str = "", remark: str = ""
) -> Markup:
    """Draws a pair: its image, its caption, where it is, and what is wrong with it.

    Args:
      pair: the pair.
      album: the images.
      rank: its place in a list; later images are left out first if not all fit.
      query: a text to mark in the caption.
      remark: what else to say of the pair.
    """
    caption = tag("bdi", marked(cut(pair.caption, _CAPTION), query)) if pair.caption else None
    words = join(
        tag("p", caption) if caption else None,
        tag("p", tag("bdi", cut(pair.fault, _CAPTION)), class_="fault") if pair.fault else None,
        tag("small", tag("bdi", cut(pair.name, 80)), f" · {remark}" if remark else None),
    )
    alt = pair.caption or "picture"
    image = album.show(image_name(pair), alt, rank) if pair.image else None
    return tag("figure", image, tag("figcaption", words), class_="pair")


def pair_grid(cards: Sequence[Markup]) -> Markup:
    """Places pairs side by side."""
    return tag("div", *cards, class_="pairs")


def marked(text: str, query: str) -> Markup:
    """Returns a text in which a query is marked where it stands between spaces or marks."""
    parts, end = [], 0
    for start, stop in spans(text, query):
        parts += [text[end:start], tag("mark", text[start:stop])]
        end = stop
    return join(*parts, text[end:])


def spans(text: str, query: str) -> list[tuple[int, int]]:
    """Returns where a query stands in a text by the rule of `matching`."""
    if not query:
        return []
    pattern = re.escape(query).replace(r"\ ", "[ \t\n\r]")
    before = f"(?<![^{_EDGE}])" if needs_space(query[0]) else ""
    after = f"(?![^{_EDGE}])" if needs_space(query[-1]) else ""
    return [match.span() for match in re.finditer(f"{before}{pattern}{after}", text)]
