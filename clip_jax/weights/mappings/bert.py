"""The mapping of transformers' `BertModel` and RoBERTas, and of sentence encoders made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from clip_jax.models.model_config import BertConfig, RobertaConfig
from clip_jax.weights.mappings.encoders import EncoderMapping
from clip_jax.weights.mappings.leaf import Leaf, blocks, linear, norm, single


class Bert(EncoderMapping):
    """The mapping of a BERT with its config.json, and with the pooling of sentence-transformers.

    RoBERTa and XLM-RoBERTa have its names.
    """

    name = "bert"
    description = "a BERT of transformers or sentence-transformers"
    kinds = ("bert", "roberta")

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are a BERT."""
        return (
            "embeddings.word_embeddings.weight" in names
            and "encoder.layer.0.output.dense.bias" in names
        )

    def encoder_leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaves of a tower that it fills."""
        return bert_leaves(tower)

    def unused(self, tower: Any) -> Collection[str]:
        """Returns the names of the table of positions' numbers and of a pooler without a place."""
        pooler = () if tower.pooler else ("pooler.dense.weight", "pooler.dense.bias")
        return ("embeddings.position_ids", *pooler)


def bert_leaves(text: BertConfig | RobertaConfig, prefix: str = "") -> Iterator[Leaf]:
    """Yields the leaves of a BERT without its projection, whose names start with `prefix`."""
    table = f"{prefix}embeddings"
    yield single("text/token_embedding/embedding", f"{table}.word_embeddings.weight")
    yield single("text/positional_embedding", f"{table}.position_embeddings.weight")
    yield single("text/segment_embedding", f"{table}.token_type_embeddings.weight")
    yield from norm("text/ln_embedding", f"{table}.LayerNorm")
    yield from blocks("text", f"{prefix}encoder.layer", "bert", text.layers)
    if text.pooler:
        yield from linear("text/pooler", f"{prefix}pooler.dense")
