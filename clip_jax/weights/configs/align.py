"""ALIGN and BERT as transformers' config.json describes them."""

from __future__ import annotations

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.model_config import BertConfig, CLIPConfig, EfficientNetConfig
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.transformers_towers import activation_of, shape_of

_STAGES = {
    "kernel_sizes": 0,
    "strides": 1,
    "expand_ratios": 2,
    "in_channels": 3,
    "out_channels": 4,
    "num_block_repeats": 5,
}


def read_align(fields: Fields, vision: Fields, text: Fields) -> CLIPConfig:
    """Returns the `AlignModel` of a config and of the configs of its towers."""
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


def write_align(
    config: CLIPConfig, vision: EfficientNetConfig, text: BertConfig, activation: str
) -> JsonObject:
    """Returns the config of an `AlignModel`; `activation` is that of the texts, in their name."""
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
