"""The conditions of `config.data.filter`, checked before any pair is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config.values import is_number
from clip_jax.errors import UserError

_MAX_FIELDS = 50  # in conditions


@dataclasses.dataclass(frozen=True)
class Filter:
    """Conditions on a pair. The defaults, zero or empty, accept all pairs.

    A broken pair is accepted, so that it is counted when it is drawn: a pair that cannot be read
    meets every condition, an image that cannot be opened meets the conditions on its size, and a
    pair without a caption meets those on its characters.

    Attributes:
      min_side: the minimum of the image's shorter side, in pixels.
      max_side: the maximum of the image's longer side, in pixels.
      max_aspect: the maximum ratio of the longer side to the shorter.
      min_characters, max_characters: bounds of the caption's length. The caption is made with the
        first template that the pair fills, with whole lists.
      least, most: bounds of fields that are numbers, or text that is a number:
        `{"similarity": 0.3}`. A pair without the field is left out.
      duplicates: the number of preceding pairs in which to look for duplicates; -1 for all. A pair
        is left out if one of them that meets the other conditions has an image of the same bytes.
    """

    min_side: int = 0
    max_side: int = 0
    max_aspect: float = 0.0
    min_characters: int = 0
    max_characters: int = 0
    least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    duplicates: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], key: str = "config.data.filter") -> Filter:
        """Makes a filter from a group of config keys.

        Args:
          values: the conditions by name.
          key: what errors call the group.

        Raises:
          UserError: a key is unknown, or a value is not a valid bound.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{key}={values!r:.200} must hold conditions such as min_side")
        known = [field.name for field in dataclasses.fields(cls)]
        conditions: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"unknown config key {key}.{name}; known: {', '.join(known)}")
            if name in ("least", "most"):
                conditions[name] = _bounds(f"{key}.{name}", value)
                continue
            is_whole = name != "max_aspect"
            if not is_number(value) or (is_whole and not isinstance(value, int)):
                raise UserError(f"{key}.{name}={value!r} must be a {'whole ' * is_whole}number")
            lowest = -1 if name == "duplicates" else 0
            if not lowest <= value < math.inf:
                raise UserError(f"{key}.{name}={value!r} must be at least {lowest}")
            conditions[name] = value if is_whole else float(value)
        filter_ = cls(**conditions)
        filter_._check_ends(key)
        return filter_

    def _check_ends(self, key: str) -> None:
        if 0 < self.max_aspect < 1:
            raise UserError(
                f"{key}.max_aspect={self.max_aspect} must be at least 1 (a square), or 0: any"
            )
        ends = [
            ("min_side", self.min_side, "max_side", self.max_side or math.inf),
            ("min_characters", self.min_characters, "max_characters", self.max_characters or 1e9),
            *(
                (f"least.{f}", self.least[f], f"most.{f}", self.most[f])
                for f in self.least.keys() & self.most.keys()
            ),
        ]
        for low, least, high, most in ends:
            if least > most:
                raise UserError(f"{key}.{low}={least:g} is above {key}.{high}={most:g}")

    def __bool__(self) -> bool:
        return self != Filter()

    @property
    def fields(self) -> list[str]:
        """The fields that have bounds, sorted."""
        return sorted(self.least.keys() | self.most.keys())

    @property
    def reasons(self) -> list[str]:
        """The reasons for leaving out a pair, in order; the first that applies is counted."""
        of_fields = [f"{field}{suffix}" for field in self.fields for suffix in ("", "/missing")]
        return ["size", "aspect", "caption", *of_fields, "duplicate"]


def _bounds(key: str, bounds: Any) -> dict[str, float]:
    """Checks the bounds of fields and returns them as floats."""
    are_numbers = isinstance(bounds, Mapping) and all(
        isinstance(field, str) and is_number(bound) and math.isfinite(bound)
        for field, bound in bounds.items()
    )
    if not are_numbers:
        raise UserError(f"{key}={bounds!r:.200} must hold a number for each field it names")
    if len(bounds) > _MAX_FIELDS:
        raise UserError(f"{key} has {len(bounds)} fields: at most {_MAX_FIELDS}")
    return {field: float(bound) for field, bound in bounds.items()}
