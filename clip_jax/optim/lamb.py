"""LAMB (You et al. 2019): Adam with steps in proportion to the norm of each layer's weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import optax
from jaxtyping import Array

from clip_jax.distributed.param_spec import ParamSpec, ParamSpecs, map_params
from clip_jax.optim.masks import decay_mask


def lamb(
    schedule: optax.Schedule,
    specs: ParamSpecs,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Makes `optax.lamb` with a trust ratio for each layer of a stack.

    Parameters that do not decay (gains, biases, the temperature) take Adam's steps unscaled, as in
    the authors' code.
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, partial(decay_mask, specs=specs)),
        scale_by_trust_ratio(specs),
        optax.scale_by_learning_rate(schedule),
    )


def scale_by_trust_ratio(specs: ParamSpecs) -> optax.GradientTransformation:
    """Makes a transformation that scales each layer's update to the norm of the layer's weights.

    An update stays as it is if its norm or that of the weights is zero.
    """
    of_tensor = optax.scale_by_trust_ratio()

    def scale_tensor(update: Array, param: Array) -> Array:
        return of_tensor.update(update, optax.EmptyState(), param)[0]

    def scale(spec: ParamSpec, update: Array, param: Array) -> Array:
        if not spec.decay:
            return update
        return (jax.vmap(scale_tensor) if spec.stacked else scale_tensor)(update, param)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return map_params(scale, specs, updates, params), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
