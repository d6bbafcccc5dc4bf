"""Sections of the page: what each part of an evaluation adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from clip_jax.evaluation.report import formats, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.cards import block
from clip_jax.evaluation.report.document import part
from clip_jax.evaluation.report.markup import Markup, cut, join
from clip_jax.evaluation.report.tables import Cell, Column, dataset_name

Document = Mapping[str, Any]  # what report.json holds


class Tile(NamedTuple):
    """A headline number: its name, its value as text, and a remark in small print."""

    name: str
    value: str
    remark: str


def no_tiles(document: Document) -> Iterable[Tile]:
    """Returns no tiles, for a section without headline numbers."""
    del document
    return ()


class Section(NamedTuple):
    """A section of the page.

    Attributes:
      name: the anchor; of several sections with one name the first counts.
      title: the heading.
      render: a function that returns the section's markup, or None to leave the section out. Its
        arguments are the content of report.json, the album that shows thumbnails, and the share of
        the usual list lengths (0 … 1) that has room.
      tiles: a function from the content of report.json to headline numbers for the top of the page.
      detail: whether it stands in the second part of the page, after all sections that do not.
    """

    name: str
    title: str
    render: Callable[[Document, Album, float], Markup | None]
    tiles: Callable[[Document], Iterable[Tile]] = no_tiles
    detail: bool = False


def without_thumbnails(render: Callable[[Document], Markup | None]) -> Callable[..., Markup | None]:
    """Returns the `render` of a short section without thumbnails.

    Args:
      render: a function of the content of report.json alone.
    """
    return lambda document, album, room: render(document)


def shortened(most: int, render: Callable[..., Markup | None]) -> Callable[..., Markup | None]:
    """Returns the `render` of a section with thumbnails and lists of at most `most` items.

    Args:
      most: the usual length of a list.
      render: a function of the content of report.json, the album, and the length of a list.
    """
    return lambda document, album, room: render(document, album, limit(most, room))


def limit(most: int, room: float) -> int:
    """Returns the length of a list that gets the share `room` of its usual length `most`."""
    return max(1, int(most * room))


def metrics_section(
    name: str, metrics: Mapping[str, Mapping[str, float | None]], parts: Mapping[str, Markup]
) -> Section:
    """Returns a section for an evaluator that has none of its own.

    Args:
      name: the name of the evaluator.
      metrics: its metrics by dataset, a row of a table each.
      parts: markup by dataset, to stand below the table.
    """
    title = name.replace("_", " ").capitalize()
    names = list(dict.fromkeys(metric for row in metrics.values() for metric in row))

    def dataset_title(document: Document, dataset: str) -> str:
        return str(part(document, "sets", dataset).get("title") or dataset)

    def render(document: Document, album: Album, room: float) -> Markup | None:
        if not names and not parts:
            return None
        columns = [Column("Set", numeric=False), *(Column(cut(metric, 40)) for metric in names)]
        rows = [
            [
                dataset_name(dataset_title(document, dataset)),
                *(_cell(row.get(key)) for key in names),
            ]
            for dataset, row in metrics.items()
        ]
        blocks = (block(dataset_title(document, key), markup) for key, markup in parts.items())
        return join(tables.table(title, columns, rows) if names else None, *blocks)

    return Section(name, title, render)


def _cell(value: float | None) -> Cell:
    number = formats.number(value)
    if number is not None and -1 <= number <= 1:
        return tables.percent(number)
    return tables.plain(number)
