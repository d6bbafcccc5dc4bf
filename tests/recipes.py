"""Recipes of configs: the step of a tiny model with any keys, trained for a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from clip_jax import config as config_lib
from clip_jax.distributed.global_batch import global_batch
from clip_jax.distributed.param_spec import path_name
from clip_jax.models.model_config import CLIPConfig
from clip_jax.training import setup
from clip_jax.training import train_step as step_lib
from steps import TINY, batch, mesh_of

EIGHT = dict(data=2, fsdp=2, tensor=2)


def recipe_of(
    model: CLIPConfig = TINY,
    shape: Mapping[str, int] | None = None,
    accumulate: int = 1,
    dtype: str = "float32",
    keys: Mapping[str, Any] | None = None,
    **optimizer: Any,
) -> setup.Recipe:
    """The recipe of a model over a mesh; `keys` are other keys by their dotted names."""
    c, _ = config_lib.load(str(config_lib.ROOT / "configs" / "common.py"))
    with c.unlocked():
        c.model = ConfigDict(model.to_dict())
        c.update(batch_size=16, steps=200, dtype=dtype, remat="none", accumulate=accumulate)
        c.chunk.update(image=0, text=0)
        c.optimizer.update(learning_rate=3e-3, warmup_steps=0, **optimizer)
        c.update_from_flattened_dict(dict(keys or {}))
    mesh = mesh_of(dict(shape or dict(data=1)))
    return setup.Recipe(*setup.checked(c, mesh.size), mesh)


def train(
    recipe: setup.Recipe, steps: int, config: CLIPConfig = TINY
) -> tuple[step_lib.TrainState, step_lib.TrainState, dict[str, float]]:
    """The state before and after, as NumPy arrays, and the metrics of the last step."""
    *states, metrics = trajectory(recipe, steps, config)
    return states[0], states[-1], metrics


def trajectory(recipe: setup.Recipe, steps: int, config: CLIPConfig = TINY) -> list[Any]:
    """The states before and after each step, as NumPy arrays, then the last metrics."""
    state = step_lib.init_state(config, recipe.optimizer, 0, recipe.mesh, recipe.state_options)
    states = [jax.device_get(state)]
    step = step_lib.compile_step(recipe.train_step, recipe.state_like, recipe.mesh)
    metrics: dict[str, Any] = {}
    for i in range(steps):
        rows = global_batch(batch(16, i % 4, config=config), recipe.mesh)
        state, metrics = step(state, rows)
        states.append(jax.device_get(state))
    return [*states, {k: float(v) for k, v in metrics.items()}]


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
