"""The registry of optimizers by name, see `OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optax

from clip_jax.distributed.param_spec import ParamSpecs
from clip_jax.optim.lamb import lamb as _lamb
from clip_jax.optim.masks import decay_mask, matrix_axes
from clip_jax.registry import Registry

# Makes an optimizer from `config.optimizer`, the learning rate schedule and the parameters'
# metadata. Clipping and 16-bit moments are added by `make_optimizer`.
MakeOptimizer = Callable[
    [Mapping[str, Any], optax.Schedule, ParamSpecs], optax.GradientTransformation
]

OPTIMIZERS: Registry[MakeOptimizer] = Registry(
    "optimizer",
    {
        "adamw": "clip_jax.optim.optimizers:adamw",
        "lamb": "clip_jax.optim.optimizers:lamb",
        "muon": "clip_jax.optim.optimizers:muon",
        "sgd": "clip_jax.optim.optimizers:sgd",
    },
)


def adamw(
    config: Mapping[str, Any], schedule: optax.Schedule, specs: ParamSpecs
) -> optax.GradientTransformation:
    """Makes Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return optax.adamw(schedule, **_adam_options(config), mask=partial(decay_mask, specs=specs))


def lamb(
    config: Mapping[str, Any], schedule: optax.Schedule, specs: ParamSpecs
) -> optax.GradientTransformation:
    """Makes LAMB (You et al. 2019)."""
    return _lamb(schedule, specs, **_adam_options(config))


def muon(
    config: Mapping[str, Any], schedule: optax.Schedule, specs: ParamSpecs
) -> optax.GradientTransformation:
    """Makes Muon (Jordan et al. 2024) for the matrices between layers, Adam for other parameters.

    Muon's learning rate is `muon_learning_rate` times the course of the schedule. Only matrices
    decay; Adam uses Nesterov's momentum.
    """
    ratio = config["muon_learning_rate"] / config["learning_rate"]
    return optax.contrib.muon(
        lambda step: ratio * schedule(step),
        ns_steps=3,  # the usual five cost more; our configs were measured with three
        weight_decay=config["weight_decay"],
        adam_b1=config["b1"],
        adam_b2=config["b2"],
        eps=config["eps"],
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=partial(matrix_axes, specs=specs),
    )


def sgd(
    config: Mapping[str, Any], schedule: optax.Schedule, specs: ParamSpecs
) -> optax.GradientTransformation:
    """Makes stochastic gradient descent with the momentum `b1`, as torch.optim.SGD.

    Weight decay is added to the gradients of those parameters that decay.
    """
    return optax.chain(
        optax.add_decayed_weights(config["weight_decay"], partial(decay_mask, specs=specs)),
        optax.sgd(schedule, momentum=config["b1"]),
    )


def _adam_options(config: Mapping[str, Any]) -> dict[str, float]:
    return {key: config[key] for key in ("b1", "b2", "eps", "weight_decay")}
