"""Reading, checking and describing configs: where bad values become clear lines."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clip_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# What may differ between a run and its resumption: it changes no number that is trained.
FREE = ("workdir", "steps_per_log", "log", "checkpoint", "evaluate", "mesh", "remat")
FREE_DATA = ("data.threads", "data.workers", "data.prefetch")


def load(path: str, overrides: Sequence[str] = ()) -> tuple[ConfigDict, str]:
    """The config of a file after `KEY=VALUE` overrides, and the file's docstring.

    Raises:
      UserError: no such file, no `get_config` in it, it fails, or an override is wrong.
    """
    file = Path(path)
    if not file.is_file():
        near = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
        raise UserError(f"no config {path}; in configs/ there are: {', '.join(near)}")
    spec = importlib.util.spec_from_file_location(f"clip_jax_config_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config {path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(ROOT))
    for item in overrides:
        override(config, item)
    return config.lock(), module.__doc__ or ""


def flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(key: str, text: str, old: Any) -> Any:
    """`text` as a value of the type of `old`."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float):
        value = int(value) if value == int(value) else value
    if isinstance(old, tuple) and isinstance(value, (list, str)):
        value = tuple([value] if isinstance(value, str) else value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"config.{key}={text} is not {_kind(old)}; the default is {old!r}")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def override(config: ConfigDict, item: str) -> None:
    """Sets one `KEY=VALUE`, KEY dotted; VALUE is read as the type that stands there."""
    key, equals, text = item.partition("=")
    *folders, last = key.split(".")
    node: Any = config
    for name in folders:
        node = node.get(name) if isinstance(node, ConfigDict) else None
    known = dict(flatten(config))
    if not isinstance(node, ConfigDict) or last not in node:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean config.{near[0]}?" if near else "see --help for the keys"
        raise UserError(f"unknown config key config.{key}; {hint}")
    if isinstance(node[last], ConfigDict):
        inner = ", ".join(k for k in known if k.startswith(f"{key}."))
        raise UserError(f"config.{key} is a group of keys: set one of {inner}")
    if not equals:
        raise UserError(f"config.{key} needs a value: --config.{key}=VALUE")
    with node.unlocked():
        node[last] = _parse(key, text, node[last])


def check(config: ConfigDict, devices: int, processes: int = 1) -> None:
    """What can be known to be wrong before any device is touched.

    Raises:
      UserError: names the key, its value and what to do.
    """
    for key in (
        "steps",
        "batch_size",
        "log.every",
        "checkpoint.every",
        "checkpoint.keep",
        "evaluate.every",
        "evaluate.batch_size",
        "data.threads",
        "data.prefetch",
    ):
        value = dict(flatten(config))[key]
        if value < 1:
            raise UserError(f"config.{key}={value} must be at least 1")
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be below "
            f"config.steps={config.steps}"
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype={config.dtype!r} must be float32 or bfloat16")
    tensor = max(1, config.mesh.tensor)
    shards = max(1, devices // tensor)
    if config.batch_size % shards or config.batch_size % processes:
        near = max(shards, round(config.batch_size / shards) * shards)
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide over {shards} devices: "
            f"use a multiple of {shards}, such as {near}"
        )


def to_json(config: ConfigDict) -> str:
    """The config as text that `config.json` of a run holds."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `key: old → new` for what a resumed run may not change."""
    before, after = dict(flatten(old)), dict(flatten(json.loads(json.dumps(new))))
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in changed
        if key.split(".")[0] not in FREE and key not in FREE_DATA
    ]


def describe(config: ConfigDict) -> str:
    """The keys and their values, a line each."""
    return "\n".join(f"  --config.{key}={value!r}" for key, value in flatten(config))
