"""The optimizer as a pure value: schedule, what decays, Adam, LAMB, Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from clip_jax.optim import low_precision
from clip_jax.optim.lamb import lamb
from clip_jax.optim.masks import decay_mask, matrix_axes

__all__ = ["decay_mask", "learning_rate", "make_optimizer"]


def learning_rate(
    peak: float, warmup_steps: int, steps: int, final: float = 0.0, course: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up to `peak`, then a `cosine` (section 2.5) or a `linear` way to `final`.

    Update `i` (from 0) of the warm-up has the rate `peak * (i + 1) / warmup_steps`, as in
    open_clip: a first update with the rate 0 would change nothing.

    Args:
      peak: the rate of the warm-up's last update, and of the one after it.
      warmup_steps: updates of the warm-up.
      steps: updates until `final`.
      final: the rate from then on.
      course: `cosine` or `linear`.
    """
    decay = max(steps - warmup_steps, 1)
    if course == "linear":
        down = optax.linear_schedule(peak, final, decay)
    else:
        down = optax.cosine_decay_schedule(peak, decay, alpha=final / peak)
    if not warmup_steps:
        return down

    def up(step: ArrayLike) -> Array:
        return peak * (jnp.asarray(step, jnp.float32) + 1) / warmup_steps

    return optax.join_schedules([up, down], [warmup_steps])


def make_optimizer(
    config: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    """What `config.optimizer` describes.

    AdamW with decoupled decay, or LAMB where `name` says so; clipping by global norm before it
    when `clip_norm` is above 0. With a `muon_learning_rate` the towers' matrices are moved by Muon
    (Jordan et al. 2024) at that rate times the schedule's course, and they alone decay; Adam with
    Nesterov's momentum moves the rest. `moments` may keep all their statistics in bfloat16.
    """
    common = {key: config[key] for key in ("b1", "b2", "eps", "weight_decay")}
    if config.get("muon_learning_rate"):
        chosen = _muon(config, schedule)
    elif config.get("name") == "lamb":
        chosen = lamb(schedule, **common)
    else:
        chosen = optax.adamw(schedule, **common, mask=decay_mask)
    if config.get("moments") == "bfloat16":
        chosen = low_precision.moments(chosen)
    if config["clip_norm"]:
        return optax.chain(optax.clip_by_global_norm(config["clip_norm"]), chosen)
    return chosen


def _muon(config: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    ratio = config["muon_learning_rate"] / config["learning_rate"]
    return optax.contrib.muon(
        lambda step: ratio * schedule(step),
        ns_steps=3,  # the usual five cost more; our configs were measured with three
        weight_decay=config["weight_decay"],
        adam_b1=config["b1"],
        adam_b2=config["b2"],
        eps=config["eps"],
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=matrix_axes,
    )
