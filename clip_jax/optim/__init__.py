"""Optimizers by name, learning rate schedules, weight decay masks and 16-bit storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.config.optimizer_schema import Optimizer
from clip_jax.distributed.param_spec import ParamSpecs
from clip_jax.errors import UserError, only_user_errors
from clip_jax.optim import low_precision
from clip_jax.optim.masks import decay_mask
from clip_jax.optim.optimizers import OPTIMIZERS, MakeOptimizer
from clip_jax.optim.param_groups import ParamGroup, ParamGroups
from clip_jax.optim.schedules import learning_rate, prolonged
from clip_jax.registry import is_users

__all__ = ["OPTIMIZERS", "decay_mask", "learning_rate", "make_optimizer", "prolonged", "restarted"]


def make_optimizer(
    config: Mapping[str, Any],
    schedule: optax.Schedule,
    specs: ParamSpecs,
    groups: ParamGroups | None = None,
) -> optax.GradientTransformation:
    """Makes the optimizer that `config.optimizer` describes.

    Args:
      config: keys that it lacks have their defaults. `name` is a name of `OPTIMIZERS` or a dotted
        path of the user's own; `adamw` with a `muon_learning_rate` above 0 means `muon`. With
        `clip_norm` above 0 gradients are clipped by their global norm first. With
        `moments="bfloat16"` the moments take 16 bits.
      schedule: the learning rate by step.
      specs: the metadata of the parameters.
      groups: the parameters that learn differently; the optimizer then updates only the trainable
        part.
    """
    config = Optimizer.with_defaults(config)
    name = config["name"]
    if name == "adamw" and config["muon_learning_rate"]:
        name = "muon"
    make = OPTIMIZERS.get(name, "config.optimizer.name")

    def optimizer_of(group: ParamGroup) -> optax.GradientTransformation:
        decay = config["weight_decay"] if group.weight_decay is None else group.weight_decay
        rate = group.schedule(schedule, config["warmup_steps"])
        optimizer = _made(name, make, {**config, "weight_decay": decay}, rate, specs)
        half = config["moments"] == "bfloat16"
        return low_precision.moments(optimizer, specs) if half else optimizer

    optimizer = groups.optimizer(optimizer_of) if groups else optimizer_of(ParamGroup())
    if config["clip_norm"]:
        return optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)
    return optimizer


def _made(name: str, make: MakeOptimizer, *args: Any) -> optax.GradientTransformation:
    """Makes an optimizer with a function that may be a user's."""
    with only_user_errors(f"config.optimizer.name={name}"):
        optimizer = make(*args)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(
            f"config.optimizer.name={name} returns a {type(optimizer).__name__}, not an "
            "optax.GradientTransformation"
        )
    return _in_one_line(name, optimizer) if is_users(make) else optimizer


def _in_one_line(
    name: str, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns a user's optimizer, whose failures are one line each."""

    def init(params: Any) -> Any:
        with only_user_errors(f"config.optimizer.name={name}: init"):
            return optimizer.init(params)

    def update(*args: Any, **options: Any) -> Any:
        with only_user_errors(f"config.optimizer.name={name}: update"):
            return optimizer.update(*args, **options)

    return optimizer._replace(init=init, update=update)


def restarted(state: Any) -> Any:
    """Returns an optimizer's state with the counts of schedules and of group starts set to 0.

    Moments and the counts that correct their bias stay.
    """
    counters = optax.ScaleByScheduleState, optax.ConditionallyMaskState

    def restart(leaf: Any) -> Any:
        match leaf:
            case optax.ScaleByScheduleState(count):
                return optax.ScaleByScheduleState(jnp.zeros_like(count))
            case optax.ConditionallyMaskState(step, inner):
                return optax.ConditionallyMaskState(jnp.zeros_like(step), restarted(inner))
        return leaf

    return jax.tree.map(restart, state, is_leaf=lambda leaf: isinstance(leaf, counters))
