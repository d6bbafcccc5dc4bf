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
from clip_jax.models.naflex_configs import NaFlexConfig
from clip_jax.models.registry import kind_of
from clip_jax.weights.configs.align import read_align, write_align
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.transformers_towers import (
    EVERYWHERE,
    activation_name,
    activation_of,
    shape_of,
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

    It may be a `CLIPModel`, `MetaClip2Model`, `SiglipModel`, `Siglip2Model` or `AlignModel`.

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
        "siglip2": _read_siglip,
        "align": read_align,
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


def _activations(vision: Fields, text: Fields, default: str) -> tuple[str, JsonObject]:
    """Returns the activation of a model, that of its texts, and the image tower's if it differs."""
    image, words = activation_of(vision, default), activation_of(text, default)
    return words, {} if image == words else {"activation": image}


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
    image = dict(
        patch_size=vision.integer("patch_size", 16),
        eps=vision.eps("layer_norm_eps", 1e-6),
        **own,
        **shape,
    )
    if fields.text("model_type", "") == "siglip2":
        image["positions"] = _side(vision)
    else:
        image["image_size"] = vision.image_size(224)
    return siglip(
        activation,
        image,
        dict(
            vocab_size=text.integer("vocab_size", 32000),
            context_length=text.integer("max_position_embeddings", 64),
            eps=text.eps("layer_norm_eps", 1e-6),
            **shape_of(text, 768, 12, 12, 3072),
        ),
    )


def _side(vision: Fields) -> int:
    """Returns the side of a `Siglip2Model`'s square table of positions."""
    places = vision.integer("num_patches", 256)
    if math.isqrt(places) ** 2 != places:
        raise UserError(f"{vision.where}: num_patches={places} must be a square number")
    return math.isqrt(places)


def to_hugging_face(config: CLIPConfig) -> JsonObject:
    """Returns the config.json of a model for transformers; see `param_mapping.leaves`."""
    match config:
        case CLIPConfig(vision=EfficientNetConfig() as image, text=BertConfig() as bert):
            return write_align(config, image, bert, activation_name(config.activation))
        case CLIPConfig(
            vision=VisionConfig() | NaFlexConfig() as vision, text=TextConfig() as text
        ):
            return _write_transformers(config, vision, text)
    raise UserError(
        f"transformers has no model of a {kind_of(config.vision)} and a {kind_of(config.text)}"
    )


def _write_transformers(
    config: CLIPConfig, vision: VisionConfig | NaFlexConfig, text: TextConfig
) -> JsonObject:
    """Returns a SigLIP of either kind, a `CLIPModel`, or a `MetaClip2Model`.

    The last is for texts that an id ends.
    """
    image = {"patch_size": vision.patch_size, "num_channels": 3}
    if isinstance(vision, NaFlexConfig):
        kind = "siglip2"
        image["num_patches"] = vision.positions**2
    else:
        others = "metaclip_2" if text.pool == "eos" else "clip"
        kind = "siglip" if vision.pool == "map" else others
        image["image_size"] = vision.image_size

    def tower(side: str, values: VisionConfig | NaFlexConfig | TextConfig) -> JsonObject:
        return {
            "model_type": f"{kind}_{side}_model",
            "hidden_size": values.width,
            "intermediate_size": values.hidden_width,
            "num_hidden_layers": values.layers,
            "num_attention_heads": values.heads,
            "layer_norm_eps": values.eps,
            "hidden_act": activation_name(values.activation or config.activation),
        }

    words = {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    if kind in ("siglip", "siglip2"):
        return {
            "architectures": [f"{kind.capitalize()}Model"],
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
