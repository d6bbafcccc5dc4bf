"""Captions from the text fields of a pair, through templates.

`{name}` is a field, `{meta.title}` one inside another. Of a list, `{tags}` gives some items at
random, joined by commas, `{captions:one}` one item at random, `{captions:each}` another item every
epoch, and `{captions:all}` all items, joined by spaces. `{text:sentence}` gives one sentence at
random, of a list one of a random item.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.example import Fields, PairError, only_pair_errors
from clip_jax.errors import UserError

_WAYS = ("", "one", "each", "all", "sentence")  # to make text of a field
# A sentence ends after . ! ? … before a space, and after 。！？, closing marks included.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？][。！？!?…]*[」』”’）】\"')\]]*\s*")
# Periods that end no sentence: after an abbreviation, the number of an item, No before a number, a
# unit before a small letter.
_NO_END = re.compile(
    r"(?<![^\s(\"'“‘])(?:(?:Dr|Mr|Mrs|Ms|St|vs|e\.g|i\.e|\d{1,2})\.\s+|No\.\s+(?=\d))"
    r"|(?<=\d)\s?(?:[ckm]?m|ft|in|k?g|lb|oz)\.\s+(?=[a-z])"
)
_MAX_NAMED = 20  # fields in an error
MAX_LENGTH = 1_000_000  # characters of a caption


class Alternatives(list[str]):
    """A list of captions that each describe the whole image; `{caption}` gives one at random."""


class MissingFieldError(PairError):
    """A template names a field that a pair does not have as text.

    Attributes:
      fields: the fields that the pair has.
    """

    def __init__(self, line: str, fields: tuple[str, ...]) -> None:
        super().__init__("caption", line)
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingFieldError, (str(self), self.fields)


class _Piece(NamedTuple):
    """Literal text of a template and the field that follows it, None after the last field."""

    literal: str
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
            "list, {name:one}, {name:each} or {name:all}, or {name:sentence}"
        )
    return tuple(_Piece(literal, field, way or "") for literal, field, way, _ in parts)


def fields(template: str) -> list[str]:
    """Returns the names of the fields in a template such as `a photo of {name}`."""
    return [piece.field for piece in _parse(template) if piece.field is not None]


def field_value(text: Mapping[str, Any], field: str) -> Any:
    """Returns the value of a field, or None; `meta.title` names `title` inside `meta`."""
    if field in text:
        return text[field]
    outer, dot, inner = field.partition(".")
    below = text.get(outer)
    return field_value(below, inner) if dot and isinstance(below, dict) else None


def field_number(text: Mapping[str, Any], field: str) -> float:
    """Returns the value of a field as a number, or NaN if it is not one."""
    value = field_value(text, field)
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _scalar_text(value: Any) -> str | None:
    """Returns a value as text, or None for null, NaN (null in tables), lists, dicts and bytes."""
    if value is None or isinstance(value, dict | list | bytes) or value != value:
        return None
    return str(value)


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, by its punctuation and its lines."""
    return [part for line in text.splitlines() for part in _line_sentences(line) if part]


def _line_sentences(line: str) -> list[str]:
    """Returns the sentences of a line; what has no letters belongs to a neighbour."""
    inside = {match.end() for match in _NO_END.finditer(line)}
    ends = [match.end() for match in _SENTENCE_END.finditer(line) if match.end() not in inside]
    parts: list[str] = []
    start = 0
    for last, end in itertools.pairwise([0, *ends, len(line)]):
        if any(map(str.isalpha, line[last:end])):
            parts.append(line[start:end])
            start = end
    rest = line[start:]
    parts = [*parts[:-1], parts[-1] + rest] if parts else [rest]
    return [part.strip() for part in parts]


def _sentence(text: str, rng: np.random.Generator | None) -> str:
    """Returns one sentence at random; the first without `rng`, the text if it has none."""
    parts = sentences(text) or [text]
    return parts[int(rng.integers(len(parts))) if rng is not None and len(parts) > 1 else 0]


