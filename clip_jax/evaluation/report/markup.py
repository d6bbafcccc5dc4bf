"""HTML and SVG that nothing put into them can break."""

from __future__ import annotations

import html
import math
import unicodedata
from typing import Any

_VOID = {"meta", "link", "input", "br", "hr", "img", "col"}


class Markup(str):
    """Text that is markup already; any other text is escaped where it enters markup."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Text as markup that shows it."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(str(value))))


def clean(text: str) -> str:
    """Text without what no page may hold: control characters, halves of surrogate pairs."""
    if text.isascii() and text.isprintable():
        return text
    kept = (" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return "".join(kept)


def cut(text: object, most: int = 80) -> str:
    """One line of a text, with an ellipsis where it had more than `most` characters."""
    text = "–" if text is None else str(text)
    start = text[: 4 * most]
    line = " ".join(clean(start).split())
    shorter = len(line) > most or len(start) < len(text)
    return line[: most - 1].rstrip() + "…" if shorter else line


def said(text: object, most: int = 80) -> Markup:
    """A text of strangers, cut, whose direction of writing leaves what is beside it alone."""
    return tag("bdi", cut(text, most))


def join(*parts: Markup | str | None) -> Markup:
    """Markup and texts, one after the other."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *children: Markup | str | None, **attributes: Any) -> Markup:
    """An element, closed.

    Underscores in the names of attributes stand for hyphens, one at the end for nothing. True is an
    attribute without value; None and False are none.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    return f' {name}="{escape(decimal(value) if isinstance(value, float) else value)}"'


def decimal(value: float) -> str:
    """A number for SVG and CSS, to a hundredth.

    Raises:
      ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in a drawing")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
