"""Tables that scroll in their own box, sort, and show scores with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from clip_jax.evaluation.report import formats
from clip_jax.evaluation.report.markup import Markup, cut, decimal, isolated, join, tag


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      shown: the content.
      key: the sort key; None to sort by the text.
    """

    shown: Markup | str
    key: float | None = None


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: the heading.
      numeric: whether the cells are numbers.
      hint: the text that appears on hovering over the heading.
    """

    name: str
    numeric: bool = True
    hint: str | None = None


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    sortable: bool = True,
    kind: str = "",
) -> Markup:
    """Returns a table in a scrolling box. The first cell of a row is its heading."""
    head = (
        tag(
            "th",
            column.name,
            scope="col",
            class_="n" if column.numeric else None,
            title=column.hint,
        )
        for column in columns
    )
    body = (tag("tr", *_row(columns, row)) for row in rows)
    caption = cut(caption, 140)
    element = tag(
        "table",
        tag("caption", caption, class_="hidden"),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
        class_=" ".join(filter(None, ("sortable" if sortable else "", kind))) or None,
    )
    return tag("div", element, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _row(columns: Sequence[Column], row: Sequence[Cell]) -> Iterable[Markup]:
    for i, (column, cell) in enumerate(zip(columns, row, strict=True)):
        # six digits suffice to sort
        key = None if cell.key is None else f"{cell.key:.6g}"
        kind = "n" if column.numeric else None
        if i == 0:
            yield tag("th", cell.shown, scope="row", class_=kind, data_v=key)
        else:
            yield tag("td", cell.shown, class_=kind, data_v=key)


def percent(share: Any) -> Cell:
    """Returns a cell with a share in percent."""
    return Cell(formats.percent(share), formats.number(share))


def count(value: Any) -> Cell:
    """Returns a cell with a whole number."""
    return Cell(formats.count(value), formats.number(value))


def plain(value: Any, digits: int = 3) -> Cell:
    """Returns a cell with a number of any size."""
    return Cell(formats.plain(value, digits), formats.number(value))


def points(difference: Any) -> Cell:
    """Returns a cell with a difference in percentage points."""
    return Cell(signed(difference), formats.number(difference))


def signed(difference: Any) -> Markup:
    """Returns a difference in percentage points, coloured and with its sign."""
    number = formats.number(difference)
    kind = None if not number else "up" if number > 0 else "down"
    return tag("span", formats.points(difference), class_=kind)


def score(value: Any, *, drawn: bool = True) -> Cell:
    """Returns a cell with a score and its 95 % interval, as a small bar or as text."""
    number = formats.value_of(value)
    if number is None:
        return Cell(formats.NONE)
    spread = formats.interval(value)
    hint = f"95 % interval {spread}" if spread else None
    parts = [tag("b", formats.percent(number))]
    if drawn:
        ends = (value.get("low"), value.get("high")) if isinstance(value, dict) else (None, None)
        parts.append(whisker(number, *map(formats.number, ends)))
    elif spread:
        parts.append(tag("small", spread))
    return Cell(tag("span", *parts, class_="score", title=hint), number)


def whisker(value: float, low: float | None, high: float | None) -> Markup:
    """Draws a value on a line from 0 to 100 %, with its interval as a band.

    An end of the interval that is None is the value itself.
    """

    def at(share: float) -> str:
        return f"{decimal(100 * min(1.0, max(0.0, share)))}%"

    low, high = value if low is None else low, value if high is None else high
    style = f"--v:{at(value)};--l:{at(low)};--w:{at(high - low)}"
    return tag("i", class_="ci", style=style, aria_hidden="true")


def notes(*parts: Markup | str | None) -> Markup:
    """Returns small print, to stand below a table or above a chart."""
    return tag("p", join(*parts), class_="note")


def dataset_name(title: Any, split: Any = None) -> Cell:
    """Returns a cell with the title of a dataset, the heading of a row."""
    small = tag("small", isolated(split, 20)) if split else None
    return Cell(join(isolated(title, 40), small), None)
