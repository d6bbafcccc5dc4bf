"""Reads values of untrusted JSON, and checks the type and size of each."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax.errors import UserError

MAX_INTEGER = 1 << 24
MAX_NUMBER = 1e6


class Fields:
    """The values of a JSON object by key, each checked when it is read.

    It records which keys were read, so that `finish` can refuse the others.

    Args:
      values: the JSON object.
      where: the name of the object in messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where
        self._read: set[str] = set()
        self._groups: dict[str, Fields] = {}

    def _value(self, key: str) -> Any:
        self._read.add(key)
        return self.values.get(key)

    def finish(self, neutral: Mapping[str, Collection[str]]) -> None:
        """Refuses keys that were not read, in this object and in its groups.

        Args:
          neutral: the keys that change nothing, by the key of their group ("" for this object).

        Raises:
          UserError: a key is unknown: it may change the model.
        """
        known = self._read | set(neutral.get("", ()))
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(str(key), sorted(known), 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError(
                    f"{self.where}: unknown key {key!r:.60}: {hint}take it out if it does not "
                    "change the model"
                )
        for name, group in self._groups.items():
            group.finish({"": neutral.get(name, ())})

    def _bad(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.where}: {key}={self.values.get(key)!r:.60} must be {wanted}")

    def group(self, key: str) -> Fields:
        """Returns the object under `key`, or an empty one if there is none."""
        value = self._value(key) or {}
        if not isinstance(value, dict):
            raise self._bad(key, "an object")
        return self._groups.setdefault(key, Fields(value, f"{self.where}: {key}"))

    def integer(self, key: str, default: int, least: int = 1) -> int:
        """Returns a whole number in [least, 2**24]."""
        value = self._value(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= MAX_INTEGER:
            raise self._bad(key, f"a whole number from {least} to {MAX_INTEGER}")
        return value

    def number(
        self, key: str, default: float, least: float = -MAX_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """Returns a number in [least, most]."""
        value = self._value(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._bad(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def eps(self, key: str, default: float) -> float:
        """Returns the ε of a normalisation layer."""
        return self.number(key, default, 0, 1)

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns a truth value."""
        value = self._value(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Returns a text."""
        value = self._value(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self._bad(key, "a text")
        return value

    def integers(self, key: str, default: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
        """Returns a list of at most 256 whole numbers."""
        value = self._value(key)
        value = default if value is None else value
        if (
            not isinstance(value, (list, tuple))
            or len(value) > 256
            or any(type(n) is not int or not least <= n <= MAX_INTEGER for n in value)
        ):
            raise self._bad(key, f"a list of whole numbers, {least} or more")
        return tuple(value)

    def only(self, key: str, *wanted: Any) -> None:
        """Refuses any value of `key` that is not among `wanted`, the values that we support."""
        value = self._value(key)
        if value is not None and value not in wanted:
            raise UserError(
                f"{self.where}: {key}={value!r:.60} is not supported here, only "
                f"{' or '.join(map(repr, wanted)) or 'its absence'}"
            )

    def image_size(self, default: int) -> int:
        """Returns the side of a square image in pixels."""
        value = self._value("image_size")
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
            return Fields({"image_size": value[0]}, self.where).integer("image_size", default)
        return self.integer("image_size", default)
