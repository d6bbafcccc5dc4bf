"""Captions from what is written about a picture: templates over its fields."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.errors import UserError


def fields(template: str) -> list[str]:
    """The fields that a template such as `a photo of {name}` asks for."""
    try:
        return [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UserError(f"caption template {template!r}: {error}") from None


def fill(
    template: str, text: dict[str, Any], name: str, rng: np.random.Generator | None = None
) -> str:
    """The template with its fields replaced; lists are joined by commas.

    With `rng`, a list gives some of its items in random order: at least one, at most all.

    Raises:
      UserError: a field is missing; `name` says of which picture.
    """
    values: dict[str, str] = {}
    for field in fields(template):
        if field not in text:
            raise UserError(
                f"{name}: caption template {template!r} needs the field {field!r}; "
                f"there are: {', '.join(text)}"
            )
        value = text[field]
        if isinstance(value, list):
            if rng is not None and len(value) > 1:
                count = int(rng.integers(1, len(value) + 1))
                value = [value[i] for i in rng.permutation(len(value))[:count]]
            value = ", ".join(str(v) for v in value)
        values[field] = str(value)
    return template.format_map(values)


def sample(
    templates: Sequence[str], text: dict[str, Any], name: str, rng: np.random.Generator
) -> str:
    """A caption through one of the templates at random."""
    return fill(templates[int(rng.integers(len(templates)))], text, name, rng)
