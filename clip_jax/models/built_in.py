"""What the configs of our own towers have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from clip_jax.models.registry import MODULES
from clip_jax.models.tower import hidden_width


class BuiltInTower:
    """A tower whose module is found by `kind`, so that reading its config imports no JAX."""

    kind: ClassVar[str]

    def build(
        self,
        embed_dim: int,
        activation: str,
        *,
        dtype: Any,
        remat: str,
        chunk: int,
        rngs: Any,
    ) -> Any:
        """The module, see `tower.Tower.build`. Convolutions take all rows, whatever `chunk` is."""
        del chunk
        make = MODULES.get(self.kind)
        return make(self, embed_dim, activation, dtype=dtype, remat=remat, rngs=rngs)


class TransformerTower(BuiltInTower):
    """A tower of Transformer blocks, which can take rows in chunks."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float
    eps: float

    def build(
        self,
        embed_dim: int,
        activation: str,
        *,
        dtype: Any,
        remat: str,
        chunk: int,
        rngs: Any,
    ) -> Any:
        """The module, see `tower.Tower.build`."""
        make = MODULES.get(self.kind)
        options = dict(dtype=dtype, remat=remat, chunk=chunk, rngs=rngs)
        return make(self, embed_dim, activation, **options)

    @property
    def blocks(self) -> int:
        """Transformer blocks."""
        return self.layers

    @property
    def hidden_width(self) -> int:
        """Width of the hidden layer of an MLP."""
        return hidden_width(self)
