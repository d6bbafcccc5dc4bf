"""What the configs of our own towers have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from clip_jax.models.registry import MODULES
from clip_jax.models.tower import hidden_width


class BuiltInTower:
    """A tower whose module is found by its `kind`, so that reading its config imports no JAX."""

    kind: ClassVar[str]
    in_chunks: ClassVar[bool] = False  # whether the module can take rows in chunks

    def build(self, embed_dim: int, activation: str, *, chunk: int, **options: Any) -> Any:
        """Builds the module, see `tower.Tower.build`."""
        if self.in_chunks:
            options["chunk"] = chunk
        return MODULES.get(self.kind)(self, embed_dim, activation, **options)


class TransformerTower(BuiltInTower):
    """A tower of Transformer blocks.

    Attributes:
      width: the number of features of the residual stream.
      layers: the number of blocks.
      heads: the number of attention heads.
      mlp_ratio: the width of an MLP's hidden layer, divided by `width`.
      eps: the number that LayerNorms add to the variance.
    """

    in_chunks = True
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    eps: float

    @property
    def blocks(self) -> int:
        """The number of Transformer blocks."""
        return self.layers

    @property
    def hidden_width(self) -> int:
        """The width of the hidden layer of an MLP."""
        return hidden_width(self)
