"""The page: its sections in order, within its size limit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from clip_jax.evaluation.report import history, overview, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.document import part, pruned
from clip_jax.evaluation.report.markup import Markup, cut
from clip_jax.evaluation.report.section import Document, Section, without_thumbnails
from clip_jax.evaluation.report.shell import Part, whole_page
from clip_jax.version import __version__

_TEXT = 1_600_000  # bytes of them for everything but images

RUN_SECTIONS = (
    Section("curves", "Curves of the run", without_thumbnails(history.curves)),
    Section("missing", "Not judged", without_thumbnails(history.missing)),
)


def ordered(sections: Iterable[Section]) -> list[Section]:
    """Returns the sections of a page in order, each name once.

    Sections with details come after the others, and those of the run last.
    """
    by_name: dict[str, Section] = {}
    for section in (*sections, *RUN_SECTIONS):
        by_name.setdefault(section.name, section)
    rest = [section for section in by_name.values() if section not in RUN_SECTIONS]
    details = [section for section in rest if section.detail]
    return [*(section for section in rest if not section.detail), *details, *RUN_SECTIONS]


def render(document: Document, thumbnails: Mapping[str, bytes], sections: Iterable[Section]) -> str:
    """Renders the page that shows an evaluation: one HTML file that loads no other files.

    It stays under 3 MB: lists are shortened and images left out, the last of each list first, and
    the page says so. The same arguments give the same page.

    Args:
      document: the content of report.json; every key may be missing. A number that is None or not
        finite is shown as a dash. Texts may contain anything.
      thumbnails: JPEG, PNG or WebP files by the names that `document` gives them. A name without a
        file, or with other bytes, shows as an empty frame.
      sections: the sections of the evaluators; the page adds the run's own.
    """
    document, room, sections = pruned(document), 1.0, ordered(sections)
    while True:
        album = Album(thumbnails)
        parts = [
            Part(section.name, section.title, body)
            for section in sections
            if (body := section.render(document, album, room)) is not None
        ]
        if sum(len(p.body.encode()) for p in parts) <= _TEXT or room < 1e-3:
            tiles = (tile for section in sections for tile in section.tiles(document))
            return _page(document, album, parts, overview.tiles(tiles))
        room /= 2


def _page(document: Document, album: Album, parts: Sequence[Part], tiles: Markup | None) -> str:
    empty = None if parts else tables.notes("Nothing was judged: report.json holds no results.")
    name = cut(part(document, "model").get("name") or "a model")
    return whole_page(
        f"{name}: evaluation",
        overview.header(document),
        parts,
        album,
        top=(tiles, empty),
        words=f"Made by clip_jax {__version__}. report.json beside this page holds every number.",
    )
