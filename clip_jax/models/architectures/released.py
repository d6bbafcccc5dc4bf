"""Models that open_clip publishes, by its names: a table, open_clip.json.

`tools/build_open_clip_models.py` writes it from the installed open_clip.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from clip_jax.io.files import JsonObject
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.registry import HEADS, TEXT_TOWERS, VISION_TOWERS
from clip_jax.models.tower import PixelOptions

_HUB = ("hf-hub:", "hf_hub:", "https://huggingface.co/")


class Released(NamedTuple):
    """A published model.

    Attributes:
      name: open_clip's name of the architecture.
      config: the architecture.
      pixels: how its images are prepared; empty if nothing is known.
    """

    name: str
    config: CLIPConfig
    pixels: PixelOptions


def names() -> tuple[str, ...]:
    """Returns open_clip's names of the architectures that we have."""
    return tuple(_table()["models"])


def hub_names() -> tuple[str, ...]:
    """Returns the names of repositories of Hugging Face with published weights."""
    return tuple(_table()["hub"])


def find(name: str) -> Released | None:
    """Returns the model of a name of open_clip's, or of a repository with or without `hf-hub:`.

    Args:
      name: the name; upper or lower case does not matter, and `/` and `@` mean `-`.

    Returns:
      The model; None if there is none of this name.
    """
    kind, key = _keys().get(plain(without_hub(name)), ("", ""))
    if kind == "models":
        return _released(key, {})
    return _released(*_table()["hub"][key]) if kind else None


def find_file(name: str) -> Released | None:
    """Returns the model of a published file, by the name of the file; None if it is unknown."""
    entry = _table()["files"].get(name)
    return None if entry is None else _released(*entry)


def without_hub(name: str) -> str:
    """Returns the name of a repository without `hf-hub:` or the address of Hugging Face."""
    for prefix in _HUB:
        name = name.removeprefix(prefix)
    return name.rstrip("/")


def plain(name: str) -> str:
    """Returns a name in lower case, with `-` in place of `/` and `@`."""
    return name.replace("/", "-").replace("@", "-").lower()


def compact(config: CLIPConfig) -> JsonObject:
    """Returns `CLIPConfig.to_dict` without the values that are defaults."""
    values = config.to_dict()
    for side, registry in (("vision", VISION_TOWERS), ("text", TEXT_TOWERS)):
        values[side] = _without_defaults(values[side], registry.get(values[side]["kind"]))
    for name, head in values.get("heads", {}).items():
        values["heads"][name] = _without_defaults(head, HEADS.get(head["kind"]))
    return {
        key: value
        for key, value in _without_defaults(values, CLIPConfig).items()
        if key == "embed_dim" or value != {"kind": ""}
    }


def _without_defaults(values: JsonObject, kind: type) -> JsonObject:
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {key: value for key, value in values.items() if repr(defaults.get(key)) != repr(value)}


def _released(name: str, own: JsonObject | None = None) -> Released:
    entry = _table()["models"][name]
    pixels: Any = {**entry["pixels"], **(own or {})}
    config = CLIPConfig.from_dict(entry["model"])
    colors = {key: tuple(pixels.pop(key)) for key in ("mean", "std") if key in pixels}
    return Released(name, config.with_vision(**colors), pixels)


@cache
def _table() -> JsonObject:
    path = resources.files("clip_jax.models.architectures") / "open_clip.json"
    table: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return table


@cache
def _keys() -> dict[str, tuple[str, str]]:
    """Returns the part of the table and the key in it, by plain names; models come first."""
    return {plain(key): (part, key) for part in ("hub", "models") for key in _table()[part]}
