"""A page of the pairs of a query or of a reason."""

from __future__ import annotations

from collections.abc import Sequence

from clip_jax.curation.page.drawings import pair_card, pair_grid
from clip_jax.curation.page.samples import ShownPair, album_of
from clip_jax.errors import counted
from clip_jax.evaluation.report import overview, tables
from clip_jax.evaluation.report.markup import cut, isolated, tag
from clip_jax.evaluation.report.section import Tile
from clip_jax.evaluation.report.shell import Part, whole_page
from clip_jax.version import __version__


def render(
    title: str,
    query: str,
    tiles: Sequence[Tile],
    pairs: Sequence[tuple[ShownPair, str]],
    css: str,
) -> str:
    """Renders the page: one HTML file that loads no other files.

    Args:
      title: what the pairs have in common.
      query: the query that is marked in the captions; empty for none.
      tiles: headline numbers.
      pairs: the pairs and the reason of each.
      css: the style sheet of curations.
    """
    album = album_of(pair for pair, _ in pairs)
    cards = [pair_card(pair, album, i, query, reason) for i, (pair, reason) in enumerate(pairs)]
    note = tables.notes(f"{counted(len(pairs), 'pair')}, drawn at random by content and seed.")
    header = tag(
        "header",
        tag("p", "Pairs of a curation", class_="kicker"),
        tag("h1", isolated(title, 80)),
    )
    return whole_page(
        f"{cut(title, 60)}: pairs",
        header,
        [Part("pairs", "Pairs", pair_grid(cards))],
        album,
        top=[overview.tiles(tiles), note],
        words=f"Made by clip_jax {__version__}.",
        css=css,
    )
