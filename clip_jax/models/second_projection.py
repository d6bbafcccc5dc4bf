"""A second layer of the projection to the embedding space (Zhang et al. 2020, ConVIRT).

With `model.projection_width` above 0 a tower's linear projection gives that many features; a ReLU
and a second linear layer make `embed_dim` features of them. The layer is part of its tower, at
`vision/second_projection` and `text/second_projection` in the tree of parameters.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.models.initializers import LinearInit, normal
from clip_jax.models.layers import linear

NAME = "second_projection"


def add_second_projection(
    tower: Any, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> None:
    """Adds the layer to a tower.

    Args:
      tower: the module of the tower.
      inputs: the features of its output.
      outputs: the features of the layer's output.
      dtype: one of `model_config.DTYPES`.
      rngs: the source of the initial values.
    """
    init = LinearInit(normal(inputs**-0.5))
    setattr(tower, NAME, linear(inputs, outputs, init=init, dtype=dtype, rngs=rngs))


def project(tower: Any, features: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
    """Returns the output of the layer; `features` as they are if the tower has none."""
    layer = getattr(tower, NAME, None)
    return features if layer is None else layer(jax.nn.relu(features))
