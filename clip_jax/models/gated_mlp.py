"""MLPs of which one hidden layer is gated by the activation of another (Shazeer 2020)."""

from __future__ import annotations

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.models.initializers import BlockInit
from clip_jax.models.layers import layer_norm, linear
from clip_jax.models.tower import BlockSizes, hidden_width
from clip_jax.models.transformer import ACTIVATIONS


class GatedMLP(nnx.Module):
    """A layer, another one that gates it by its activation, and a third after their product."""

    def __init__(
        self,
        config: BlockSizes,
        *,
        init: BlockInit,
        use_bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        width, hidden = config.width, hidden_width(config)
        common = dict(use_bias=use_bias, dtype=dtype, rngs=rngs)
        into = dict(init=init.fc, axes=("width", "hidden"), bias_axis="hidden", **common)
        self.gate = linear(width, hidden, **into)
        self.fc = linear(width, hidden, **into)
        self.proj = linear(hidden, width, init=init.proj, axes=("hidden", "width"), **common)


class SwiGLU(GatedMLP):
    """An MLP gated by a SiLU, with a LayerNorm of its hidden layer, as in EVA-02."""

    def __init__(
        self, config: BlockSizes, *, init: BlockInit, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        super().__init__(config, init=init, dtype=dtype, rngs=rngs)
        self.ln = layer_norm(hidden_width(config), config.eps, rngs, dtype)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the MLP to each position."""
        return self.proj(self.ln(jax.nn.silu(self.gate(x)) * self.fc(x)))


class GeGLU(GatedMLP):
    """An MLP gated by a GELU, with a LayerNorm of its input, as in ViTamin."""

    def __init__(
        self,
        config: BlockSizes,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, init=init, dtype=dtype, rngs=rngs)
        self.activation = activation
        self.ln = layer_norm(config.width, config.eps, rngs, dtype)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the MLP to each position."""
        x = self.ln(x)
        return self.proj(ACTIVATIONS[self.activation](self.gate(x)) * self.fc(x))
