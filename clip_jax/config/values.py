"""From a `ConfigDict` to the schema's frozen dataclasses, with the checks of single values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast, get_args, get_origin, get_type_hints

from clip_jax.config.hints import unknown_key
from clip_jax.config.keys import Group
from clip_jax.config.schema import KEYS, Config
from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject


def typed(config: Any) -> Config:
    """A config as frozen dataclasses, each value of its key's type and within its bounds.

    Args:
      config: a `ConfigDict`, or nested dictionaries. Keys that it lacks have their defaults, so
        that the config of a run that is older than a key can be used.

    Raises:
      UserError: an unknown key, a value of another type, or one that is out of bounds.
    """
    if isinstance(config, Config):
        return config
    values = config.to_dict() if hasattr(config, "to_dict") else config
    return cast(Config, _group(Config, values, ""))


def _group(kind: type[Group], values: Any, prefix: str) -> Group:
    if not isinstance(values, Mapping):
        raise UserError(f"config.{prefix[:-1]}={values!r:.200} must be a group of keys")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UserError(unknown_key(f"{prefix}{name}", KEYS))
    default = kind()
    checked: JsonObject = {}
    hints = get_type_hints(kind)
    for name, value in values.items():
        standing = getattr(default, name)
        where = f"{prefix}{name}"
        if isinstance(standing, Group):
            checked[name] = _group(type(standing), value, f"{where}.")
        else:
            checked[name] = _value(where, value, standing)
            _check_elements(where, checked[name], hints[name])
            check_value(where, checked[name])
    return kind(**checked)


def _value(name: str, value: Any, default: Any) -> Any:
    """A value as the type of the key's default."""
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(default) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    expected_type: Any = Mapping if isinstance(default, dict) else type(default)
    fits = isinstance(value, expected_type) and (
        isinstance(value, bool) == isinstance(default, bool)
    )
    if not fits:
        raise UserError(
            f"config.{name}={value!r:.200} is not {kind_of(default)}; the default is {default!r}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{name}={value} must be a finite number")
    return value


def _check_elements(name: str, values: Any, hint: Any) -> None:
    """Raises UserError where an element of a tuple is not of the type that the schema declares."""
    element = get_args(hint)[0] if get_origin(hint) is tuple else None
    if element not in (str, int, float):
        return
    for value in values:
        is_finite = is_number(value) and math.isfinite(value)
        fits = {str: isinstance(value, str), int: is_finite and value == int(value)}
        if not fits.get(element, is_finite):
            expected = {str: "text", int: "a whole number"}.get(element, "a finite number")
            raise UserError(f"config.{name}={values!r:.200}: {value!r:.80} must be {expected}")


def check_value(name: str, value: Any) -> None:
    """Raises UserError where a key's value is out of its bounds or none of its choices."""
    facts = KEYS[name]
    bounded = facts.at_least > -math.inf or facts.at_most < math.inf
    if bounded and not facts.at_least <= value <= facts.at_most:
        end = f" and at most {facts.at_most:.10g}" if facts.at_most < math.inf else ""
        raise UserError(f"config.{name}={value} must be at least {facts.at_least:g}{end}")
    if facts.choices and value not in facts.choices:
        raise UserError(f"config.{name}={value!r:.80} must be one of {', '.join(facts.choices)}")


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def kind_of(value: Any) -> str:
    """What a value is, in words for a message."""
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        tuple: "a tuple",
        dict: "a group of keys",
        str: "text",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def may_change(name: str) -> bool:
    """Whether a resumed run may have another value of a key, given by its dotted name."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(prefix in KEYS and KEYS[prefix].resume for prefix in prefixes)
