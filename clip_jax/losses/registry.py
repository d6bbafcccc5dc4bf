"""The registry of objectives; makes the objective that a config describes.

A new objective is one module that implements `objective.ConfiguredObjective`, and one line here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.config import schema as config_schema
from clip_jax.config.schema import Config
from clip_jax.config.values import is_number
from clip_jax.errors import UserError, only_user_errors
from clip_jax.losses.objective import ConfiguredObjective, Objective
from clip_jax.losses.weighted import Weighted
from clip_jax.models.model_config import CLIPConfig
from clip_jax.registry import Registry

OBJECTIVES: Registry[type[ConfiguredObjective]] = Registry(
    "objective",
    {
        "contrastive": "clip_jax.losses.contrastive.objective:Contrastive",
        "bag_of_words": "clip_jax.losses.bag_of_words:BagOfWords",
        "captioning": "clip_jax.losses.captioning:Captioning",
        "coca": "clip_jax.losses.coca:CoCa",
        "classification": "clip_jax.losses.classification:Classification",
        "masked_words": "clip_jax.losses.masked_words:MaskedWords",
    },
)
_KEYS = ("weight", "name", "options")
_METHODS = ("from_config", "features", "loss", "flops")  # of `ConfiguredObjective`


def objective_names(section: config_schema.Objective) -> tuple[str, ...]:
    """Returns the names of the objectives that `config.objective` combines."""
    return tuple(name for name, _ in _entries(section))


def _entries(section: config_schema.Objective) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the name and the options of each objective of `config.objective`, unchecked."""
    if not section.mix:
        yield section.name, section.options
    for name, value in section.mix.items():
        entry = value if isinstance(value, Mapping) else {}
        options = entry.get("options", {})
        yield str(entry.get("name", name)), options if isinstance(options, Mapping) else {}


def _class_attributes(
    section: config_schema.Objective, name: str
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yields an attribute of the classes of all objectives that have it, and their options."""
    for objective, options in _entries(section):
        try:
            yield getattr(OBJECTIVES.get(objective), name, None), options
        except UserError:
            continue  # `make_objective` says what is wrong


def needs_labels(section: config_schema.Objective) -> bool:
    """Returns whether an objective of `config.objective` needs the array `label`.

    `classification` does, and a user's class whose `extra_arrays` names it.
    """
    arrays = _class_attributes(section, "extra_arrays")
    return any(isinstance(names, tuple) and "label" in names for names, _ in arrays)


def needed_heads(section: config_schema.Objective) -> dict[str, Mapping[str, Any]]:
    """Returns the heads that objectives need: their names, and the keys that are not defaults.

    An objective's class says so by an attribute `heads`, or by a function `heads` of its options.
    """
    heads: dict[str, Mapping[str, Any]] = {}
    for more, options in _class_attributes(section, "heads"):
        needed = more(options) if callable(more) else more
        heads |= needed if isinstance(needed, Mapping) else {}
    return heads


def make_objective(config: Config, model_config: CLIPConfig) -> Objective:
    """Makes the objective that `config.objective` describes.

    Raises:
      UserError: a name is not in the registry, or a key of an objective is wrong.
    """
    section = config.objective
    if not section.mix:
        objective_class = OBJECTIVES.get(section.name, "config.objective.name")
        return _made(objective_class, "config.objective", config, model_config, section.options)
    objectives, weights = {}, {}
    for name, value in section.mix.items():
        key = f"config.objective.mix.{name}"
        entry = _mix_entry(key, value)
        weights[name] = float(entry.get("weight", 1.0))
        objective_class = OBJECTIVES.get(str(entry.get("name", name)), f"{key}.name")
        options = entry.get("options", {})
        objectives[name] = _made(objective_class, key, config, model_config, options)
    return Weighted(objectives, weights)


def _made(
    objective_class: type[ConfiguredObjective],
    key: str,
    config: Config,
    model_config: CLIPConfig,
    options: Mapping[str, Any],
) -> Objective:
    """Makes an objective with a class that may be a user's, and that may be incomplete."""
    name = getattr(objective_class, "__qualname__", str(objective_class))
    missing = [m for m in _METHODS if not callable(getattr(objective_class, m, None))]
    if missing:
        raise UserError(
            f"{key}: {name} is no objective, because it has no method {', '.join(missing)}: see "
            "docs/extending.md"
        )
    with only_user_errors(f"{key}: {name}.from_config"):
        objective = objective_class.from_config(config, model_config, options)
    if missing := [m for m in _METHODS[1:] if not callable(getattr(objective, m, None))]:
        raise UserError(
            f"{key}: {name}.from_config returns a {type(objective).__name__} without "
            f"{', '.join(missing)}"
        )
    return objective


def _mix_entry(key: str, value: Any) -> Mapping[str, Any]:
    """Checks an entry of the mix, which is a weight or a group of keys."""
    entry = value if isinstance(value, Mapping) else {"weight": value}
    for name in entry:
        if name not in _KEYS:
            raise UserError(f"unknown config key {key}.{name}; known: {', '.join(_KEYS)}")
    weight = entry.get("weight", 1.0)
    if not is_number(weight) or not 0 < weight < math.inf:
        raise UserError(f"{key}.weight={weight!r:.80} must be a number above 0")
    if not isinstance(entry.get("options", {}), Mapping):
        raise UserError(f"{key}.options={entry['options']!r:.80} must be a group of keys")
    return entry
