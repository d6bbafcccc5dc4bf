"""`--config.KEY=VALUE`: setting one key of a config from text."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from clip_jax.config.hints import unknown_key
from clip_jax.config.schema import KEYS
from clip_jax.config.values import is_number, kind_of
from clip_jax.errors import UserError

_HEADS = "model.heads"  # which the architectures do not have
# Groups whose keys the user chooses.
_USER_NAMED = (*(name for name, facts in KEYS.items() if facts.user_named), _HEADS)


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def override(config: ConfigDict, item: str) -> None:
    """Sets one `KEY=VALUE`; VALUE is read as the type of the value that it replaces.

    Raises:
      UserError: no such key, or a value of another type. The config is then unchanged.
    """
    key, equals, text = item.partition("=")
    *groups, last = key.split(".")
    extensible = key.startswith(tuple(f"{name}." for name in _USER_NAMED)) and all(key.split("."))
    node: Any = config
    for name in groups:
        if extensible and isinstance(node, ConfigDict) and name not in node:
            with node.unlocked():
                node[name] = ConfigDict()
        node = node.get(name) if isinstance(node, ConfigDict) else None
    if extensible and equals and isinstance(node, ConfigDict):
        old = node.get(last)
        with node.unlocked(), node.ignore_type():
            node[last] = _parse(key, text, old if isinstance(old, (str, tuple)) else None)
        return
    known = dict(flatten(config))
    if not isinstance(node, ConfigDict) or (last not in node and key != _HEADS):
        raise UserError(unknown_key(key, list(known)))
    if key in _USER_NAMED:
        group = _parse_group(key, text)
        with node.unlocked():
            node[last] = group
        return
    if isinstance(node[last], ConfigDict):
        inner = ", ".join(k for k in known if k.startswith(f"{key}."))
        instead = f"set one of {inner}" if inner else "fill it in a config file"
        raise UserError(f"config.{key} is a group of keys: {instead}")
    if not equals:
        raise UserError(f"config.{key} needs a value: --config.{key}=VALUE")
    with node.unlocked():
        node[last] = _parse(key, text, node[last])


def _parse_group(key: str, text: str) -> ConfigDict:
    """`{'name': …}` as a group of keys."""
    try:
        value = ast.literal_eval(text)
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return ConfigDict(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    raise UserError(
        f"config.{key}={text:.200} is no group of keys: give one such as {{'name': …}}, set one of "
        "its keys, or fill it in a config file"
    )


def _parse(key: str, text: str, old: Any) -> Any:
    """`text` as a value of the type of `old`."""
    if isinstance(old, str):
        return text
    value = _literal(text)
    try:
        if isinstance(old, tuple) and not old:
            return tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if isinstance(old, tuple):
            like = old[0]
            if not isinstance(value, (tuple, list)):  # one text needs no brackets around it
                value = (text if isinstance(like, str) else value,)
                like = like if isinstance(like, str) else old
            return tuple(_as_type(item, like) for item in value)
        return value if old is None else _as_type(value, old)
    except (TypeError, OverflowError):
        raise UserError(
            f"config.{key}={text} is not {kind_of(old)}; the default is {old!r}"
        ) from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _as_type(value: Any, old: Any) -> Any:
    """`value` as the type of `old` where that loses nothing; else TypeError."""
    if isinstance(old, float) and is_number(value) and math.isfinite(value):
        return float(value)
    if type(old) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not type(old) or isinstance(old, float):
        raise TypeError
    return value
