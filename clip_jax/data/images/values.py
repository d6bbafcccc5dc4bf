"""Checks of the values of a preprocessing, which may come from an untrusted file.

Messages call the file `name`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.fields import MAX_SIZE

LEAST, GREATEST = 1e-6, 1e6  # of factors that a file may give; no model needs others


def bad_value(name: str, key: str, value: Any, wanted: str) -> UserError:
    """Returns the error for a value that is not what is wanted.

    Args:
      name: what messages call the file.
      key: the name of the value.
      value: the bad value.
      wanted: what the value must be, in words.
    """
    text = repr(value)
    text = text if len(text) < 80 else f"{text[:80]}…"
    return UserError(f"{name}: {key}={text} must be {wanted}")


def check_choice(name: str, key: str, value: Any, choices: Iterable[Any]) -> Any:
    """Returns a value that equals one of `choices` and has its type.

    Raises:
      UserError: the value is anything else.
    """
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise bad_value(name, key, value, " or ".join(map(repr, choices)))
    return value


def check_integer(name: str, key: str, value: Any, least: int = 1, most: int = MAX_SIZE) -> int:
    """Returns a whole number in [least, most].

    Raises:
      UserError: the value is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad_value(name, key, value, f"a whole number in {least}…{most}")
    return value


def check_colors(name: str, key: str, value: Any, least: float) -> tuple[float, ...]:
    """Returns three numbers in [least, GREATEST], for red, green and blue.

    Args:
      name: what messages call the file.
      key: the name of the value.
      value: a list of three numbers, or one number for all colours.
      least: the minimum of each number.

    Raises:
      UserError: the value is anything else.
    """
    colors = value if isinstance(value, list | tuple) else [value] * 3
    if len(colors) != 3 or not all(type(number) in (int, float) for number in colors):
        raise bad_value(name, key, value, "a number each for red, green and blue")
    if not all(least <= number <= GREATEST for number in colors):
        raise bad_value(name, key, value, f"in {least:g}…{GREATEST:g}")
    return tuple(map(float, colors))
