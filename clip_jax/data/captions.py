"""Captions from what is written about a picture: templates over its fields.

`{name}` is a field, `{meta.title}` one inside another. Of a list `{tags}` gives some of its items,
joined by commas, `{captions:one}` one of them by chance, `{captions:each}` another one every epoch,
`{captions:all}` all of them, joined by spaces.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.example import PairError
from clip_jax.errors import UserError

_WAYS = ("", "one", "each", "all")  # to make text of a list
_NAMED = 20  # fields in an error
_LONGEST = 1_000_000  # characters


class Alternatives(list[str]):
    """Captions each of which describes the whole picture: `{caption}` is one of them by chance."""


class _Piece(NamedTuple):
    """What stands before a field, and the field; None after the last."""

    before: str
    field: str | None
    way: str


@functools.lru_cache
def _parse(template: str) -> tuple[_Piece, ...]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"caption template {template!r}: {error}") from None
    if any(conversion or (way or "") not in _WAYS for _, _, way, conversion in parts):
        raise UserError(
            f"caption template {template!r}: a field is a plain name, such as {{name}}, or, of a "
            "list, {name:one}, {name:each} or {name:all}"
        )
    return tuple(_Piece(before, field, way or "") for before, field, way, _ in parts)


def fields(template: str) -> list[str]:
    """The fields that a template such as `a photo of {name}` asks for."""
    return [piece.field for piece in _parse(template) if piece.field is not None]


def find(text: Mapping[str, Any], field: str) -> Any:
    """What a field says, `meta.title` being `title` inside `meta`; None where it is missing."""
    if field in text:
        return text[field]
    outer, dot, inner = field.partition(".")
    below = text.get(outer)
    return find(below, inner) if dot and isinstance(below, dict) else None


def _plain(value: Any) -> str | None:
    """A value as text; None where it is nothing, as NaN is in tables, or no text."""
    if value is None or isinstance(value, dict | list | bytes) or value != value:
        return None
    return str(value)


def _said(value: Any, way: str, rng: np.random.Generator | None, turn: int) -> str | None:
    """A field's value as text; None where there is none."""
    if not isinstance(value, list):
        return _plain(value)
    if not way and isinstance(value, Alternatives):
        way = "one"
    items = [said for said in map(_plain, value) if said is not None]
    chance = rng is not None and len(items) > 1
    if way in ("one", "each"):
        if not items:
            return None
        if way == "one":
            turn = int(rng.integers(len(items))) if rng is not None and chance else 0
        return items[turn % len(items)]
    if way == "all":
        return " ".join(items)
    if rng is not None and chance:
        count = int(rng.integers(1, len(items) + 1))
        items = [items[i] for i in rng.permutation(len(items))[:count]]
    return ", ".join(items)


def fill(
    template: str,
    text: dict[str, Any],
    name: str,
    rng: np.random.Generator | None = None,
    turn: int = 0,
) -> str:
    """The template with its fields replaced; lists are joined by commas.

    With `rng`, a list gives some of its items in random order (at least one, at most all), and
    `:one` any of them, without it the first; `:each` gives the `turn`-th, counted round.

    Raises:
      PairError: a field is missing or null; `name` says of which picture.
    """
    filled = []
    for before, field, way in _parse(template):
        filled.append(before)
        if field is None:
            continue
        said = _said(find(text, field), way, rng, turn)
        if said is None:
            there = [key for key, known in text.items() if known is not None]
            shown = ", ".join(there[:_NAMED]) + (", …" if len(there) > _NAMED else "")
            raise PairError(
                "caption",
                f"{name}: caption template {template!r} needs the field {field!r} as text; "
                f"there are: {shown or 'none'}",
            )
        filled.append(said)
    return "".join(filled)


def _draw(rng: np.random.Generator, count: int, weights: Sequence[float]) -> int:
    if not weights:
        return int(rng.integers(count))
    ends = np.cumsum(weights)
    return min(int(np.searchsorted(ends, rng.random() * ends[-1], "right")), count - 1)


def sample(
    templates: Sequence[str],
    text: dict[str, Any],
    name: str,
    rng: np.random.Generator,
    weights: Sequence[float] = (),
    turn: int = 0,
) -> str:
    """A caption through one of the templates at random, of those that give one.

    weights: how often each is drawn, relative to the others; empty: all alike. turn: `fill`'s.

    Raises:
      PairError: through every template a field is missing, or nothing is said, or over a million
        characters; of the one that was drawn first.
    """
    left, shares = list(templates), list(weights)
    wrong: PairError | None = None
    while left:
        drawn = _draw(rng, len(left), shares)
        template = left.pop(drawn)
        del shares[drawn : drawn + 1]
        try:
            caption = fill(template, text, name, rng, turn)
            if caption.strip() and len(caption) <= _LONGEST:
                return caption
            what = f"over {_LONGEST:,} characters long" if caption.strip() else "empty"
            raise PairError("caption", f"{name}: its caption is {what}")
        except PairError as error:
            wrong = wrong or error
    assert wrong, "no templates"
    raise wrong
