"""CLIP's text cleaning, with a short cut for the plain ASCII that most captions are."""

from __future__ import annotations

import html
import re

_LONG_NUMBER = re.compile(r"&#([0-9]{100,})")
_BREAKS_TO_SPACES = str.maketrans("\t\n\f\r", "    ")


def clean(text: str) -> str:
    """Repaired text on one line, its case kept.

    Mojibake is repaired (ftfy), HTML entities are decoded twice, and every run of white space
    becomes one space, with none at the ends.

    Source: `basic_clean` and `whitespace_clean` in OpenAI's CLIP.
    """
    if not _is_plain(text):
        from ftfy import fix_text

        text = _unescape(_unescape(fix_text(text)))
    return " ".join(text.split())


def _unescape(text: str) -> str:
    """HTML entities decoded, also numbers of more digits than Python reads (4,300)."""

    def short(found: re.Match[str]) -> str:
        digits = found[1].lstrip("0")
        return f"&#{digits if len(digits) < 100 else 2**32}"  # no character: it becomes U+FFFD

    return html.unescape(_LONG_NUMBER.sub(short, text))


def _is_plain(text: str) -> bool:
    # What ftfy and html.unescape change in ASCII is control characters and entities. Neither
    # takes an ampersand before white space for an entity.
    if not text.isascii():
        return False
    if not text.isprintable():
        text = text.translate(_BREAKS_TO_SPACES)
        if not text.isprintable():
            return False
    return "&" not in text or text.count("&") == text.count("& ")
