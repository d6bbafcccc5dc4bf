"""The config keys of the optimizer, see `schema`."""

from __future__ import annotations

import dataclasses
from typing import Any

from clip_jax.config.keys import BELOW_ONE, Group, group, key


@dataclasses.dataclass(frozen=True)
class LayerDecay(Group):
    """Factor on the learning rate from each layer to the one below it; 1: none.

    Embeddings count as the lowest layer. What follows the last layer has the full rate.
    """

    vision: float = key(1.0, "of the image tower, such as 0.75", at_least=1e-6, at_most=1)
    text: float = key(1.0, "of the text tower", at_least=1e-6, at_most=1)


@dataclasses.dataclass(frozen=True)
class Optimizer(Group):
    """The optimizer and its learning rate."""

    name: str = key(
        "adamw",
        "which optimizer: adamw, lamb, muon or sgd, or your own as my_package.optim:my_optimizer",
    )
    learning_rate: float = key(5e-4, "the rate after the warm-up", at_least=1e-12)
    final_learning_rate: float = key(0.0, "the rate at the last step", at_least=0)
    muon_learning_rate: float = key(
        0.0, "above 0: Muon updates the towers' matrices at this rate, Adam the rest", at_least=0
    )
    warmup_steps: int = key(
        2_000, "updates in which the rate rises linearly to learning_rate", at_least=0
    )
    schedule: str = key(
        "cosine",
        "the rate after the warm-up: cosine or linear, a decay to the final rate; constant; rsqrt, "
        "an inverse square root",
        choices=("cosine", "linear", "constant", "rsqrt"),
    )
    cooldown_steps: int = key(
        0, "last updates of constant and rsqrt, which fall linearly to the final rate", at_least=0
    )
    timescale: int = key(
        10_000, "updates after the warm-up until rsqrt is at 1/√2 of learning_rate", at_least=1
    )
    ends: tuple[int, ...] = key(
        (),
        "steps at which the run ended before it was given more steps, such as (1000,): up to each "
        "of them the rates are those of a run of that length",
    )
    then: str = key(
        "continue",
        "the rate after each of ends: continue, as if the run had been that long from the start; "
        "rewarm, a new warm-up and decay; constant, the last rate",
        choices=("continue", "rewarm", "constant"),
    )
    b1: float = key(0.9, "Adam's β₁, and the momentum of sgd", at_least=0, at_most=BELOW_ONE)
    b2: float = key(0.98, "Adam's β₂", at_least=0, at_most=BELOW_ONE)
    eps: float = key(1e-6, "Adam's ε", at_least=1e-30)
    weight_decay: float = key(
        0.2, "decoupled decay of matrices; gains, biases and scales do not decay", at_least=0
    )
    clip_norm: float = key(0.0, "greatest norm of the gradient; 0: no clipping", at_least=0)
    sharded: bool = key(
        False, "shard the optimizer's state over the data axis too (ZeRO)", resume=True
    )
    moments: str = key(
        "float32",
        "dtype of the optimizer's statistics of matrices; bfloat16 halves them, with stochastic "
        "rounding",
        choices=("float32", "bfloat16"),
    )
    text_weights: str = key(
        "float32",
        "dtype of the text tower's matrices and their gradients; bfloat16 with stochastic rounding",
        choices=("float32", "bfloat16"),
    )
    freeze: str = key(
        "",
        "parts of the model that do not learn, separated by commas: vision, text, logit_scale, "
        "vision.blocks[:8], text.token_embedding; they have no gradients and no optimizer state",
    )
    groups: tuple[Any, ...] = key(
        (),
        "how parameters learn whose whole name matches a regular expression (the first match "
        "counts): {'pattern': 'text/.*', and frozen (true), or learning_rate (a factor), "
        "weight_decay, start (a step), warmup_steps}",
    )
    layer_decay: LayerDecay = group(LayerDecay)
    frozen_weights: str = key(
        "float32",
        "dtype in which frozen matrices are stored",
        choices=("float32", "bfloat16"),
    )
