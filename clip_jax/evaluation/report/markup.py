"""HTML and SVG that no text can break."""

from __future__ import annotations

import html
import math
import unicodedata
from typing import Any

_VOID = {"meta", "link", "input", "br", "hr", "img", "col"}


class Markup(str):
    """HTML markup; all other text is escaped when it is put into markup."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Escapes a value that is no markup, so that the page shows it as text."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(str(value))))


def clean(text: str) -> str:
    """Replaces control characters and halves of surrogate pairs by spaces."""
    if text.isascii() and text.isprintable():
        return text
    characters = (" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return "".join(characters)


def cut(text: object, most: int = 80) -> str:
    """Returns a text as one line of at most `most` characters.

    A shortened text ends with an ellipsis.
    """
    text = "–" if text is None else str(text)
    start = text[: 4 * most]
    line = " ".join(clean(start).split())
    shorter = len(line) > most or len(start) < len(text)
    return line[: most - 1].rstrip() + "…" if shorter else line


def isolated(text: object, most: int = 80) -> Markup:
    """Returns an untrusted text, shortened and isolated from the writing direction around it."""
    return tag("bdi", cut(text, most))


def join(*parts: Markup | str | None) -> Markup:
    """Concatenates markup and texts, which are escaped; None is left out."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *children: Markup | str | None, **attributes: Any) -> Markup:
    """Returns an element with its closing tag.

    Underscores in attribute names become hyphens; one at the end is dropped. True is an attribute
    without value; None and False are left out.
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
    """Formats a number for SVG and CSS, rounded to a hundredth.

    Raises:
      ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in a drawing")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
