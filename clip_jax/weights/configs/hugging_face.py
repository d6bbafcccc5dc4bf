"""Converts architectures from and to the config.json of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.architectures.siglip import siglip
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.models.registry import kind_of
from clip_jax.weights.configs.fields import Fields

# Theirs → ours; of several keys of a value the first is written.
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


# Keys that `PretrainedConfig` of transformers has written into every group over the years, and keys
# that only training, generation or other heads read.
EVERYWHERE = (
    *("_attn_implementation_autoset", "_commit_hash", "_name_or_path", "add_cross_attention"),
    *("architectures", "attention_dropout", "attention_probs_dropout_prob"),
    *("attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id"),
    *("chunk_size_feed_forward", "classifier_dropout", "cross_attention_hidden_size"),
    *("decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "dtype"),
    *("early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id"),
    *("exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id"),
    *("forced_eos_token_id", "gradient_checkpointing", "hidden_dropout_prob", "id2label"),
    *("initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder"),
    *("label2id", "length_penalty", "max_length", "min_length", "model_type"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels"),
    *(
        "num_return_sequences",
        "output_attentions",
        "output_past",
        "output_hidden_states",
        "output_scores",
    ),
    *("pad_token_id", "prefix", "problem_type", "projection_dim", "pruned_heads"),
    *("remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate"),
    *("sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
    *("tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class"),
    *("top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p"),
    *("use_bfloat16", "use_cache", "auto_map"),
)
_UNREAD: dict[str, tuple[str, ...]] = {
    "": (*EVERYWHERE, "text_config_dict", "vision_config_dict", "transformers.js_config"),
    "vision_config": (
        *EVERYWHERE,
        *("hidden_dim", "dropout_rate", "drop_connect_rate", "batch_norm_momentum"),
        "num_hidden_layers",  # of an EfficientNet: the number of its stages
    ),
    "text_config": EVERYWHERE,
}


def _check_older(fields: Fields, key: str) -> None:
    """Checks that both descriptions of a tower in an older file are the same.

    Older files describe a tower twice, also as `KEY_dict`, which transformers prefers.

    Raises:
      UserError: the two are not the same.
    """
    group, older = fields.group(key).values, fields.group(f"{key}_dict").values
    for name, value in older.items():
        if name not in EVERYWHERE and group.get(name, value) != value:
            raise UserError(
                f"{fields.where}: {key}.{name}={group[name]!r:.60} and {key}_dict.{name}="
                f"{value!r:.60} are not the same: take {key}_dict out if it means nothing"
            )


def from_hugging_face(values: Mapping[str, Any], where: str = "config.json") -> CLIPConfig:
    """Reads the architecture of a model of transformers from its config.json.

    It may be a `CLIPModel`, `MetaClip2Model`, `SiglipModel` or `AlignModel`.

    Raises:
      UserError: another kind of model, a value of the wrong type, an unknown key, or a feature
        that we do not have.
    """
    fields = Fields(values, where)
    kind = fields.text("model_type", "")
    readers = {
        "clip": _read_clip,
        "metaclip_2": _read_clip,
        "siglip": _read_siglip,
        "align": _read_align,
    }
    if kind not in readers:
        raise UserError(
            f"{where}: model_type={kind!r:.60} is not supported here, only {', '.join(readers)}"
        )
    for key in ("vision_config", "text_config"):
        _check_older(fields, key)
    config = readers[kind](fields, fields.group("vision_config"), fields.group("text_config"))
    fields.finish(
        _UNREAD
        | {
            f"{key}_dict": tuple(fields.group(f"{key}_dict").values)
            for key in ("vision_config", "text_config")
        }
    )
    return config


def activation_of(fields: Fields, default: str) -> str:
    """Returns the activation of a tower."""
    name = fields.text("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise UserError(
            f"{fields.where}: hidden_act={name!r:.60} is not supported here, only "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _activations(vision: Fields, text: Fields, default: str) -> tuple[str, JsonObject]:
    """Returns the activation of a model, that of its texts, and the image tower's if it differs."""
    image, words = activation_of(vision, default), activation_of(text, default)
    return words, {} if image == words else {"activation": image}


def shape_of(fields: Fields, width: int, layers: int, heads: int, hidden: int) -> JsonObject:
    """Returns the sizes of a tower's blocks; the other arguments are their defaults."""
    width = fields.integer("hidden_size", width)
    return dict(
        width=width,
        layers=fields.integer("num_hidden_layers", layers),
        heads=fields.integer("num_attention_heads", heads),
        mlp_ratio=fields.integer("intermediate_size", hidden) / width,
    )


