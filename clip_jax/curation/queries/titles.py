"""Titles of Wikipedia's articles and how often they are viewed, from Wikimedia's dumps.

Page views of an hour (https://dumps.wikimedia.org/other/pageviews) are lines of

    en.m Red_fox 31 0                               domain, title, views, bytes

and those of a day (https://dumps.wikimedia.org/other/pageview_complete) lines of

    en.wikipedia Red_fox 26242 desktop 310 A12B9…   wiki, title, page, access, views, hours
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from clip_jax.curation.queries.text_stream import open_stream, read_line_blocks, read_rows
from clip_jax.errors import UserError
from clip_jax.io import remote

# Titles that are no article: Wikimedia's mark for an unknown page, and main pages without a colon.
NO_ARTICLES = frozenset(
    title.replace(" ", "_").encode()
    for title in (
        *("-", "Main Page", "Pagina principale", "Hoofdpagina", "Заглавная страница", "Anasayfa"),
        *("メインページ", "الصفحة الرئيسية", "صفحهٔ اصلی", "Головна сторінка", "Trang Chính"),
    )
)
_LINES = {  # of any wiki, by format
    "hour": rb"^\S+ \S+ \d+ \d+\r?$",
    "day": rb"^\S+ \S+ (?:\S+ ){1,2}\d+ [A-Z0-9]+\r?$",
}
_ARTICLES = {  # of one Wikipedia: the title and the views
    "hour": rb"^%b(?:\.m|\.zero)? (\S+) (\d{1,15}) \d+\r?$",
    "day": rb"^%b\.wikipedia (\S+) (?:\S+ ){1,2}(\d{1,15}) [A-Z0-9]+\r?$",
}
_STARTS = {"hour": rb"^%b(?:\.m|\.zero)? ", "day": rb"^%b\.wikipedia "}
_LEAST_SHARE = 0.9  # of the lines of the first block, by which a format is recognized


def read_titles(path: str, quiet: bool = False) -> set[bytes]:
    """Returns the titles of `*-all-titles-in-ns0.gz`, with underscores.

    Raises:
      UserError: the file cannot be read, or is empty.
    """
    with open_stream(path, quiet) as file:
        titles = {line.strip().replace(b" ", b"_") for _, line in read_rows(path, file)}
    titles -= {b"page_title", b""}
    if not titles:
        raise UserError(f"{remote.redact(path)} has no titles")
    return titles


def read_views(
    paths: Sequence[str],
    language: str,
    titles: set[bytes] | None = None,
    min_line_views: int = 1,
    quiet: bool = False,
) -> tuple[Counter[bytes], Counter[str]]:
    """Returns the sums of the views of titles over files, and the lines left out by reason.

    Views by computers, telephones and apps are added up.

    Args:
      paths: files of an hour or of a day, also compressed.
      language: the language of the Wikipedia, such as "en" or "zh-yue".
      titles: the titles that count; None: all without a colon, which parts a namespace from a name.
      min_line_views: lines of fewer views are left out (MetaCLIP's code: 50 in an hour).
      quiet: whether to show no progress.

    Raises:
      UserError: a file is of neither format.
    """
    views, left_out = Counter[bytes](), Counter[str]()
    for path in paths:
        for title, count in _read_file(path, language.encode(), left_out, quiet):
            if title in NO_ARTICLES:
                left_out["a main page or unknown"] += 1
            elif titles is None and b":" in title:
                left_out["of another namespace (with a colon)"] += 1
            elif titles is not None and title not in titles:
                left_out["no title of the list"] += 1
            elif count < min_line_views:
                left_out[f"under {min_line_views:,} views in a line"] += 1
            else:
                views[title] += count
    return views, left_out


def _read_file(
    path: str, language: bytes, left_out: Counter[str], quiet: bool
) -> Iterator[tuple[bytes, int]]:
    """Yields the title and the views of each line about one language's Wikipedia."""
    articles = starts = None
    with open_stream(path, quiet) as file:
        for block in read_line_blocks(path, file):
            if articles is None or starts is None:
                kind = _find_format(path, block)
                name = re.escape(language)
                articles = re.compile(_ARTICLES[kind] % name, re.MULTILINE)
                starts = re.compile(_STARTS[kind] % name, re.MULTILINE)
            rows = articles.findall(block)
            if mistakes := len(starts.findall(block)) - len(rows):
                left_out["of another form"] += mistakes
            for title, views in rows:
                yield title, int(views)
    if articles is None:
        raise UserError(f"{remote.redact(path)} is empty")


def _find_format(path: str, block: bytes) -> str:
    """Returns the format that most lines of a block have."""
    lines = len(block.splitlines())
    matches = {kind: len(re.findall(line, block, re.MULTILINE)) for kind, line in _LINES.items()}
    kind = max(matches, key=lambda kind: matches[kind])
    if matches[kind] < lines * _LEAST_SHARE:
        raise UserError(
            f"{remote.redact(path)}: {lines - matches[kind]:,} of the first {lines:,} lines are no "
            "page views: give files of dumps.wikimedia.org/other/pageviews or pageview_complete"
        )
    return kind
