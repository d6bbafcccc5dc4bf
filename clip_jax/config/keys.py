"""How the schema declares a key: its default, and what else there is to know about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from clip_jax.io.files import JsonObject

T = TypeVar("T")
BELOW_ONE = 1 - 1e-9  # the upper bound of a share that must not be all


@dataclasses.dataclass(frozen=True)
class Key:
    """What the schema says about a key.

    Attributes:
      doc: one or two lines for a reader of the config.
      at_least, at_most: bounds of a number, both included.
      choices: the values that a key can have; empty: any.
      resume: whether a resumed run may have another value, as it changes no number that is trained.
      user_named: whether the key is a group whose keys are names that the user chooses.
    """

    doc: str
    at_least: float = -math.inf
    at_most: float = math.inf
    choices: tuple[str, ...] = ()
    resume: bool = False
    user_named: bool = False


def key(default: T, doc: str, **facts: Any) -> T:
    """A field of a group with its default and its `Key`."""
    options: dict[str, Any] = {"default": default}
    if isinstance(default, dict):
        options = {"default_factory": lambda: dict(default)}
    field: T = dataclasses.field(**options, metadata={"key": Key(doc, **facts)})
    return field


def group(kind: type[T], *, resume: bool = False) -> T:
    """A field that holds a group of keys; with `resume` a resumed run may change all of them."""
    doc = (kind.__doc__ or "").partition("\n")[0]
    field: T = dataclasses.field(default_factory=kind, metadata={"key": Key(doc, resume=resume)})
    return field


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of keys."""

    @classmethod
    def with_defaults(cls, values: Mapping[str, Any]) -> JsonObject:
        """The values of a group, and the defaults of the keys that they lack."""
        return {**cls().to_dict(), **values}

    def to_dict(self) -> JsonObject:
        """The group as nested plain dictionaries."""
        return {
            field.name: value.to_dict() if isinstance(value, Group) else _plain(value)
            for field in dataclasses.fields(self)
            for value in [getattr(self, field.name)]
        }


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value
