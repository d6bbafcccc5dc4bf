"""The mapping of the encoder of transformers' M2M-100, NLLB-200 among them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.weights.mappings.encoders import EncoderMapping
from clip_jax.weights.mappings.leaf import Leaf, blocks, norm, single


class M2M(EncoderMapping):
    """The mapping of an encoder of M2M-100 with its config.json."""

    name = "m2m"
    description = "an encoder of transformers' M2M-100 or NLLB"
    kinds = ("m2m",)

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such an encoder."""
        return "embed_tokens.weight" in names and "layers.0.self_attn_layer_norm.weight" in names

    def unused(self, tower: Any) -> Collection[str]:
        """Returns the name of the table of positions, which older files hold."""
        return ("embed_positions.weights",)

    def encoder_leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaves of a tower that it fills."""
        yield single("text/token_embedding/embedding", "embed_tokens.weight")
        yield from blocks("text", "layers", "m2m", tower.layers)
        yield from norm("text/ln_final", "layer_norm")
