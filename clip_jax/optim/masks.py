"""Which parameters are matrices, and which are layers in a stack."""

from __future__ import annotations

from typing import Any

import jax
import optax

from clip_jax.distributed.sharding import name_of

# Gains, biases and the temperature are not pulled towards zero (section 2.5).
NO_DECAY = frozenset(
    {"bias", "scale", "logit_scale", "logit_bias", "temperature", "class_embedding", "probe"}
)

# What `models.stack` makes goes by these names.
_STACKS = frozenset({"blocks", "rest"})


def is_matrix(name: str) -> bool:
    """Whether a parameter is a kernel or an embedding: no gain, no bias, no temperature."""
    return name.rpartition("/")[2] not in NO_DECAY


def is_stacked(name: str) -> bool:
    """Whether a parameter leads with an axis of layers."""
    return not _STACKS.isdisjoint(name.split("/"))


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_matrix(name_of(path)), params)


def matrix_axes(params: Any) -> Any:
    """For each matrix between two layers its axes of inputs and outputs; None for the rest."""
    axes = optax.contrib.MuonDimensionNumbers

    def of(path: Any, leaf: Any) -> Any:
        if path[-1].key != "kernel" or leaf.ndim > 3:  # a convolution is no matrix
            return None
        return axes((leaf.ndim - 2,), (leaf.ndim - 1,))  # before them: the layers of a stack

    return jax.tree_util.tree_map_with_path(of, params)
