"""The page: its sections in order, within its size limit."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from clip_jax.evaluation.report import history, overview, tables
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.document import part, pruned
from clip_jax.evaluation.report.markup import Markup, cut, join, tag
from clip_jax.evaluation.report.section import Document, Section, without_thumbnails
from clip_jax.version import __version__

LIMIT = 3_000_000  # bytes of the page
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
            (section, body)
            for section in sections
            if (body := section.render(document, album, room)) is not None
        ]
        if sum(len(body.encode()) for _, body in parts) <= _TEXT or room < 1e-3:
            tiles = (tile for section in sections for tile in section.tiles(document))
            return _page(document, album, parts, overview.tiles(tiles))
        room /= 2


def _page(
    document: Document, album: Album, parts: Sequence[tuple[Section, Markup]], tiles: Markup | None
) -> str:
    files = resources.files(__package__)
    css, js = (files.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    contents = (tag("li", tag("a", section.title, href=f"#{section.name}")) for section, _ in parts)
    drawn = (
        tag("section", tag("h2", section.title), body, id=section.name, class_="part")
        for section, body in parts
    )
    empty = None if parts else tables.notes("Nothing was judged: report.json holds no results.")
    button = tag("button", "Theme: auto", id="theme", type="button", hidden=True)
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        overview.header(document),
        tag("nav", tag("ul", *contents), button, aria_label="Contents"),
        tag("main", tiles, empty, *drawn, id="results", tabindex="-1"),
    )
    used = len((body + css + js).encode()) + 3000
    style, left_out = album.style(LIMIT - used)
    remark = f" {left_out} of {len(album)} images are left out: the page stays under 3 MB."
    words = f"Made by clip_jax {__version__}. report.json beside this page holds every number."
    footer = tag("footer", tag("p", words, remark if left_out else None))
    name = cut(part(document, "model").get("name") or "a model")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(js)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name}: evaluation"),
        tag("style", Markup(css)),
        tag("style", style),
    )
    script = tag("script", Markup(js))
    return f"<!doctype html>\n{tag('html', head, tag('body', body, footer, script), lang='en')}\n"


def _policy(script: str) -> str:
    """Returns a content security policy that allows no script but this page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
