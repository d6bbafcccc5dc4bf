"""Reading, checking and describing configs: where bad values become clear lines."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from clip_jax.data import augmentation, captions, mixture_config
from clip_jax.errors import UserError, counted, redacted
from clip_jax.models.model_config import DTYPES

ROOT = Path(__file__).resolve().parent.parent

# What may differ between a run and its resumption: it changes no number that is trained.
FREE = ("workdir", "log", "checkpoint", "evaluate", "mesh", "remat", "accumulate", "chunk")
FREE_KEYS = (
    *("data.threads", "data.workers", "data.prefetch", "data.cache_mib"),
    *("data.max_bad_fraction", "data.index", "data.redirects"),
    *("loss.layout", "loss.block", "optimizer.sharded"),
)


def load(path: str, overrides: Sequence[str] = ()) -> tuple[ConfigDict, str]:
    """The config of a file after `KEY=VALUE` overrides, and the file's docstring.

    Raises:
      UserError: no such file, no `get_config` in it, it fails, or an override is wrong.
    """
    file = Path(path)
    if not file.is_file():
        folder = ROOT / "configs"
        near = sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "common"))
        raise UserError(f"no config {path}; in {folder}/ there are: {', '.join(near)}")
    spec = importlib.util.spec_from_file_location(f"clip_jax_config_{file.stem}", file)
    if not spec or not spec.loader:
        raise UserError(f"config {path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT))
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        line = " ".join(str(error).split())
        raise UserError(f"config {path} fails: {type(error).__name__}: {line}") from error
    finally:
        sys.path.remove(str(ROOT))
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config() must give a ConfigDict, not {config!r:.40}")
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


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _as_type(value: Any, old: Any) -> Any:
    """`value` as the type of `old` where that loses nothing; else TypeError."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(old, float) and number and math.isfinite(value):
        return float(value)
    if type(old) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is not type(old) or isinstance(old, float):
        raise TypeError
    return value


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
            f"config.{key}={text} is not {_kind(old)}; the default is {old!r}"
        ) from None


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple"}
    return kinds.get(type(value), f"a {type(value).__name__}")


# Groups whose keys are names of the user's own; those of the first are checked where they are read.
_OPEN = ("data.mix", "data.filter.least", "data.filter.most")
_NAMED = (*_OPEN, "evaluate.sets")


def _group(key: str, text: str) -> ConfigDict:
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


# What others call a key.
_CALLED = {
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "beta1": "optimizer.b1",
    "beta2": "optimizer.b2",
    "precision": "dtype",
    "epochs": "steps",
    "warmup": "optimizer.warmup_steps",
    "grad_clip": "optimizer.clip_norm",
    "accum_freq": "accumulate",
    "resume": "workdir",
    "pretrained": "weights.path",
}


def _nearest(key: str, known: Sequence[str]) -> str:
    """The key that was meant, where one is close enough to say so; or nothing."""
    last = key.rpartition(".")[2]
    if _CALLED.get(last) in known:
        return _CALLED[last]
    for end in difflib.get_close_matches(last, {k.rpartition(".")[2] for k in known}, 3, 0.75):
        ending = [k for k in known if k.rpartition(".")[2] == end]
        return difflib.get_close_matches(key, ending, 1, 0)[0]
    return next(iter(difflib.get_close_matches(key, known, 1, 0.8)), "")


def override(config: ConfigDict, item: str) -> None:
    """Sets one `KEY=VALUE`, KEY dotted; VALUE is read as the type that stands there."""
    key, equals, text = item.partition("=")
    *folders, last = key.split(".")
    is_open = key.startswith(tuple(f"{group}." for group in _OPEN)) and all(key.split("."))
    node: Any = config
    for name in folders:
        if is_open and isinstance(node, ConfigDict) and name not in node:
            with node.unlocked():
                node[name] = ConfigDict()
        node = node.get(name) if isinstance(node, ConfigDict) else None
    if is_open and equals and isinstance(node, ConfigDict):
        old = node.get(last)
        with node.unlocked(), node.ignore_type():
            node[last] = _parse(key, text, old if isinstance(old, (str, tuple)) else None)
        return
    known = dict(flatten(config))
    if not isinstance(node, ConfigDict) or last not in node:
        near = _nearest(key, list(known))
        hint = f"did you mean config.{near}?" if near else "--config FILE --help lists the keys"
        raise UserError(f"unknown config key config.{key}; {hint}")
    if key in _NAMED:
        value = _group(key, text)
        with node.unlocked():
            node[last] = value
        return
    if isinstance(node[last], ConfigDict):
        inner = ", ".join(k for k in known if k.startswith(f"{key}."))
        instead = f"set one of {inner}" if inner else "fill it in a config file"
        raise UserError(f"config.{key} is a group of keys: {instead}")
    if not equals:
        raise UserError(f"config.{key} needs a value: --config.{key}=VALUE")
    with node.unlocked():
        node[last] = _parse(key, text, node[last])


