"""Objectives by name, and the objective that a config asks for.

A new objective is one module that implements `objective.ConfiguredObjective`, and one line here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.losses.objective import ConfiguredObjective, Objective
from clip_jax.losses.weighted import Weighted
from clip_jax.models.model_config import CLIPConfig
from clip_jax.registry import Registry

OBJECTIVES: Registry[type[ConfiguredObjective]] = Registry(
    "objective",
    {
        "contrastive": "clip_jax.losses.contrastive.objective:Contrastive",
    },
)
_KEYS = ("weight", "name", "options")


def make_objective(config: Config, model_config: CLIPConfig) -> Objective:
    """The objective that `config.objective` describes.

    Raises:
      UserError: there is no objective of a name, or one of its keys is wrong.
    """
    wanted = config.objective
    if not wanted.mix:
        kind = OBJECTIVES.get(wanted.name, "config.objective.name")
        return kind.from_config(config, model_config, wanted.options)
    objectives, weights = {}, {}
    for name, value in wanted.mix.items():
        key = f"config.objective.mix.{name}"
        entry = _entry(key, value)
        weights[name] = float(entry.get("weight", 1.0))
        kind = OBJECTIVES.get(str(entry.get("name", name)), f"{key}.name")
        objectives[name] = kind.from_config(config, model_config, entry.get("options", {}))
    return Weighted(objectives, weights)


def _entry(key: str, value: Any) -> Mapping[str, Any]:
    """An entry of the mix: a weight, or a group of keys."""
    entry = value if isinstance(value, Mapping) else {"weight": value}
    for name in entry:
        if name not in _KEYS:
            raise UserError(f"unknown config key {key}.{name}; known: {', '.join(_KEYS)}")
    weight = entry.get("weight", 1.0)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < math.inf:
        raise UserError(f"{key}.weight={weight!r:.80} must be a number above 0")
    if not isinstance(entry.get("options", {}), Mapping):
        raise UserError(f"{key}.options={entry['options']!r:.80} must be a group of keys")
    return entry
