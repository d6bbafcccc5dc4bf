"""Captions from what is written about a picture: templates over its fields."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.data.pairs import PairError
from clip_jax.errors import UserError

_NAMED = 20  # fields in an error
_LONGEST = 1_000_000  # characters


@functools.lru_cache
def _parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """What stands before each field, and the field; None after the last."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"caption template {template!r}: {error}") from None
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(f"caption template {template!r}: a field is a plain name, such as {{name}}")
    return tuple((before, field) for before, field, _, _ in parts)


def fields(template: str) -> list[str]:
    """The fields that a template such as `a photo of {name}` asks for."""
    return [field for _, field in _parse(template) if field is not None]


def fill(
    template: str, text: dict[str, Any], name: str, rng: np.random.Generator | None = None
) -> str:
    """The template with its fields replaced; lists are joined by commas.

    With `rng`, a list gives some of its items in random order: at least one, at most all.

    Raises:
      PairError: a field is missing or null; `name` says of which picture.
    """
    filled = []
    for before, field in _parse(template):
        filled.append(before)
        if field is None:
            continue
        value = text.get(field)
        if value is None:
            there = [key for key, known in text.items() if known is not None]
            shown = ", ".join(there[:_NAMED]) + (", …" if len(there) > _NAMED else "")
            raise PairError(
                "caption",
                f"{name}: caption template {template!r} needs the field {field!r}; "
                f"there are: {shown or 'none'}",
            )
        if isinstance(value, list):
            if rng is not None and len(value) > 1:
                count = int(rng.integers(1, len(value) + 1))
                value = [value[i] for i in rng.permutation(len(value))[:count]]
            value = ", ".join(str(v) for v in value)
        filled.append(str(value))
    return "".join(filled)


def sample(
    templates: Sequence[str], text: dict[str, Any], name: str, rng: np.random.Generator
) -> str:
    """A caption through one of the templates at random.

    Raises:
      PairError: a field is missing, or nothing is said, or over a million characters.
    """
    caption = fill(templates[int(rng.integers(len(templates)))], text, name, rng)
    if not caption.strip() or len(caption) > _LONGEST:
        what = f"over {_LONGEST:,} characters long" if caption.strip() else "empty"
        raise PairError("caption", f"{name}: its caption is {what}")
    return caption