# The least and the greatest value that a key may have.
_BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "chunk.image": (-1, math.inf),
    "chunk.text": (-1, math.inf),
    "seed": (0, 2**32 - 1),
    "log.every": (1, math.inf),
    "checkpoint.every": (1, math.inf),
    "checkpoint.keep": (1, math.inf),
    "evaluate.every": (1, math.inf),
    "evaluate.batch_size": (1, math.inf),
    "evaluate.pictures": (0, math.inf),
    "evaluate.seeds": (1, math.inf),
    "data.token_dropout": (0, 1 - 1e-9),
    "data.max_bad_fraction": (0, 1),
    "data.threads": (1, math.inf),
    "data.workers": (0, math.inf),
    "data.prefetch": (1, math.inf),
    "data.cache_mib": (0, math.inf),
    "loss.block": (0, math.inf),
    "loss.label_smoothing": (0, 1 - 1e-9),
    "optimizer.learning_rate": (1e-12, math.inf),
    "optimizer.final_learning_rate": (0, math.inf),
    "optimizer.muon_learning_rate": (0, math.inf),
    "optimizer.warmup_steps": (0, math.inf),
    "optimizer.b1": (0, 1 - 1e-9),
    "optimizer.b2": (0, 1 - 1e-9),
    "optimizer.eps": (1e-30, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.clip_norm": (0, math.inf),
}

# The values that a key may have.
_CHOICES: dict[str, Sequence[str]] = {
    "dtype": tuple(DTYPES),
    "optimizer.name": ("adamw", "lamb"),
    "optimizer.schedule": ("cosine", "linear"),
    "optimizer.moments": ("float32", "bfloat16"),
    "optimizer.text_weights": ("float32", "bfloat16"),
    "evaluate.dtype": ("", *DTYPES),
}


def check(config: ConfigDict, devices: int | None = None) -> None:
    """What can be known to be wrong before any device is touched.

    devices: that train; None where nothing is trained.

    Raises:
      UserError: names the key, its value and what to do.
    """
    values = dict(flatten(config))
    for key, (least, most) in _BOUNDS.items():
        if key in values and not least <= values[key] <= most:
            end = f" and at most {most:.10g}" if most < math.inf else ""
            raise UserError(f"config.{key}={values[key]} must be at least {least:g}{end}")
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} must be below "
            f"config.steps={config.steps}"
        )
    for key, choices in _CHOICES.items():
        if key in values and values[key] not in choices:
            raise UserError(f"config.{key}={values[key]!r} must be one of {', '.join(choices)}")
    if values.get("optimizer.name") == "lamb" and values.get("optimizer.muon_learning_rate"):
        raise UserError(
            f"config.optimizer.muon_learning_rate={config.optimizer.muon_learning_rate} has no "
            "place in config.optimizer.name=lamb: set it to 0, or the name to adamw"
        )
    for tower, rows in config.get("chunk", {}).items():
        if rows > 0 and config.remat != "full":
            raise UserError(
                f"config.chunk.{tower}={rows} needs config.remat=full, not {config.remat!r}: going "
                "backwards every chunk is computed again"
            )
    augmentation.Augment.from_dict(config.data.augment.to_dict())
    mixture_config.of(config.data.to_dict())
    _check_templates(config)
    if devices is None:
        return
    tensor = max(1, config.mesh.tensor)
    shards, parts = max(1, devices // tensor), config.accumulate
    if config.batch_size % (shards * parts):
        near = max(1, round(config.batch_size / (shards * parts))) * shards * parts
        in_parts = f" in config.accumulate={parts} parts" if parts > 1 else ""
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide over "
            f"{counted(shards, 'device')}{in_parts}: use a multiple of {shards * parts}, "
            f"such as {near}"
        )


def _check_templates(config: ConfigDict) -> None:
    try:
        captions.fields(config.evaluate.caption)
    except UserError as error:
        raise UserError(f"config.evaluate.caption: {error}") from None
    prompts = config.evaluate.templates
    if not prompts or any("{}" not in prompt for prompt in prompts):
        raise UserError(
            f"config.evaluate.templates={prompts!r:.200} must each hold {{}}: the label"
        )


def to_json(config: ConfigDict) -> str:
    """The config as text that `config.json` of a run holds, without secrets in URLs."""
    return json.dumps(without_secrets(config.to_dict()), indent=1, sort_keys=True) + "\n"


def without_secrets(values: Any) -> Any:
    """Nested values whose URLs have neither passwords nor signatures."""
    if isinstance(values, dict):
        return {key: without_secrets(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(map(without_secrets, values))
    return redacted(values) if isinstance(values, str) else values


# Keys that say where something lies, not what it is.
_PLACES = re.compile(r"data\.(train|root)|data\.mix\..+\.(data|root)|tokenizer")


def is_place(key: str) -> bool:
    """Whether what a key names may have moved, and is known by its fingerprint."""
    return bool(_PLACES.fullmatch(key))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `key: old → new` for what a resumed run may not change, see `changes`."""
    return list(changes(old, new).values())


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Lines `key: old → new`, by their keys, for what a resumed run may not change.

    A run that began before there was a key has that key's default.

    Raises:
      UserError: `old` is nested too deep to be a config.
    """
    try:
        return _changes(without_secrets(old), without_secrets(new))
    except RecursionError:
        raise UserError("the run's config is nested too deep to be one") from None


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    # a group without keys is none: it may be filled later
    before, after = (
        {k: v for k, v in flatten(json.loads(json.dumps(c))) if v != {}} for c in (old, new)
    )
    if new_keys := after.keys() - before.keys():
        common = load(str(ROOT / "configs" / "common.py"))[0].to_dict()
        defaults = dict(flatten(json.loads(json.dumps(common))))
        before |= {key: defaults[key] for key in new_keys & defaults.keys()}
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return {
        key: f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in changed
        if key.split(".")[0] not in FREE and key not in FREE_KEYS
    }


def describe(config: ConfigDict) -> str:
    """The keys and their values, a line each."""
    values = ((k, {} if isinstance(v, ConfigDict) else v) for k, v in flatten(config))
    return "\n".join(f"  --config.{key}={value!r}" for key, value in values)
