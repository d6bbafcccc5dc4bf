"""Registries: how a config names an implementation, one of ours or a class of the user's own.

A registry maps short names to dotted paths. An entry is imported when it is first asked for, so a
registry can stand below what it names and costs nothing. A name that holds a colon is the dotted
path of a user's class, such as `my_package.losses:MyLoss`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

from clip_jax.errors import UserError, only_user_errors

T = TypeVar("T")


class Registry(Generic[T]):
    """A registry of the implementations of one protocol, by name.

    Args:
      noun: what one entry is, for messages, such as "objective".
      entries: short names and the dotted paths `module:attribute` of their implementations.
    """

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self.noun = noun
        self._paths = dict(entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The short names, in the order in which they were registered."""
        return tuple(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def get(self, name: str, key: str = "", *, trusted: bool = True) -> T:
        """Returns the implementation with the given name, and imports it if necessary.

        Args:
          name: a short name, or the dotted path `module:attribute` of a user's own implementation.
          key: the config key or file that holds the name, for error messages.
          trusted: whether the name comes from the user. A dotted path in a file that somebody else
            may have written is not imported: it must name a class in a module that is imported
            already. That can be any class of any library, so the caller must check that it belongs
            to the registry's protocol before it calls anything of it.

        Raises:
          UserError: nothing has this name, or the user's module or class cannot be imported.
        """
        where = f"{key}={name}" if key else f"the {self.noun} {name!r}"
        if name in self._paths:
            module, _, attribute = self._paths[name].partition(":")
            return cast(T, getattr(importlib.import_module(module), attribute))
        if ":" not in name:
            near = difflib.get_close_matches(name, self._paths, 1)
            hint = f"did you mean {near[0]}? There are" if near else "there are"
            raise UserError(
                f"{where}: no {self.noun} has this name; {hint} {', '.join(self._paths)}, and your "
                "own as my_package.my_module:MyClass"
            )
        return cast(T, _import_users(name, where, trusted))


def is_users(value: object) -> bool:
    """Returns whether a class, a function or the class of an object is not of this package."""
    module: str = getattr(value, "__module__", "")
    return module.partition(".")[0] != __name__.partition(".")[0]


def path_of(kind: type) -> str:
    """Returns the dotted path that names a class in a config."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _import_users(path: str, where: str, trusted: bool) -> Any:
    """Returns the attribute that a dotted path of the user names."""
    name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise UserError(f"{where} must be a dotted path such as my_package.my_module:MyClass")
    if not trusted and name not in sys.modules:
        raise UserError(
            f"{where} names code that is not part of clip_jax: if you trust it, import {name} first"
        )
    with only_user_errors(f"{where}: importing {name}"):
        try:
            value: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{where}: cannot import {error.name}; install it or put its folder on PYTHONPATH"
            ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UserError(f"{where}: {name} has no {attribute}")
        value = getattr(value, part)
    if not trusted and not isinstance(value, type):
        raise UserError(f"{where} must name a class; {attribute} of {name} is none")
    return value
