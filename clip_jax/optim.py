"""The optimizer as a pure value: schedule, what decays, Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

# Gains, biases and the temperature are not pulled towards zero (section 2.5).
NO_DECAY = frozenset(
    {"bias", "scale", "logit_scale", "logit_bias", "temperature", "class_embedding", "probe"}
)


def learning_rate(peak: float, warmup_steps: int, steps: int, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine down to `final` at `steps` (section 2.5)."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(steps, warmup_steps + 1),
        end_value=final,
    )


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NO_DECAY, params)


def _matrices(params: Any) -> Any:
    """For each matrix between two layers its axes of inputs and outputs; None for the rest."""
    axes = optax.contrib.MuonDimensionNumbers

    def of(path: Any, leaf: Any) -> Any:
        if path[-1].key != "kernel" or leaf.ndim > 3:  # a convolution is no matrix
            return None
        return axes((leaf.ndim - 2,), (leaf.ndim - 1,))  # before them: the layers of a stack

    return jax.tree_util.tree_map_with_path(of, params)


def make_optimizer(
    config: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW with decoupled decay, and clipping by global norm when `clip_norm` is above 0.

    With a `muon_learning_rate` the towers' matrices are moved by Muon (Jordan et al. 2024) at
    that rate times the schedule's course, and they alone decay; Adam with
    Nesterov's momentum moves the rest.
    """
    if muon_rate := config.get("muon_learning_rate"):
        ratio = muon_rate / config["learning_rate"]
        chosen = optax.contrib.muon(
            lambda step: ratio * schedule(step),
            ns_steps=3,  # the usual five cost more; our configs were measured with three
            weight_decay=config["weight_decay"],
            adam_b1=config["b1"],
            adam_b2=config["b2"],
            eps=config["eps"],
            adam_learning_rate=schedule,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        chosen = optax.adamw(
            schedule,
            b1=config["b1"],
            b2=config["b2"],
            eps=config["eps"],
            weight_decay=config["weight_decay"],
            mask=decay_mask,
        )
    if config["clip_norm"]:
        return optax.chain(optax.clip_by_global_norm(config["clip_norm"]), chosen)
    return chosen
