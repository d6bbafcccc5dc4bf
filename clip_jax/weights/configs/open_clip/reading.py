"""Reads the model_cfg of open_clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.architectures.coca import coca as coca_model
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.models.model_config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.open_clip import encoders
from clip_jax.weights.configs.open_clip.timm import read_timm

# Keys that do not change the model, and the values that they may have; (): absent or None.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
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
}
_POOLS = {"argmax": "end", "last": "last", "eos": "eos"}  # of a text tower: theirs → ours


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
        *("hf_pooler_type", "hf_proj_type", "pad_id", "eos_id", "final_ln_after_pool"),
    ),
}


_READS_AHEAD = (
    "{}: a CoCa with hf_model_name is not supported here: such an encoder reads a caption both "
    "ways, so that its decoder sees the words that it should predict, and open_clip's decoder "
    "has not their number, but vocab_size"
)
# Keys of towers that CoCa has beyond a CLIP.
_OF_COCA = ("attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "output_tokens")


def from_open_clip(values: Mapping[str, Any], where: str = "open_clip_config.json") -> CLIPConfig:
    """Reads the architecture of a `model_cfg`: towers of open_clip or timm, or a CoCa.

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
    unread = dict(_UNREAD)
    if isinstance(config.text, ProjectedEncoder):
        unread["text_cfg"] += encoders.UNREAD
    fields.finish(unread)
    return config


def _read_model(fields: Fields, where: str) -> CLIPConfig:
    vision, text = fields.group("vision_cfg"), fields.group("text_cfg")
    coca = fields.values.get("multimodal_cfg") is not None
    for group in (vision, text):
        for key, allowed in _NEUTRAL.items():
            if not coca or key not in (*_OF_COCA, "embed_cls"):
                group.only(key, *allowed)
    embed_dim = fields.integer("embed_dim", 512)
    named = text.values.get("hf_model_name")
    if coca:
        if named:
            raise UserError(_READS_AHEAD.format(text.where))
        return _read_coca(fields, vision, text, embed_dim)
    quick = fields.flag("quick_gelu")
    words: Any = encoders.read_encoder(text, embed_dim) if named else _read_text(text)
    activation = "quick_gelu" if quick else "gelu" if named else _gelu(text)
    if vision.values.get("timm_model_name") is not None:
        tower: Any = read_timm(vision, embed_dim)  # whose activation is timm's
    else:
        tower = _open_clip_vision(vision)
        if isinstance(tower, VisionConfig):
            own = "quick_gelu" if quick else _gelu(vision)
            tower = dataclasses.replace(tower, activation=own)
        elif _gelu(vision) != "gelu":
            raise UserError(f"{vision.where}: act_kwargs mean nothing in a ResNet")
    if getattr(tower, "activation", None) == activation:
        tower = dataclasses.replace(tower, activation="")
    options: JsonObject = {}
    if fields.values.get("init_logit_bias") is not None:  # a SigLIP
        options = dict(temperature=0.1, max_logit_scale=0.0)
        options["logit_bias"] = fields.number("init_logit_bias", 0.0)
    return CLIPConfig(embed_dim, activation, vision=tower, text=words, **options)


def _read_text(text: Fields) -> TextConfig:
    """Returns the text tower; its activation is that of the model."""
    text.only("pool_type", *_POOLS)
    pool = _POOLS[text.text("pool_type", "argmax")]
    return TextConfig(
        **_words(text),
        causal=not text.flag("no_causal_mask"),
        pool=pool,
        eos_id=text.integer("eos_id", 2, 0) if pool == "eos" else 2,
        projection=text.text("proj_type", "linear") != "none",
        projection_bias=text.flag("proj_bias"),
    )


def _read_coca(fields: Fields, vision: Fields, text: Fields, embed_dim: int) -> CLIPConfig:
    decoder = fields.group("multimodal_cfg")
    for group, wanted in (
        (vision, {"attentional_pool": (False, True), "output_tokens": (True,)}),
        (text, {"embed_cls": (True,), "output_tokens": (True,), "proj_bias": (False,)}),
        (text, {"proj_type": ("linear",)}),
        (vision, {"no_ln_pre": (False,), "ls_init_value": (), "pool_type": ("tok",)}),
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
    vision.only("pool_type", "tok", "avg")
    pooled = vision.text("pool_type", "tok") == "avg"
    patch_size = vision.integer("patch_size", 16)
    gain = vision.values.get("ls_init_value")
    return VisionConfig(
        image_size=size,
        patch_size=patch_size,
        ragged=size % patch_size > 0,
        width=width,
        layers=vision.integer("layers", 12),
        heads=width // head,
        mlp_ratio=_mlp_ratio(vision, width),
        pool="mean" if pooled else "class",
        unpooled_class=pooled,
        ln_before_pool=pooled and not vision.flag("final_ln_after_pool"),
        ln_pre=not vision.flag("no_ln_pre"),
        layer_scale=0.0 if gain is None else vision.number("ls_init_value", 0.0, 1e-12),
        eps=vision.group("norm_kwargs").eps("eps", 1e-5),
    )
