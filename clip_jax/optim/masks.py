"""Selects the parameters that weight decay applies to, and the matrices that Muon updates."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array

from clip_jax.distributed.param_spec import ParamSpec, ParamSpecs, map_params


def decay_mask(params: Any, specs: ParamSpecs) -> Any:
    """Returns a tree that is True for the parameters that weight decay applies to.

    Gains, biases and the temperature are not pulled towards zero (section 2.5).
    """
    return map_params(lambda spec, _: spec.decay, specs, params)


def matrix_axes(params: Any, specs: ParamSpecs) -> Any:
    """Returns the input and output axes of each matrix between two layers.

    The result is a tree like `params`, with None for other parameters.
    """
    axes = optax.contrib.MuonDimensionNumbers

    def matrix(spec: ParamSpec, leaf: Array | jax.ShapeDtypeStruct) -> Any:
        # axes before the last two count the layers of a stack
        return axes((leaf.ndim - 2,), (leaf.ndim - 1,)) if spec.matrix else None

    return map_params(matrix, specs, params)
