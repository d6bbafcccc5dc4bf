"""Architectures as open_clip and transformers write them in JSON, to ours and back.

Such a file is a stranger's: every value is checked for its type and size, and what we have no
module for is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.zoo import (
    MEAN,
    STD,
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ImageTowerConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)

MAX_INTEGER = 1 << 24
MAX_NUMBER = 1e6

# Theirs → ours; the first of a value's keys is what is written.
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


class Fields:
    """The values of a JSON object by key, each checked; `where` is what messages call it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def _bad(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.where}: {key}={self.values.get(key)!r:.60} must be {wanted}")

    def group(self, key: str) -> Fields:
        """The object under `key`; an empty one where there is none."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self._bad(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def integer(self, key: str, default: int, least: int = 1) -> int:
        """A whole number in [least, 2**24]."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= MAX_INTEGER:
            raise self._bad(key, f"a whole number from {least} to {MAX_INTEGER}")
        return value

    def number(
        self, key: str, default: float, least: float = -MAX_NUMBER, most: float = MAX_NUMBER
    ) -> float:
        """A number in [least, most]."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._bad(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def eps(self, key: str, default: float) -> float:
        """What keeps a norm from dividing by zero."""
        return self.number(key, default, 0, 1)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self._bad(key, "a text")
        return value

    def integers(self, key: str, default: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
        """A list of at most 256 whole numbers."""
        value = self.values.get(key)
        value = default if value is None else value
        if (
            not isinstance(value, (list, tuple))
            or len(value) > 256
            or any(type(n) is not int or not least <= n <= MAX_INTEGER for n in value)
        ):
            raise self._bad(key, f"a list of whole numbers, {least} or more")
        return tuple(value)

    def only(self, key: str, *wanted: Any) -> None:
        """Nothing but what we have: refuses any value of `key` that is not among `wanted`."""
        value = self.values.get(key)
        if value is not None and value not in wanted:
            raise UserError(
                f"{self.where}: {key}={value!r:.60} is not supported here, only "
                f"{' or '.join(map(repr, wanted)) or 'its absence'}"
            )


# Hugging Face transformers.


def from_hugging_face(values: Mapping[str, Any], where: str = "config.json") -> CLIPConfig:
    """The architecture of a `CLIPModel`, `SiglipModel` or `AlignModel` from its config.json.

    Raises:
      UserError: another kind of model, a value of the wrong type, or something we do not have.
    """
    fields = Fields(values, where)
    kind = fields.text("model_type", "")
    readers = {"clip": _read_clip, "siglip": _read_siglip, "align": _read_align}
    if kind not in readers:
        raise UserError(
            f"{where}: model_type={kind!r:.60} is not supported here, only {', '.join(readers)}"
        )
    return readers[kind](fields, fields.group("vision_config"), fields.group("text_config"))


def _activation(*towers: tuple[Fields, str]) -> str:
    """The one activation of all towers."""
    names = {fields.text("hidden_act", default): fields.where for fields, default in towers}
    for name, where in names.items():
        if name not in _ACTIVATIONS:
            raise UserError(
                f"{where}: hidden_act={name!r:.60} is not supported here, only "
                f"{', '.join(_ACTIVATIONS)}"
            )
    if len({_ACTIVATIONS[name] for name in names}) > 1:
        raise UserError(
            f"{towers[0][0].where}: hidden_act differs between its towers: {', '.join(names)}"
        )
    return _ACTIVATIONS[name]


def _shape(fields: Fields, width: int, layers: int, heads: int, hidden: int) -> dict[str, Any]:
    width = fields.integer("hidden_size", width)
    return dict(
        width=width,
        layers=fields.integer("num_hidden_layers", layers),
        heads=fields.integer("num_attention_heads", heads),
        mlp_ratio=fields.integer("intermediate_size", hidden) / width,
    )


def _image_size(fields: Fields, default: int) -> int:
    value = fields.values.get("image_size")
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        return Fields({"image_size": value[0]}, fields.where).integer("image_size", default)
    return fields.integer("image_size", default)


def _read_clip(fields: Fields, vision: Fields, text: Fields) -> CLIPConfig:
    vision.only("num_channels", 3)
    vocab_size = text.integer("vocab_size", 49408)
    # transformers looks for the largest id where this is 2, else for this id; we for the largest
    text.only("eos_token_id", 2, vocab_size - 1)
    if "eos_token_id" not in text.values and vocab_size != 49408:
        raise UserError(f"{text.where}: eos_token_id must be the last of vocab_size={vocab_size}")
    image_size, patch_size = _image_size(vision, 224), vision.integer("patch_size", 32)
    return CLIPConfig(
        fields.integer("projection_dim", 512),
        _activation((vision, "quick_gelu"), (text, "quick_gelu")),
        temperature=_temperature(fields, 2.6592),
        vision=VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            ragged=image_size % patch_size > 0,
            eps=vision.eps("layer_norm_eps", 1e-5),
            **_shape(vision, 768, 12, 12, 3072),
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            context_length=text.integer("max_position_embeddings", 77),
            eps=text.eps("layer_norm_eps", 1e-5),
            **_shape(text, 512, 12, 8, 2048),
        ),
    )


def _temperature(fields: Fields, default: float) -> float:
    """What a `logit_scale_init_value` means; ours where it is the rounded usual."""
    value = fields.number("logit_scale_init_value", default)
    return 0.07 if abs(value - math.log(1 / 0.07)) < 1e-3 else math.exp(-min(max(value, -50), 50))


def _read_siglip(fields: Fields, vision: Fields, text: Fields) -> CLIPConfig:
    vision.only("num_channels", 3)
    vision.only("vision_use_head", True)
    image_size, patch_size = _image_size(vision, 224), vision.integer("patch_size", 16)
    image = VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        pool="map",
        ln_pre=False,
        patch_bias=True,
        projection=False,
        ragged=image_size % patch_size > 0,
        eps=vision.eps("layer_norm_eps", 1e-6),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        **_shape(vision, 768, 12, 12, 3072),
    )
    text.only("projection_size", image.width)
    return CLIPConfig(
        image.width,
        _activation((vision, "gelu_pytorch_tanh"), (text, "gelu_pytorch_tanh")),
        temperature=0.1,
        max_logit_scale=0.0,
        logit_bias=-10.0,
        vision=image,
        text=TextConfig(
            vocab_size=text.integer("vocab_size", 32000),
            context_length=text.integer("max_position_embeddings", 64),
            causal=False,
            pool="last",
            projection_bias=True,
            eps=text.eps("layer_norm_eps", 1e-6),
            **_shape(text, 768, 12, 12, 3072),
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
        image_size=_image_size(vision, 600),
        width=vision.number("width_coefficient", 2.0, 0.01, 100),
        depth=vision.number("depth_coefficient", 3.1, 0.01, 100),
        divisor=vision.integer("depth_divisor", 8),
        stages=tuple(zip(*columns.values(), strict=True)),
        symmetric=vision.integers("depthwise_padding", (), least=0),
        squeeze=vision.number("squeeze_expansion_ratio", 0.25, 0, 100),
        eps=vision.eps("batch_norm_eps", 1e-3),
    )
    return CLIPConfig(
        fields.integer("projection_dim", 640),
        _activation((text, "gelu")),
        temperature=fields.number("temperature_init_value", 1.0, 1e-6),
        log_scale=False,
        max_logit_scale=0.0,
        vision=image,
        text=BertConfig(
            vocab_size=text.integer("vocab_size", 30522),
            context_length=min(64, text.integer("max_position_embeddings", 512)),
            positions=text.integer("max_position_embeddings", 512),
            token_types=text.integer("type_vocab_size", 2),
            pad_id=text.integer("pad_token_id", 0, least=0),
            eps=text.eps("layer_norm_eps", 1e-12),
            **_shape(text, 768, 12, 12, 3072),
        ),
    )


def to_hugging_face(config: CLIPConfig) -> dict[str, Any]:
    """The config.json that transformers reads a model of ours from; see `names.leaves`."""
    vision, text = config.vision, config.text
    activation = next(k for k, v in _ACTIVATIONS.items() if v == config.activation)
    if isinstance(vision, EfficientNetConfig) and isinstance(text, BertConfig):
        return _write_align(config, vision, text, activation)
    assert isinstance(vision, VisionConfig) and isinstance(text, TextConfig)
    siglip = vision.pool == "map"
    kind = "siglip" if siglip else "clip"

    def tower(side: str, values: VisionConfig | TextConfig) -> dict[str, Any]:
        return {
            "model_type": f"{kind}_{side}_model",
            "hidden_size": values.width,
            "intermediate_size": round(values.width * values.mlp_ratio),
            "num_hidden_layers": values.layers,
            "num_attention_heads": values.heads,
            "layer_norm_eps": values.eps,
            "hidden_act": activation,
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
        "eos_token_id": 2,  # what has transformers read texts out at their largest id, as we do
        "projection_dim": config.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": kind,
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": round(-math.log(config.temperature), 4),
        "vision_config": {**tower("vision", vision), **image, "projection_dim": config.embed_dim},
        "text_config": {**tower("text", text), **words, **special},
    }


def _write_align(
    config: CLIPConfig, vision: EfficientNetConfig, text: BertConfig, activation: str
) -> dict[str, Any]:
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


# open_clip.

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
# What may stand in a config without changing the model, or only as given.
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


def from_open_clip(values: Mapping[str, Any], where: str = "open_clip_config.json") -> CLIPConfig:
    """The architecture of a `model_cfg`: a CLIP of a ViT or a ResNet, or a SigLIP.

    Raises:
      UserError: a value of the wrong type, or something we do not have.
    """
    fields = Fields(values, where)
    vision, text = fields.group("vision_cfg"), fields.group("text_cfg")
    for group in (vision, text):
        for key, allowed in _NEUTRAL.items():
            group.only(key, *allowed)
    embed_dim = fields.integer("embed_dim", 512)
    if vision.values.get("timm_model_name") is not None:
        return _read_timm(fields, vision, text, embed_dim)
    text.only("pool_type", "argmax")
    text.only("no_causal_mask", False)
    text.only("proj_bias", False)
    fields.only("init_logit_bias")
    exact = "quick_gelu" if fields.flag("quick_gelu") else "gelu"
    found = {exact if fields.flag("quick_gelu") else _gelu(group) for group in (vision, text)}
    if len(found) > 1:
        raise UserError(f"{where}: act_kwargs differ between vision_cfg and text_cfg")
    return CLIPConfig(
        embed_dim, found.pop(), vision=_open_clip_vision(vision), text=_open_clip_text(text)
    )


def _gelu(fields: Fields) -> str:
    options = fields.group("act_kwargs")
    options.only("approximate", "none", "tanh")
    return "gelu_tanh" if options.values.get("approximate") == "tanh" else "gelu"


def _open_clip_text(text: Fields, **special: Any) -> TextConfig:
    return TextConfig(
        vocab_size=text.integer("vocab_size", 49408),
        context_length=text.integer("context_length", 77),
        width=text.integer("width", 512),
        layers=text.integer("layers", 12),
        heads=text.integer("heads", 8),
        mlp_ratio=_mlp_ratio(text, text.integer("width", 512)),
        eps=text.group("norm_kwargs").eps("eps", 1e-5),
        **special,
    )


def _mlp_ratio(fields: Fields, width: int) -> float:
    """The hidden width of open_clip is rounded down."""
    hidden = int(width * fields.number("mlp_ratio", 4.0, 0, 1000))
    return max(1, hidden) / width


def _open_clip_vision(vision: Fields) -> ImageTowerConfig:
    width, head = vision.integer("width", 768), vision.integer("head_width", 64)
    size = _image_size(vision, 224)
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
    image_size, patch_size = _image_size(vision, int(match[3])), int(match[2])
    return CLIPConfig(
        embed_dim,
        "gelu",
        temperature=0.1,
        max_logit_scale=0.0,
        logit_bias=fields.number("init_logit_bias", -10.0),
        vision=VisionConfig(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_ratio=mlp_ratio,
            pool="map",
            ln_pre=False,
            patch_bias=True,
            projection=False,
            ragged=image_size % patch_size > 0,
            eps=1e-6,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        text=_open_clip_text(
            text, causal=False, pool="last", projection_bias=text.flag("proj_bias")
        ),
    )


def to_open_clip(config: CLIPConfig) -> dict[str, Any]:
    """The `model_cfg` that open_clip reads a model of ours from; see `names.leaves`.

    Raises:
      UserError: a SigLIP whose vision tower or activation open_clip has no name for.
    """
    vision, text = config.vision, config.text
    assert isinstance(text, TextConfig) and not isinstance(vision, EfficientNetConfig)
    words: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_ratio(text),
        **({"norm_kwargs": {"eps": text.eps}} if text.eps != 1e-5 else {}),
    }
    if isinstance(vision, VisionConfig) and vision.pool == "map":
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
                **words,
                "hf_tokenizer_name": _SIGLIP_TOKENIZERS.get(text.vocab_size, _SIGLIP_TOKENIZER),
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "no_causal_mask": True,
                "proj_bias": text.projection_bias,
                "pool_type": "last",
            },
        }
    image: dict[str, Any] = {"image_size": vision.image_size, "width": vision.width}
    if isinstance(vision, ResNetConfig):
        head = 32 * vision.width // vision.heads
        image |= {"layers": list(vision.layers), "patch_size": None}
    else:
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


def _ratio(tower: VisionConfig | TextConfig) -> dict[str, float]:
    """A ratio that, times the width and rounded down, is the hidden width."""
    hidden = round(tower.width * tower.mlp_ratio)
    if hidden == 4 * tower.width:
        return {}
    short = math.ceil(hidden / tower.width * 1e4) / 1e4
    exact = short if int(tower.width * short) == hidden else (hidden + 0.5) / tower.width
    return {"mlp_ratio": exact}


def _write_timm(vision: VisionConfig) -> dict[str, Any]:
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


def with_normalization(
    config: CLIPConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> CLIPConfig:
    """The same model with other constants that its images are normalised by."""
    return dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, mean=mean, std=std)
    )


# What a library computes with.


def essence(config: CLIPConfig) -> dict[str, Any]:
    """All of an architecture that features depend on, as nested dictionaries.

    Not where training starts, what only training does, and how long the rows of a BERT are.
    """
    values = config.to_dict()
    del values["temperature"], values["max_logit_scale"]
    values["logit_bias"] = config.logit_bias is not None
    for tower in (values["vision"], values["text"]):
        for key in ("patch_dropout", "momentum"):
            tower.pop(key, None)
        if "mlp_ratio" in tower:  # which means a whole number
            tower["mlp_ratio"] = round(tower["width"] * tower["mlp_ratio"]) / tower["width"]
    if isinstance(config.text, BertConfig):
        del values["text"]["context_length"]
    return values


def as_openai(config: CLIPConfig) -> dict[str, Any]:
    """The `essence` of what OpenAI's code, which sees the shapes alone, takes a model for."""
    values = essence(config)
    vision, text = values["vision"], values["text"]
    values["activation"] = "quick_gelu"
    vision |= dict(heads=max(1, vision["width"] // 64), eps=1e-5, mean=MEAN, std=STD)
    if isinstance(config.vision, ResNetConfig):
        vision["heads"] = max(1, vision["width"] // 2)
    else:
        vision |= dict(mlp_ratio=4.0, ragged=False)
    text |= dict(heads=max(1, text["width"] // 64), mlp_ratio=4.0, eps=1e-5)
    return values


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Where two nested dictionaries differ: the key, such as `vision.eps`, and both values."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
