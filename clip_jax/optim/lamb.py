"""LAMB (You et al. 2019): Adam whose steps are as long as each layer's weights allow."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array

from clip_jax.distributed.sharding import name_of
from clip_jax.optim.masks import decay_mask, is_matrix, is_stacked


def lamb(
    schedule: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """As `optax.lamb`, but layer by layer where layers are stacked.

    Gains, biases and the temperature neither decay nor are their steps rescaled, as in the
    authors' code, which leaves LayerNorms and biases out of both.
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, decay_mask),
        scale_by_trust_ratio(),
        optax.scale_by_learning_rate(schedule),
    )


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Each layer's update as long as its weights; as it was where one of the two is zero."""
    whole = optax.scale_by_trust_ratio()

    def scaled(update: Array, param: Array) -> Array:
        return whole.update(update, optax.EmptyState(), param)[0]

    def of(path: tuple[Any, ...], update: Array, param: Array) -> Array:
        name = name_of(path)
        if not is_matrix(name):
            return update
        return (jax.vmap(scaled) if is_stacked(name) else scaled)(update, param)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(of, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