def _read_clip(fields: Fields, vision: Fields, text: Fields) -> CLIPConfig:
    vision.only("num_channels", 3)
    vocab_size = text.integer("vocab_size", 49408)
    image_size, patch_size = vision.image_size(224), vision.integer("patch_size", 32)
    activation, own = _activations(vision, text, "quick_gelu")
    return CLIPConfig(
        fields.integer("projection_dim", 512),
        activation,
        temperature=_temperature(fields, 2.6592),
        vision=VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            ragged=image_size % patch_size > 0,
            eps=vision.eps("layer_norm_eps", 1e-5),
            **own,
            **shape_of(vision, 768, 12, 12, 3072),
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            context_length=text.integer("max_position_embeddings", 77),
            eps=text.eps("layer_norm_eps", 1e-5),
            **_pool(fields, text, vocab_size),
            **shape_of(text, 512, 12, 8, 2048),
        ),
    )


def _pool(fields: Fields, text: Fields, vocab_size: int) -> JsonObject:
    """Returns which token of a text is read out.

    A `CLIPModel` reads the largest id if `eos_token_id` is 2, as older files have it, else this id.
    A `MetaClip2Model` always reads this id.
    """
    eos_id = text.integer("eos_token_id", 49407, least=0)
    older = eos_id == 2 and fields.text("model_type", "") == "clip"
    if older or eos_id == vocab_size - 1:
        return {}
    if eos_id >= vocab_size:
        raise UserError(
            f"{text.where}: eos_token_id={eos_id} must be below vocab_size={vocab_size}"
        )
    return {"pool": "eos", "eos_id": eos_id}


def _temperature(fields: Fields, default: float) -> float:
    """Returns the temperature of a `logit_scale_init_value`; 0.07 for the usual rounded value."""
    value = fields.number("logit_scale_init_value", default)
    return 0.07 if abs(value - math.log(1 / 0.07)) < 1e-3 else math.exp(-min(max(value, -50), 50))


def _read_siglip(fields: Fields, vision: Fields, text: Fields) -> CLIPConfig:
    vision.only("num_channels", 3)
    vision.only("vision_use_head", True)
    shape = shape_of(vision, 768, 12, 12, 3072)
    text.only("projection_size", shape["width"])
    activation, own = _activations(vision, text, "gelu_pytorch_tanh")
    return siglip(
        activation,
        dict(
            image_size=vision.image_size(224),
            patch_size=vision.integer("patch_size", 16),
            eps=vision.eps("layer_norm_eps", 1e-6),
            **own,
            **shape,
        ),
        dict(
            vocab_size=text.integer("vocab_size", 32000),
            context_length=text.integer("max_position_embeddings", 64),
            eps=text.eps("layer_norm_eps", 1e-6),
            **shape_of(text, 768, 12, 12, 3072),
        ),
    )


_STAGES = {
    "kernel_sizes": 0,
    "strides": 1,
    "expand_ratios": 2,
    "in_channels": 3,
    "out_channels": 4,
    "num_block_repeats": 5,
}


