"""Charts as SVG, sized for phones: text stays readable at a width of 300 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_jax.evaluation.report import formats
from clip_jax.evaluation.report.markup import Markup, cut, decimal, isolated, join, tag
from clip_jax.evaluation.report.scales import Scale

WIDTH, HEIGHT = 320.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 26.0, 40.0
_LINE = 13.0  # from one label of a point to the next
_MOST_POINTS = 240  # on the 260 pixels of a line


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
      name: the name in the legend.
      points: the points (x, y).
      color: a class of the style sheet.
      band: a band around the line, as (x, low, high).
      marks: whether the points are marked.
      dashed: whether the line is dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str = "c1"
    band: Sequence[tuple[float, float, float]] = ()
    marks: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """The axes of a chart.

    Attributes:
      x: the horizontal scale.
      y: the vertical scale.
      x_label: the name of the horizontal axis.
      y_label: the name of the vertical axis.
      height: the height of the chart, in pixels.
    """

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    height: float = HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the position of a point, in pixels."""
        wide, high = WIDTH - LEFT - RIGHT, self.height - TOP - BOTTOM
        return LEFT + wide * self.x.at(x), self.height - BOTTOM - high * self.y.at(y)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Returns a line through points, as the attribute `d` of an SVG path."""
        pixels = (self.at(*point) for point in points)
        return "M" + "L".join(f"{decimal(x)} {decimal(y)}" for x, y in pixels)

    def axes(self, x_ticks: Sequence[tuple[float, str]] | None = None) -> Markup:
        """Draws the lines of the grid, and the numbers and names of the axes."""
        bottom, parts = self.height - BOTTOM, []
        for value, text in self.y.ticks():
            y = self.at(self.x.low, value)[1]
            parts.append(tag("path", d=f"M{LEFT}{_sp(y)}H{WIDTH - RIGHT}", class_="grid"))
            parts.append(tag("text", text, x=LEFT - 6, y=y + 4, class_="end"))
        for value, text in self.x.ticks() if x_ticks is None else x_ticks:
            x = self.at(value, self.y.low)[0]
            parts.append(tag("path", d=f"M{decimal(x)} {decimal(bottom)}v4", class_="axis"))
            parts.append(tag("text", text, x=x, y=bottom + 16, class_="mid"))
        parts.append(tag("path", d=f"M{LEFT}{_sp(bottom)}H{WIDTH - RIGHT}", class_="axis"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(tag("text", self.x_label, x=middle, y=self.height - 6, class_="mid soft"))
        parts.append(tag("text", self.y_label, x=LEFT - 40, y=11, class_="soft"))
        return join(*parts)


def _sp(value: float) -> str:
    return f" {decimal(value)}"


def svg(title: str, description: str, *parts: Markup, height: float = HEIGHT) -> Markup:
    """Returns a drawing with a name and a description for screen readers."""
    return tag(
        "svg",
        tag("title", cut(title, 120)),
        tag("desc", cut(description, 400)),
        *parts,
        viewBox=f"0 0 {decimal(WIDTH)} {decimal(height)}",
        role="img",
        aria_label=cut(f"{title}. {description}", 400),
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most some hundred points, not smoothed.

    They are the lowest and the highest of each stretch, and both ends.
    """
    if len(points) <= _MOST_POINTS:
        return list(points)
    stretch, thinned = -(-len(points) // (_MOST_POINTS // 2)), [points[0]]
    for first in range(0, len(points), stretch):
        part = points[first : first + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        thinned.extend(sorted(ends))
    return [*thinned, points[-1]]


def lines(
    title: str,
    frame: Frame,
    series: Sequence[Series],
    *,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    upright: float | None = None,
) -> Markup:
    """Draws lines with bands.

    Args:
      title: the name of the chart, for readers who do not see it.
      frame: the axes.
      series: the lines.
      x_ticks: values of the horizontal axis with their text; None: those of its scale.
      upright: a value on the horizontal axis to mark with a vertical line.
    """
    parts = [frame.axes(x_ticks)]
    if upright is not None:
        x, y = frame.at(upright, frame.y.high)
        d = f"M{decimal(x)} {decimal(y)}V{decimal(frame.height - BOTTOM)}"
        parts.append(tag("path", d=d, class_="mark"))
    for curve in series:
        if curve.band:
            edge = [(x, high) for x, _, high in curve.band] + [
                (x, low) for x, low, _ in curve.band
            ][::-1]
            parts.append(tag("path", d=frame.path(edge) + "Z", class_=f"band {curve.color}"))
    for curve in series:
        if curve.points:
            kind = f"line {curve.color}" + (" dashed" if curve.dashed else "")
            parts.append(tag("path", d=frame.path(thinned(curve.points)), class_=kind))
        for x, y in curve.points if curve.marks else ():
            label = f"{curve.name}: {_value(frame.y, y)} at {formats.plain(x)}"
            cx, cy = frame.at(x, y)
            parts.append(
                tag("circle", tag("title", label), cx=cx, cy=cy, r=3.0, class_=curve.color)
            )
    ends = (f"{s.name} ends at {_value(frame.y, s.points[-1][1])}" for s in series if s.points)
    drawn = svg(
        title, f"{frame.y_label} by {frame.x_label}: {'; '.join(ends)}", *parts, height=frame.height
    )
    return join(drawn, legend(series) if len(series) > 1 else None)


def _value(scale: Scale, value: float) -> str:
    return formats.percent(value) if scale.share else formats.plain(value)


def legend(series: Sequence[Series]) -> Markup:
    """Returns the names of lines beside their colours."""
    kinds = ((s.name, f"key {s.color}" + (" dashed" if s.dashed else "")) for s in series)
    items = (tag("li", tag("i", class_=kind), isolated(name, 40)) for name, kind in kinds)
    return tag("ul", *items, class_="legend")


def reliability(title: str, bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Draws accuracy by confidence, and the number of images in each bin."""
    frame = Frame(Scale(0, 1, share=True), Scale(0, 1, share=True), "confidence", "accuracy")
    parts = [frame.axes()]
    bins_drawn = [
        [formats.number(b.get(k)) for k in ("low", "high", "n", "confidence", "accuracy")]
        for b in bins
    ]
    most = max((n or 0 for _, _, n, _, _ in bins_drawn), default=0)
    for low, high, n, sure, right in bins_drawn:
        if low is None or high is None or not n or right is None:
            continue
        words = f"{formats.count(n)} images, confidence {formats.percent(sure)}, "
        words += f"right {formats.percent(right)}"
        (x, y), (end, bottom) = frame.at(low, right), frame.at(high, 0)
        box = dict(x=x + 0.5, y=y, width=max(0.5, end - x - 1), height=max(0.5, bottom - y))
        parts.append(tag("rect", tag("title", words), **box, class_="bar c1"))
        tall = 26 * n / most
        parts.append(
            tag(
                "rect",
                tag("title", words),
                x=x + 0.5,
                y=bottom - tall,
                width=max(0.5, end - x - 1),
                height=tall,
                class_="count",
            )
        )
    parts.append(tag("path", d=frame.path([(0, 0), (1, 1)]), class_="line dashed ink"))
    words = "Bars: accuracy of each bin of confidence; dashed: perfect calibration"
    return svg(title, words, *parts)


@dataclass(frozen=True)
class Point:
    """A named point."""

    name: str
    x: float
    y: float


def scatter(
    title: str,
    frame: Frame,
    shown: Sequence[Point],
    others: Sequence[tuple[float, float]] = (),
    line: Sequence[tuple[float, float]] = (),
    *,
    diagonal: bool = True,
) -> Markup:
    """Draws labelled points, small dots with a line, and the diagonal, as an SVG.

    Args:
      title: of the chart, for readers who do not see it.
      frame: the axes.
      shown: points with labels.
      others: coordinates of points without labels, drawn as small dots.
      line: coordinates of the corners of a line that belongs to the dots, such as their fit.
      diagonal: whether points of equal coordinates are marked by a dashed line.
    """
    low, high = max(frame.x.low, frame.y.low), min(frame.x.high, frame.y.high)
    parts = [frame.axes()]
    if diagonal and high > low:
        parts.append(
            tag("path", d=frame.path([(low, low), (high, high)]), class_="line dashed ink")
        )
    if others:
        places = (frame.at(*point) for point in others)
        dots = "".join(f"M{decimal(x)} {decimal(y)}h0" for x, y in places)
        parts.append(
            tag("path", tag("title", f"{len(others)} standard models"), d=dots, class_="dots")
        )
    if line:
        parts.append(tag("path", d=frame.path(line), class_="line c1"))
    placed = [(point, *frame.at(point.x, point.y)) for point in shown]
    for (point, x, y), (label_x, label_y, left) in zip(placed, _labels(placed, frame), strict=True):
        words = f"{point.name}: {formats.percent(point.y)}, reference {formats.percent(point.x)}"
        if abs(label_y - y) > 6:
            d = f"M{decimal(x)} {decimal(y)}L{decimal(label_x)} {decimal(label_y - 4)}"
            parts.append(tag("path", d=d, class_="leader"))
        parts.append(tag("circle", tag("title", words), cx=x, cy=y, r=4.5, class_="c2"))
        kind = "halo end" if left else "halo"
        parts.append(tag("text", cut(point.name, 18), x=label_x, y=label_y, class_=kind))
    description = "; ".join(
        f"{p.name} {formats.percent(p.y)} against {formats.percent(p.x)}" for p in shown
    )
    marks = ["Dashed: no loss under the shift."] * (high > low)
    marks += [f"Dots and line: {len(others)} standard models."] * bool(others)
    return svg(title, " ".join((*marks, description)), *parts, height=frame.height)


def _labels(
    placed: Sequence[tuple[Point, float, float]], frame: Frame
) -> list[tuple[float, float, bool]]:
    """Returns label positions such that none overlap, and whether a label ends at its position."""
    lines: dict[int, float] = {}
    middle = (LEFT + WIDTH) / 2
    for left in (False, True):
        side = [i for i, (_, x, _) in enumerate(placed) if (x > middle) == left]
        side.sort(key=lambda i: placed[i][2])
        edge = TOP
        for i in side:  # downwards, and back up where the last would leave the frame
            edge = lines[i] = max(placed[i][2] + 4, edge + _LINE)
        edge = frame.height - BOTTOM - 3 + _LINE
        for i in reversed(side):
            edge = lines[i] = min(lines[i], edge - _LINE)
    sides = ((x, x > middle) for _, x, _ in placed)
    return [(x - 9 if left else x + 9, lines[i], left) for i, (x, left) in enumerate(sides)]
