"""The mapping of the encoder of transformers' mT5."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.weights.mappings.encoders import EncoderMapping
from clip_jax.weights.mappings.leaf import Leaf, linear, single

_BLOCKS = "text/transformer/blocks"


class T5(EncoderMapping):
    """The mapping of an encoder of mT5 with its config.json."""

    name = "t5"
    description = "an encoder of transformers' mT5"
    kinds = ("t5",)

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such an encoder."""
        return "block.0.layer.0.SelfAttention.relative_attention_bias.weight" in names

    def unused(self, tower: Any) -> Collection[str]:
        """Returns no names: all tensors have a place."""
        return ()

    def encoder_leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaves of a tower that it fills."""
        attention, mlp = "block.{}.layer.0", "block.{}.layer.1"
        stacked: dict[str, Any] = dict(layers=tuple(range(tower.layers)))
        matrices: dict[str, Any] = dict(bias=False, **stacked)
        yield single("text/token_embedding/embedding", "embed_tokens.weight")
        yield single(
            "text/transformer/relative_bias",
            "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        )
        for number, part in ((1, attention), (2, mlp)):
            yield single(f"{_BLOCKS}/norm_{number}/scale", f"{part}.layer_norm.weight", **stacked)
        parts = (f"{attention}.SelfAttention.{part}" for part in "qkv")
        yield from linear(f"{_BLOCKS}/attention/qkv", *parts, **matrices)
        yield from linear(f"{_BLOCKS}/attention/out", f"{attention}.SelfAttention.o", **matrices)
        for ours, theirs in (("gate", "wi_0"), ("fc", "wi_1"), ("proj", "wo")):
            yield from linear(f"{_BLOCKS}/mlp/{ours}", f"{mlp}.DenseReluDense.{theirs}", **matrices)
        yield single("text/norm_final/scale", "final_layer_norm.weight")