def _read_align(fields: Fields, vision: Fields, text: Fields) -> CLIPConfig:
    vision.only("num_channels", 3)
    vision.only("hidden_act", "swish", "silu")
    vision.only("pooling_type", "mean")
    usual = EfficientNetConfig()
    columns = {
        key: vision.integers(key, tuple(stage[i] for stage in usual.stages))
        for key, i in _STAGES.items()
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise UserError(f"{vision.where}: {', '.join(columns)} must be of one length")
    image = EfficientNetConfig(
        image_size=vision.image_size(600),
        width=vision.number("width_coefficient", 2.0, 0.01, 100),
        depth=vision.number("depth_coefficient", 3.1, 0.01, 100),
        divisor=vision.integer("depth_divisor", 8),
        stages=tuple(zip(*columns.values(), strict=True)),
        symmetric=vision.integers("depthwise_padding", (), least=0),
        squeeze=vision.number("squeeze_expansion_ratio", 0.25, 1e-6, 100),
        eps=vision.eps("batch_norm_eps", 1e-3),
    )
    return CLIPConfig(
        fields.integer("projection_dim", 640),
        activation_of(text, "gelu"),
        temperature=fields.number("temperature_init_value", 1.0, 1e-6),
        log_scale=False,
        max_logit_scale=0.0,
        vision=image,
        text=BertConfig(
            context_length=min(64, text.integer("max_position_embeddings", 512)),
            **bert_fields(text),
        ),
    )


def bert_fields(fields: Fields, vocab_size: int = 30522, pad_id: int = 0) -> JsonObject:
    """Returns the fields of a `BertConfig` that transformers' config of a BERT states.

    The other arguments are defaults of the library.
    """
    fields.only("position_embedding_type", "absolute")
    return dict(
        vocab_size=fields.integer("vocab_size", vocab_size),
        positions=fields.integer("max_position_embeddings", 512),
        token_types=fields.integer("type_vocab_size", 2),
        pad_id=fields.integer("pad_token_id", pad_id, least=0),
        eps=fields.eps("layer_norm_eps", 1e-12),
        **shape_of(fields, 768, 12, 12, 3072),
    )


def to_hugging_face(config: CLIPConfig) -> JsonObject:
    """Returns the config.json of a model for transformers; see `param_mapping.leaves`."""
    match config:
        case CLIPConfig(vision=EfficientNetConfig() as image, text=BertConfig() as bert):
            return _write_align(config, image, bert, _name_of(config.activation))
        case CLIPConfig(vision=VisionConfig() as vision, text=TextConfig() as text):
            return _write_transformers(config, vision, text)
    raise UserError(
        f"transformers has no model of a {kind_of(config.vision)} and a {kind_of(config.text)}"
    )


def _name_of(activation: str) -> str:
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def _write_transformers(config: CLIPConfig, vision: VisionConfig, text: TextConfig) -> JsonObject:
    """Returns a `SiglipModel`, a `CLIPModel`, or a `MetaClip2Model` where an id ends a text."""
    siglip = vision.pool == "map"
    kind = "siglip" if siglip else "metaclip_2" if text.pool == "eos" else "clip"

    def tower(side: str, values: VisionConfig | TextConfig) -> JsonObject:
        return {
            "model_type": f"{kind}_{side}_model",
            "hidden_size": values.width,
            "intermediate_size": values.hidden_width,
            "num_hidden_layers": values.layers,
            "num_attention_heads": values.heads,
            "layer_norm_eps": values.eps,
            "hidden_act": _name_of(values.activation or config.activation),
        }

    image = {"image_size": vision.image_size, "patch_size": vision.patch_size, "num_channels": 3}
    words = {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    if siglip:
        return {
            "architectures": ["SiglipModel"],
            "model_type": kind,
            "vision_config": {**tower("vision", vision), **image},
            "text_config": {**tower("text", text), **words, "projection_size": config.embed_dim},
        }
    special = {
        "bos_token_id": text.vocab_size - 2,
        # with 2, a CLIPModel pools at the largest id, as we do
        "eos_token_id": text.eos_id if text.pool == "eos" else 2,
        "projection_dim": config.embed_dim,
    }
    return {
        "architectures": ["MetaClip2Model" if text.pool == "eos" else "CLIPModel"],
        "model_type": kind,
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": round(-math.log(config.temperature), 4),
        "vision_config": {**tower("vision", vision), **image, "projection_dim": config.embed_dim},
        "text_config": {**tower("text", text), **words, **special},
    }


def _write_align(
    config: CLIPConfig, vision: EfficientNetConfig, text: BertConfig, activation: str
) -> JsonObject:
    columns = {key: [stage[i] for stage in vision.stages] for key, i in _STAGES.items()}
    return {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "projection_dim": config.embed_dim,
        "temperature_init_value": config.temperature,
        "vision_config": {
            "model_type": "align_vision_model",
            "image_size": vision.image_size,
            "width_coefficient": vision.width,
            "depth_coefficient": vision.depth,
            "depth_divisor": vision.divisor,
            **columns,
            "depthwise_padding": list(vision.symmetric),
            "squeeze_expansion_ratio": vision.squeeze,
            "batch_norm_eps": vision.eps,
            "hidden_dim": max(2560, vision.image_size),
            "hidden_act": "swish",
        },
        "text_config": {
            "model_type": "align_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": round(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.positions,
            "type_vocab_size": text.token_types,
            "pad_token_id": text.pad_id,
            "layer_norm_eps": text.eps,
            "hidden_act": activation,
        },
    }
