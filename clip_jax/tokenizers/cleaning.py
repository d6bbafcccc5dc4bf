"""CLIP's text cleaning, with a fast path for plain ASCII, which most captions are."""

from __future__ import annotations

import html
import re

_LONG_NUMBER = re.compile(r"&#([0-9]{100,})")
_BREAKS_TO_SPACES = str.maketrans("\t\n\f\r", "    ")


def clean(text: str) -> str:
    """Cleans a text without changing its case.

    Repairs mojibake (ftfy), decodes HTML entities twice, and replaces every run of white space by
    one space, with none at the ends.

    Source: `basic_clean` and `whitespace_clean` in OpenAI's CLIP.
    """
    if not _is_plain(text):
        from ftfy import fix_text

        text = _unescape(_unescape(fix_text(text)))
    return " ".join(text.split())


def _unescape(text: str) -> str:
    """Decodes HTML entities, also numbers of more digits than Python parses (4,300)."""

    def shorten(match: re.Match[str]) -> str:
        digits = match[1].lstrip("0")
        return f"&#{digits if len(digits) < 100 else 2**32}"  # no character: it becomes U+FFFD

    return html.unescape(_LONG_NUMBER.sub(shorten, text))


def _is_plain(text: str) -> bool:
    # In ASCII, ftfy and html.unescape change only control characters and entities. An ampersand
    # before white space begins no entity.
    if not text.isascii():
        return False
    if not text.isprintable():
        text = text.translate(_BREAKS_TO_SPACES)
        if not text.isprintable():
            return False
    return "&" not in text or text.count("&") == text.count("& ")
