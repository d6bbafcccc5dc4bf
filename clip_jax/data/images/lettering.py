"""Fitting untrusted text, of any length and any characters, into drawings."""

from __future__ import annotations

import re

from PIL import ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
# Measured characters of a text: the time to measure grows with their square.
MAX_CHARACTERS = 300
_SURROGATES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Replaces unpaired surrogates by U+FFFD, so that the text can be encoded as UTF-8."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _one_line(text: str) -> tuple[str, bool]:
    """Returns the start of a text on one line, and whether the text continues."""
    start = " ".join(encodable(text[: 4 * MAX_CHARACTERS]).split())
    return start[:MAX_CHARACTERS], len(start) > MAX_CHARACTERS or len(text) > 4 * MAX_CHARACTERS


def fit(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """Returns a text as one line, cut with an ellipsis if it is wider than `width` pixels."""
    line, more = _one_line(text)
    if not more and draw.textlength(line, font) <= width:
        return line
    low, high = 0, len(line)
    while low < high:  # searches for the number of characters that fit
        middle = (low + high + 1) // 2
        if draw.textlength(line[:middle] + "…", font) <= width:
            low = middle
        else:
            high = middle - 1
    return line[:low] + "…"


def wrap(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float, most: int) -> str:
    """Wraps a text into lines, and cuts it with an ellipsis if it needs too many.

    Args:
      draw: measures the text.
      text: of any length.
      font: the font to measure with.
      width: the maximum width of a line, in pixels.
      most: the maximum number of lines.
    """
    text, more = _one_line(text)
    lines = [""]
    for letter in text:
        if draw.textlength(lines[-1] + letter, font) > width:
            if len(lines) == most:
                lines[-1], more = lines[-1][:-1] + "…", False
                break
            head, _, tail = lines[-1].rpartition(" ")
            lines[-1:] = [head, tail] if head else [lines[-1], ""]
        lines[-1] += letter
    return "\n".join(lines) + ("…" if more else "")