def _value_text(value: Any, way: str, rng: np.random.Generator | None, turn: int) -> str | None:
    """Returns a field's value as text, or None if it has no text."""
    if way == "sentence":
        value_text = _value_text(value, "one" if isinstance(value, list) else "", rng, turn)
        return None if value_text is None else _sentence(value_text, rng)
    if not isinstance(value, list):
        return _scalar_text(value)
    if not way and isinstance(value, Alternatives):
        way = "one"
    items = [item for item in map(_scalar_text, value) if item is not None]
    is_random = rng is not None and len(items) > 1
    if way in ("one", "each"):
        if not items:
            return None
        if way == "one":
            turn = int(rng.integers(len(items))) if rng is not None and is_random else 0
        return items[turn % len(items)]
    if way == "all":
        return " ".join(items)
    if rng is not None and is_random:
        count = int(rng.integers(1, len(items) + 1))
        items = [items[i] for i in rng.permutation(len(items))[:count]]
    return ", ".join(items)


def fill(
    template: str,
    text: Fields,
    name: str,
    rng: np.random.Generator | None = None,
    turn: int = 0,
) -> str:
    """Returns a template with its fields replaced by their values.

    Args:
      template: such as `a photo of {name}`.
      text: the fields of a pair.
      name: the name of the pair, for errors.
      rng: draws from lists. `{field}` gives at least one and at most all items, in random order;
        `{field:one}` gives one item, `{field:sentence}` one sentence. If None, these give all items
        in order, the first item and the first sentence.
      turn: the number of the item that `{field:each}` gives, modulo the length of the list.

    Raises:
      MissingFieldError: a field is missing or null.
    """
    parts = []
    for literal, field, way in _parse(template):
        parts.append(literal)
        if field is None:
            continue
        value = _value_text(field_value(text, field), way, rng, turn)
        if value is None:
            known = tuple(key for key, item in text.items() if item is not None)
            shown = ", ".join(known[:_MAX_NAMED]) + (", …" if len(known) > _MAX_NAMED else "")
            raise MissingFieldError(
                f"{name}: caption template {template!r} needs the field {field!r} as text; "
                f"there are: {shown or 'none'}",
                known,
            )
        parts.append(value)
    return "".join(parts)


def filled(templates: Sequence[str], text: Fields, name: str, most: int = 1) -> list[str]:
    """Returns the captions by the first templates that a pair can fill, without blanks around them.

    Args:
      templates: caption templates such as `a photo of {name}`.
      text, name: as for `fill`.
      most: the largest number of captions.

    Raises:
      PairError: no template gives a caption, because a field is missing or the caption is empty or
        longer than a million characters. The error is that of the first template.
    """
    texts: list[str] = []
    first_error: PairError | None = None
    for template in templates:
        try:
            with only_pair_errors("caption", name):
                caption = fill(template, text, name).strip()
                if not caption or len(caption) > MAX_LENGTH:
                    raise PairError("caption", f"{name}: its caption is empty or too long")
                texts.append(caption)
        except PairError as error:
            first_error = first_error or error
        if len(texts) == most:
            break
    if not texts:
        assert first_error, "no templates"
        raise first_error
    return texts


def _draw(rng: np.random.Generator, count: int, weights: Sequence[float]) -> int:
    if not weights:
        return int(rng.integers(count))
    ends = np.cumsum(weights)
    return min(int(np.searchsorted(ends, rng.random() * ends[-1], "right")), count - 1)


def sample(
    templates: Sequence[str],
    text: Fields,
    name: str,
    rng: np.random.Generator,
    weights: Sequence[float] = (),
    turn: int = 0,
) -> str:
    """Returns a caption made with a random template, chosen among those that the pair can fill.

    Args:
      templates: caption templates such as `a photo of {name}`.
      text, name, rng, turn: as for `fill`.
      weights: the relative probability of each template; if empty, all are equally likely.

    Raises:
      PairError: no template gives a caption, because a field is missing or the caption is empty or
        longer than a million characters. The error is that of the template drawn first.
    """
    candidates, shares = list(templates), list(weights)
    first_error: PairError | None = None
    while candidates:
        drawn = _draw(rng, len(candidates), shares)
        template = candidates.pop(drawn)
        del shares[drawn : drawn + 1]
        try:
            caption = fill(template, text, name, rng, turn)
            if caption.strip() and len(caption) <= MAX_LENGTH:
                return caption
            what = f"over {MAX_LENGTH:,} characters long" if caption.strip() else "empty"
            raise PairError("caption", f"{name}: its caption is {what}")
        except PairError as error:
            first_error = first_error or error
    assert first_error, "no templates"
    raise first_error
