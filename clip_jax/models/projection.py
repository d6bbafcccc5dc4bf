"""The projection of an image tower's pooled features to the embedding space, as open_clip has it.

open_clip puts it after a trunk of timm: nothing, a matrix, or an MLP of one hidden layer. Its
`timm_proj` names them. timm's own classifier in its place is a matrix with a bias.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.models.built_in import ProjectedTower
from clip_jax.models.initializers import TORCH, LinearInit
from clip_jax.models.layers import Linear, linear

Features = Float[Array, "batch features"]
Embedding = Float[Array, "batch embed_dim"]


class ProjectedModule(nnx.Module):
    """The module of an image tower whose features are a projection of pooled ones."""

    projection: Any

    def __call__(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Embedding:
        """Returns features of images (uint8, or normalised already), not normalised to length one.

        Training gives a `key`: BatchNorms then use and update their statistics. Towers without them
        compute the same.
        """
        return self.project(self.pooled(image, key=key))

    def project(self, pooled: Features) -> Embedding:
        """Projects pooled features to the embedding space; without a projection they stay as is."""
        return self.projection(pooled)

    @abstractmethod
    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Features:
        """Returns pooled features, before the projection; arguments as for a call."""


class NoProjection(nnx.Module):
    """Leaves features as they are."""

    def __call__(self, x: Features) -> Features:
        """Returns its input."""
        return x


class MlpProjection(nnx.Module):
    """Two layers with a GELU between them; the first one may have a bias."""

    def __init__(
        self,
        features: int,
        hidden: int,
        embed_dim: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        common = dict(init=TORCH, dtype=dtype, rngs=rngs)
        self.fc = linear(features, hidden, use_bias=use_bias, **common)
        self.proj = linear(hidden, embed_dim, use_bias=False, **common)

    def __call__(self, x: Features) -> Embedding:
        """Returns the projected features."""
        return self.proj(jax.nn.gelu(self.fc(x), approximate=False))


def projection(
    tower: ProjectedTower,
    features: int,
    embed_dim: int,
    *,
    classifier: LinearInit,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> NoProjection | Linear | MlpProjection:
    """Makes the projection of a tower.

    Args:
      tower: the config, which says which projection it has.
      features: the number of pooled features.
      embed_dim: the number of features of the embedding space.
      classifier: the initializers of timm's classifier, for a projection with a bias. The others
        are open_clip's, and start as layers of torch do.
      dtype: the dtype that the model computes in, see `layers.activation_dtype`.
      rngs: the source of the initial values.
    """
    if tower.projection == "none":
        return NoProjection()
    common = dict(dtype=dtype, rngs=rngs)
    if tower.projection == "mlp":
        return MlpProjection(features, tower.projection_hidden(embed_dim), embed_dim, **common)
    bias = tower.projection_bias
    init = classifier if bias else TORCH
    return linear(features, embed_dim, use_bias=bias, init=init, **common)
