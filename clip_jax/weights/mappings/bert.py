"""The mapping of transformers' `BertModel`, and of the sentence encoders that are made of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models.model_config import BertConfig
from clip_jax.models.registry import kind_of
from clip_jax.weights.configs import hugging_face
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.mappings.leaf import Leaf, blocks, linear, norm, single
from clip_jax.weights.mappings.tower import TowerMapping

CONFIG = "config.json"
POOLING = Path("1_Pooling") / "config.json"  # of sentence-transformers
_POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


class Bert(TowerMapping):
    """The mapping of a BERT with its config.json, and with the pooling of sentence-transformers."""

    name = "bert"
    description = "a BERT of transformers or sentence-transformers"
    side = "text"

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are a BERT."""
        return (
            "embeddings.word_embeddings.weight" in names
            and "encoder.layer.0.output.dense.bias" in names
        )

    def leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        if not isinstance(tower, BertConfig):
            raise UserError(f"a BERT fills no {kind_of(tower)}: set model.text.kind=bert")
        return bert_leaves(tower)

    def unused(self, tower: Any) -> Collection[str]:
        """Returns the names of the table of positions' numbers and of a pooler without a place."""
        pooler = () if tower.pooler else ("pooler.dense.weight", "pooler.dense.bias")
        return ("embeddings.position_ids", *pooler)

    def facts(self, tower: Any, file: Path) -> Mapping[str, Any]:
        """Returns what config.json and the pooling's config say."""
        config = file.parent / CONFIG
        if not config.is_file():
            raise UserError(f"{file} has no {CONFIG} beside it, which says what kind of BERT it is")
        facts = hugging_face.from_bert(files.read_json(config), str(config))
        pooling = file.parent / POOLING
        return facts | (_pool(pooling) if pooling.is_file() else {})


def _pool(path: Path) -> dict[str, str]:
    """Returns the pooling that a config of sentence-transformers states."""
    fields = Fields(files.read_json(path), str(path))
    modes = [key for key in fields.values if key.startswith("pooling_mode_") and fields.flag(key)]
    if len(modes) != 1 or modes[0] not in _POOLS:
        raise UserError(
            f"{path}: the pooling {', '.join(modes)[:80] or 'of no mode'!r} is not supported here, "
            f"only {' or '.join(_POOLS)}"
        )
    return {"pool": _POOLS[modes[0]]}


def bert_leaves(text: BertConfig, prefix: str = "") -> Iterator[Leaf]:
    """Yields the leaves of a BERT without its projection, whose names start with `prefix`."""
    table = f"{prefix}embeddings"
    yield single("text/token_embedding/embedding", f"{table}.word_embeddings.weight")
    yield single("text/positional_embedding", f"{table}.position_embeddings.weight")
    yield single("text/segment_embedding", f"{table}.token_type_embeddings.weight")
    yield from norm("text/ln_embedding", f"{table}.LayerNorm")
    yield from blocks("text", f"{prefix}encoder.layer", "bert", text.layers)
    if text.pooler:
        yield from linear("text/pooler", f"{prefix}pooler.dense")
