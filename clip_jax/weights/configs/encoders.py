"""Reads the config.json of transformers' text encoders: a tower's fields that it states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.weights.configs.align import bert_fields
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.transformers_towers import EVERYWHERE, activation_of

# Keys of models with a decoder that its encoder does not read, or only in training. Sinusoids of
# positions go on as far as a text does.
_OF_DECODERS = (
    *("activation_dropout", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop"),
    *("decoder_layers", "dropout_rate", "encoder_layerdrop", "init_std", "is_gated_act"),
    *("dense_act_fn", "max_position_embeddings", "num_decoder_layers", "num_hidden_layers"),
)


def from_encoder(values: Mapping[str, Any], kind: str, where: str = "config.json") -> JsonObject:
    """Returns the fields of a text tower that the config.json of such an encoder states.

    Args:
      values: the config.
      kind: the `kind` of our tower.
      where: the name of the file in messages.

    Raises:
      UserError: another kind of model, a value of the wrong type, an unknown key, or a feature
        that we do not have.
    """
    fields = Fields(values, where)
    model = fields.text("model_type", "")
    if model not in _READERS:
        raise UserError(
            f"{where}: model_type={model!r:.60} is not supported here, only {', '.join(_READERS)}"
        )
    wanted, read = _READERS[model]
    if kind != wanted:
        raise UserError(
            f"{where}: model_type={model!r} fills no {kind}: set model.text.kind={wanted}"
        )
    facts = read(fields)
    fields.finish({"": (*EVERYWHERE, *_OF_DECODERS)})
    return facts


def _read_bert(fields: Fields, **defaults: int) -> JsonObject:
    return {**bert_fields(fields, **defaults), "activation": activation_of(fields, "gelu")}


def _read_t5(fields: Fields) -> JsonObject:
    width, heads = fields.integer("d_model", 512), fields.integer("num_heads", 6)
    fields.only("feed_forward_proj", "gated-gelu")
    if fields.integer("d_kv", 64) * heads != width:
        raise UserError(
            f"{fields.where}: d_kv · num_heads other than d_model is not supported here"
        )
    return dict(
        vocab_size=fields.integer("vocab_size", 250112),
        width=width,
        layers=fields.integer("num_layers", 8),
        heads=heads,
        mlp_ratio=fields.integer("d_ff", 1024) / width,
        buckets=fields.integer("relative_attention_num_buckets", 32),
        max_distance=fields.integer("relative_attention_max_distance", 128),
        pad_id=fields.integer("pad_token_id", 0, least=0),
        eps=fields.eps("layer_norm_epsilon", 1e-6),
    )


def _read_m2m(fields: Fields) -> JsonObject:
    fields.only("activation_function", "relu")
    fields.only("scale_embedding", True)
    width = fields.integer("d_model", 1024)
    return dict(
        vocab_size=fields.integer("vocab_size", 128112),
        width=width,
        layers=fields.integer("encoder_layers", 12),
        heads=fields.integer("encoder_attention_heads", 16),
        mlp_ratio=fields.integer("encoder_ffn_dim", 4096) / width,
        pad_id=fields.integer("pad_token_id", 1, least=0),
        eps=1e-5,
    )


# By transformers' model_type: the kind of our tower, and how its fields are read.
_READERS: dict[str, tuple[str, Callable[[Fields], JsonObject]]] = {
    "bert": ("bert", _read_bert),
    "roberta": ("roberta", partial(_read_bert, vocab_size=50265, pad_id=1)),
    "xlm-roberta": ("roberta", partial(_read_bert, pad_id=1)),
    "mt5": ("t5", _read_t5),
    "m2m_100": ("m2m", _read_m2m),
}


_POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


def from_pooling(values: Mapping[str, Any], where: str) -> JsonObject:
    """Returns the pooling that a config of sentence-transformers states.

    Raises:
      UserError: it states no pooling, or one that we do not have.
    """
    fields = Fields(values, where)
    modes = [key for key in fields.values if key.startswith("pooling_mode_") and fields.flag(key)]
    if len(modes) != 1 or modes[0] not in _POOLS:
        raise UserError(
            f"{where}: the pooling {', '.join(modes)[:80] or 'of no mode'!r} is not supported "
            f"here, only {' or '.join(_POOLS)}"
        )
    return {"pool": _POOLS[modes[0]]}
