"""Titles of Wikipedia's articles and how often they are viewed, from Wikimedia's dumps.

Page views of an hour (https://dumps.wikimedia.org/other/pageviews) are lines of

    en.m Red_fox 31 0                               domain, title, views, bytes

and those of a day (https://dumps.wikimedia.org/other/pageview_complete) lines of

    en.wikipedia Red_fox 26242 desktop 310 A12B9…   wiki, title, page, access, views, hours
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clip_jax.curation.queries.text_stream import open_stream, read_rows
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
_MAX_MISTAKES = 0.01  # the share of lines of another form, which the dumps have few of
_LEAST_JUDGED = 1000  # lines


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
    hourly = {language, language + b".m", language + b".zero"}
    daily = language + b".wikipedia"
    lines = mistakes = 0
    starts = (language + b" ", language + b".")
    with open_stream(path, quiet) as file:
        for _, line in read_rows(path, file):
            if lines == _LEAST_JUDGED:
                _judge(path, lines, mistakes)
            lines += 1
            if line.startswith(starts):
                fields = line.split(b" ")
                size = len(fields)
                wiki, at = (hourly, 2) if size == 4 else ({daily}, size - 2)
                if size in (4, 5, 6) and fields[at].isdigit() and len(fields[at]) < 16:
                    if fields[0] in wiki:
                        yield fields[1].replace(b" ", b"_"), int(fields[at])
                    continue
            elif 4 <= line.count(b" ") + 1 <= 6:
                continue
            mistakes += 1
            left_out["of another form"] += 1
    _judge(path, lines, mistakes)


def _judge(path: str, lines: int, mistakes: int) -> None:
    """Raises a UserError if too many lines are of neither format."""
    if lines == 0 or mistakes > max(lines * _MAX_MISTAKES, 5) or mistakes == lines:
        raise UserError(
            f"{remote.redact(path)}: {mistakes:,} of {lines:,} lines are no page views: give files "
            "of dumps.wikimedia.org/other/pageviews or pageview_complete"
        )
