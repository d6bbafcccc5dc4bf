"""CLIP's text cleaning, with a short cut for the plain ASCII that most captions are."""

from __future__ import annotations

import html

_BREAKS_TO_SPACES = str.maketrans("\t\n\f\r", "    ")


def clean(text: str) -> str:
    """Repaired text on one line, its case kept.

    Mojibake is repaired (ftfy), HTML entities are decoded twice, and every run of white space
    becomes one space, with none at the ends.

    Source: `basic_clean` and `whitespace_clean` in OpenAI's CLIP.
    """
    if not _is_plain(text):
        from ftfy import fix_text

        text = html.unescape(html.unescape(fix_text(text)))
    return " ".join(text.split())


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
