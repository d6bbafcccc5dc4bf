"""Converts architectures from and to the model_cfg of open_clip."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.architectures import coca as coca_model
from clip_jax.models.architectures import siglip
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.generation import DECODER
from clip_jax.models.model_config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.models.registry import kind_of
from clip_jax.weights.configs.fields import Fields

# The vision towers of SigLIP, which timm defines by name: width, layers, heads, MLP.
_TIMM: dict[str, tuple[int, int, int, float]] = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 4304 / 1152),
}
_TIMM_SIZES = {
    ("base", 32): (256,),
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384, 512),
    ("so400m", 14): (224, 378, 384),
    ("so400m", 16): (256, 384, 512),
}
_SIGLIP_TOKENIZER = "timm/ViT-B-16-SigLIP"
_SIGLIP_TOKENIZERS = {250_000: "timm/ViT-B-16-SigLIP-i18n-256"}
# Keys that do not change the model, and the values that they may have; (): absent or None.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "ls_init_value": (),
    "attentional_pool": (False,),
    "attn_pooler_queries": (256,),
    "attn_pooler_heads": (8,),
    "pos_embed_type": ("learnable",),
    "output_tokens": (False,),
    "block_type": ("default",),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "embed_cls": (False,),
    "proj_type": ("linear",),
    "final_ln_after_pool": (False,),
    "no_ln_pre": (False,),
    "hf_model_name": (),
}


# Keys of CoCa's decoder that open_clip does not read, or not for what it builds.
_UNREAD_OF_DECODER = ("vocab_size", "dim_head", "n_queries", "attn_pooler_heads")
# Keys of a group that training, other libraries or towers of another kind read.
_UNREAD: dict[str, tuple[str, ...]] = {
    "": ("custom_text", "init_logit_scale", "output_dict", "cast_dtype"),
    "multimodal_cfg": _UNREAD_OF_DECODER,
    "vision_cfg": (
        *("patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path"),
        *("timm_proj_bias", "head_width", "patch_size", "mlp_ratio", "width", "layers"),
        *("act_kwargs", "norm_kwargs", "pool_type"),
    ),
    "text_cfg": (
        *("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "hf_model_pretrained"),
        *("hf_pooler_type", "hf_proj_type", "pad_id", "eos_id"),
    ),
}


# Keys of towers that CoCa has beyond a CLIP.
_OF_COCA = ("attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "output_tokens")


def from_open_clip(values: Mapping[str, Any], where: str = "open_clip_config.json") -> CLIPConfig:
    """Reads the architecture of a `model_cfg`: a CLIP of a ViT or a ResNet, a SigLIP or a CoCa.

    Raises:
      UserError: a value of the wrong type, an unknown key, or a feature that we do not have.
    """
    if isinstance(values.get("model_cfg"), dict):
        raise UserError(f"{where}: the architecture is inside model_cfg: give that object alone")
    fields = Fields(values, where)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if values.get(key) is None:
            raise UserError(f"{where}: {key} is missing")
    config = _read_model(fields, where)
    fields.finish(_UNREAD)
    return config


def _read_model(fields: Fields, where: str) -> CLIPConfig:
    vision, text = fields.group("vision_cfg"), fields.group("text_cfg")
    coca = fields.values.get("multimodal_cfg") is not None
    for group in (vision, text):
        for key, allowed in _NEUTRAL.items():
            if not coca or key not in (*_OF_COCA, "embed_cls"):
                group.only(key, *allowed)
    embed_dim = fields.integer("embed_dim", 512)
    if coca:
        return _read_coca(fields, vision, text, embed_dim)
    if vision.values.get("timm_model_name") is not None:
        return _read_timm(fields, vision, text, embed_dim)
    text.only("pool_type", "argmax")
    text.only("no_causal_mask", False)
    text.only("proj_bias", False)
    fields.only("init_logit_bias")
    exact = "quick_gelu" if fields.flag("quick_gelu") else "gelu"
    activations = {exact if fields.flag("quick_gelu") else _gelu(group) for group in (vision, text)}
    if len(activations) > 1:
        raise UserError(f"{where}: act_kwargs differ between vision_cfg and text_cfg")
    return CLIPConfig(
        embed_dim,
        activations.pop(),
        vision=_open_clip_vision(vision),
        text=TextConfig(**_words(text)),
    )


def _read_coca(fields: Fields, vision: Fields, text: Fields, embed_dim: int) -> CLIPConfig:
    decoder = fields.group("multimodal_cfg")
    for group, wanted in (
        (vision, {"attentional_pool": (False, True), "output_tokens": (True,)}),
        (text, {"embed_cls": (True,), "output_tokens": (True,), "proj_bias": (False,)}),
        (text, {"no_causal_mask": (False,), "pool_type": ("argmax",)}),
        (decoder, {"mlp_ratio": (4,), "ls_init_value": ()}),
    ):
        for key, allowed in wanted.items():
            group.only(key, *allowed)
    for group, key in ((vision, "output_tokens"), (text, "output_tokens"), (text, "embed_cls")):
        if not group.flag(key):
            raise UserError(f"{group.where}: {key} must be true in a CoCa")
    if _gelu(vision) != "gelu" or _gelu(text) != "gelu":
        raise UserError(f"{fields.where}: act_kwargs are not supported in a CoCa")
    tower = _open_clip_vision(vision)
    if not isinstance(tower, VisionConfig):
        raise UserError(f"{vision.where}: a CoCa of a ResNet is not supported here")
    if vision.flag("attentional_pool"):
        tower = CoCaVisionConfig(
            **dataclasses.asdict(tower),
            pool_queries=vision.integer("attn_pooler_queries", 256),
            pool_width=embed_dim,
            pool_heads=vision.integer("attn_pooler_heads", 8),
        )
    words = {**_words(text), "pad_id": text.integer("pad_id", 0, 0)}
    fields.only("pad_id", words["pad_id"])
    if decoder.integer("context_length", 77) < words["context_length"]:
        raise UserError(f"{decoder.where}: context_length is below that of text_cfg")
    bias = fields.values.get("init_logit_bias")
    return coca_model(
        embed_dim,
        tower,
        CoCaTextConfig(**words),
        MultimodalConfig(
            width=decoder.integer("width", 512),
            layers=decoder.integer("layers", 12),
            heads=decoder.integer("heads", 8),
        ),
        activation="quick_gelu" if fields.flag("quick_gelu") else "gelu",
        logit_bias=None if bias is None else fields.number("init_logit_bias", 0.0),
    )


def _gelu(fields: Fields) -> str:
    options = fields.group("act_kwargs")
    options.only("approximate", "none", "tanh")
    return "gelu_tanh" if options.values.get("approximate") == "tanh" else "gelu"


def _words(text: Fields) -> JsonObject:
    """Returns the sizes of a text tower."""
    return dict(
        vocab_size=text.integer("vocab_size", 49408),
        context_length=text.integer("context_length", 77),
        width=text.integer("width", 512),
        layers=text.integer("layers", 12),
        heads=text.integer("heads", 8),
        mlp_ratio=_mlp_ratio(text, text.integer("width", 512)),
        eps=text.group("norm_kwargs").eps("eps", 1e-5),
    )


def _mlp_ratio(fields: Fields, width: int) -> float:
    """Returns the ratio that gives the hidden width of open_clip, which rounds down."""
    hidden = int(width * fields.number("mlp_ratio", 4.0, 0, 1000))
    return max(1, hidden) / width


def _open_clip_vision(vision: Fields) -> VisionConfig | ResNetConfig:
    width, head = vision.integer("width", 768), vision.integer("head_width", 64)
    size = vision.image_size(224)
    if isinstance(vision.values.get("layers"), (list, tuple)):
        return ResNetConfig(size, width, vision.integers("layers", ()), width * 32 // head)
    vision.only("pool_type", "tok")
    patch_size = vision.integer("patch_size", 16)
    return VisionConfig(
        image_size=size,
        patch_size=patch_size,
        ragged=size % patch_size > 0,
        width=width,
        layers=vision.integer("layers", 12),
        heads=width // head,
        mlp_ratio=_mlp_ratio(vision, width),
        eps=vision.group("norm_kwargs").eps("eps", 1e-5),
    )


def _read_timm(fields: Fields, vision: Fields, text: Fields, embed_dim: int) -> CLIPConfig:
    name = vision.text("timm_model_name", "")
    match = re.fullmatch(r"vit_(base|large|so400m)_patch(\d{1,3})_siglip_(\d{1,4})", name)
    if not match:
        raise UserError(
            f"{vision.where}: timm_model_name={name!r:.60} is not supported here, only the "
            "vision towers of SigLIP"
        )
    vision.only("timm_pool", "map")
    vision.only("timm_proj", "none")
    text.only("pool_type", "last")
    text.only("no_causal_mask", True)
    if _gelu(text) != "gelu":
        raise UserError(
            f"{fields.where}: text_cfg.act_kwargs is not supported here: the vision tower's GELU "
            "is exact, and both must be the same"
        )
    width, layers, heads, mlp_ratio = _TIMM[match[1]]
    image = dict(
        image_size=vision.image_size(int(match[3])),
        patch_size=int(match[2]),
        width=width,
        layers=layers,
        heads=heads,
        mlp_ratio=mlp_ratio,
        eps=1e-6,
    )
    words = {**_words(text), "projection_bias": text.flag("proj_bias")}
    bias = fields.number("init_logit_bias", -10.0)
    return siglip("gelu", image, words, embed_dim=embed_dim, logit_bias=bias)


def to_open_clip(config: CLIPConfig) -> JsonObject:
    """Returns the `model_cfg` of a model for open_clip; see `param_mapping.leaves`.

    Raises:
      UserError: a SigLIP whose vision tower or activation open_clip has no name for.
    """
    match config:
        case CLIPConfig(vision=VisionConfig() as vision, text=CoCaTextConfig() as text):
            return _write_coca(config, vision, text)
        case CLIPConfig(vision=VisionConfig(pool="map") as vision, text=TextConfig() as text):
            return _write_siglip(config, vision, text)
        case CLIPConfig(
            vision=VisionConfig() | ResNetConfig() as vision, text=TextConfig() as text
        ):
            return _write_clip(config, vision, text)
    raise UserError(
        f"open_clip has no model of a {kind_of(config.vision)} and a {kind_of(config.text)}"
    )


def _write_words(text: TextConfig) -> JsonObject:
    """Returns the sizes of a text tower."""
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_ratio(text),
        **({"norm_kwargs": {"eps": text.eps}} if text.eps != 1e-5 else {}),
    }


def _write_siglip(config: CLIPConfig, vision: VisionConfig, text: TextConfig) -> JsonObject:
    if config.activation != "gelu":
        raise UserError(
            f"open_clip's SigLIP computes the exact GELU, this model {config.activation}: "
            "write it for hugging_face, or accept that with --activation gelu"
        )
    return {
        "embed_dim": config.embed_dim,
        "init_logit_bias": config.logit_bias,
        "custom_text": True,
        "vision_cfg": _write_timm(vision),
        "text_cfg": {
            **_write_words(text),
            "hf_tokenizer_name": _SIGLIP_TOKENIZERS.get(text.vocab_size, _SIGLIP_TOKENIZER),
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": text.projection_bias,
            "pool_type": "last",
        },
    }


def _write_clip(
    config: CLIPConfig, vision: VisionConfig | ResNetConfig, text: TextConfig
) -> JsonObject:
    image: JsonObject = {"image_size": vision.image_size, "width": vision.width}
    words = _write_words(text)
    match vision:
        case ResNetConfig():
            head = 32 * vision.width // vision.heads
            image |= {"layers": list(vision.layers), "patch_size": None}
        case VisionConfig():
            head = vision.width // vision.heads
            image |= {"layers": vision.layers, "patch_size": vision.patch_size, **_ratio(vision)}
            if vision.eps != 1e-5:
                image["norm_kwargs"] = {"eps": vision.eps}
    if head != 64:
        image["head_width"] = head
    if config.activation == "gelu_tanh":
        tanh = {"act_kwargs": {"approximate": "tanh"}}
        image, words = {**image, **tanh}, {**words, **tanh}
    return {
        "embed_dim": config.embed_dim,
        **({"quick_gelu": True} if config.activation == "quick_gelu" else {}),
        "vision_cfg": image,
        "text_cfg": words,
    }


def _write_coca(config: CLIPConfig, vision: VisionConfig, text: CoCaTextConfig) -> JsonObject:
    decoder = config.head(DECODER)
    if not isinstance(decoder, MultimodalConfig):
        raise UserError("open_clip has no model of these towers without their decoder")
    if config.activation == "gelu_tanh" or (decoder.mlp_ratio, decoder.eps) != (4.0, 1e-5):
        raise UserError(
            "open_clip's decoder of CoCa has activation=gelu or quick_gelu, mlp_ratio=4 and "
            f"eps=1e-5: this one has {config.activation}, {decoder.mlp_ratio:g} and "
            f"{decoder.eps:g}"
        )
    values = _write_clip(config, vision, text)
    if isinstance(vision, CoCaVisionConfig):
        values["vision_cfg"] |= {
            "attentional_pool": True,
            "attn_pooler_queries": vision.pool_queries,
            "attn_pooler_heads": vision.pool_heads,
        }
    values["vision_cfg"] |= {"output_tokens": True}
    values["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
    if text.pad_id:
        values["text_cfg"]["pad_id"] = values["pad_id"] = text.pad_id
    if config.logit_bias is not None:
        values["init_logit_bias"] = config.logit_bias
    return values | {
        "multimodal_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": decoder.width,
            "heads": decoder.heads,
            "layers": decoder.layers,
        },
        "custom_text": True,
    }


def _ratio(tower: VisionConfig | TextConfig) -> dict[str, float]:
    """Returns a ratio that, times the width and rounded down, is the hidden width."""
    hidden = round(tower.width * tower.mlp_ratio)
    if hidden == 4 * tower.width:
        return {}
    short = math.ceil(hidden / tower.width * 1e4) / 1e4
    exact = short if int(tower.width * short) == hidden else (hidden + 0.5) / tower.width
    return {"mlp_ratio": exact}


def _write_timm(vision: VisionConfig) -> JsonObject:
    shape = (vision.width, vision.layers, vision.heads, vision.mlp_ratio)
    name = next((n for n, known in _TIMM.items() if known == shape), None)
    sizes = _TIMM_SIZES.get((name or "", vision.patch_size), ())
    if vision.image_size not in sizes:
        raise UserError(
            f"open_clip has no SigLIP with a vision tower of {vision.layers} × {vision.width}, "
            f"patches of {vision.patch_size} and {vision.image_size} pixels: write it for "
            "hugging_face"
        )
    return {
        "image_size": vision.image_size,
        "timm_model_name": f"vit_{name}_patch{vision.patch_size}_siglip_{vision.image_size}",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
