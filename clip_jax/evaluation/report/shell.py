"""The frame around the sections of a page: one HTML file that loads no other files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import NamedTuple

from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.markup import Markup, join, tag

LIMIT = 3_000_000  # bytes of a page


class Part(NamedTuple):
    """A section as it stands on a page.

    Attributes:
      name: the anchor.
      title: the heading.
      body: the content.
    """

    name: str
    title: str
    body: Markup


def whole_page(
    title: str,
    header: Markup,
    parts: Sequence[Part],
    album: Album,
    *,
    top: Iterable[Markup | None] = (),
    words: str,
    css: str = "",
) -> str:
    """Returns a whole page: it is under `LIMIT` bytes as long as its text is.

    Args:
      title: the name of the page.
      header: what stands above the contents.
      parts: the sections.
      album: the images that the sections show; those that do not fit are left out.
      top: what stands above the first section.
      words: the line at the bottom.
      css: rules of the style sheet beside those that all pages share.
    """
    files = resources.files(__package__)
    shared, js = (
        files.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js")
    )
    css = shared + css
    contents = (tag("li", tag("a", part.title, href=f"#{part.name}")) for part in parts)
    drawn = (
        tag("section", tag("h2", part.title), part.body, id=part.name, class_="part")
        for part in parts
    )
    button = tag("button", "Theme: auto", id="theme", type="button", hidden=True)
    body = join(
        tag("a", "Skip to the results", href="#results", class_="skip"),
        header,
        tag("nav", tag("ul", *contents), button, aria_label="Contents"),
        tag("main", *top, *drawn, id="results", tabindex="-1"),
    )
    used = len((body + css + js).encode()) + 3000
    style, left_out = album.style(LIMIT - used)
    remark = f" {left_out} of {len(album)} images are left out: the page stays under 3 MB."
    footer = tag("footer", tag("p", words, remark if left_out else None))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(js)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
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
