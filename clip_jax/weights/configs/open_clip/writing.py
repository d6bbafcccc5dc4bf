"""Writes the model_cfg of open_clip."""

from __future__ import annotations

import math
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.models.head import DECODER
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.models.registry import kind_of
from clip_jax.weights.configs.open_clip.encoders import write_encoder
from clip_jax.weights.configs.open_clip.timm import has_text_prefix, is_timm, write_timm

# The tokenizers of SigLIP that open_clip names, by their number of ids.
_SIGLIP_TOKENIZERS = {
    32_000: "timm/ViT-B-16-SigLIP",
    250_000: "timm/ViT-B-16-SigLIP-i18n-256",
    256_000: "timm/ViT-B-16-SigLIP2",
}
# By the id of their end: mT5's, XLM-V's.
_EOS_TOKENIZERS = {1: "google/mt5-base", 2: "facebook/xlm-v-base"}
_POOLS = {"end": "argmax", "last": "last", "eos": "eos"}  # of a text tower: ours → theirs


def to_open_clip(config: CLIPConfig) -> JsonObject:
    """Returns the `model_cfg` of a model for open_clip; see `param_mapping.leaves`.

    Raises:
      UserError: open_clip has no such model, or no name for its image tower.
    """
    match config:
        case CLIPConfig(vision=VisionConfig() as vision, text=CoCaTextConfig() as text):
            return _write_coca(config, vision, text)
        case CLIPConfig(text=TextConfig() | ProjectedEncoder()) if is_timm(config) or isinstance(
            config.vision, VisionConfig | ResNetConfig
        ):
            return _write_model(config)
    raise UserError(
        f"open_clip has no model of a {kind_of(config.vision)} and a {kind_of(config.text)}"
    )


def _write_model(config: CLIPConfig) -> JsonObject:
    text, vision = config.text, config.vision
    own = getattr(vision, "activation", "") or config.activation
    image = write_timm(config) if is_timm(config) else _write_vision(config)
    has_own = isinstance(vision, VisionConfig) and not is_timm(config)
    if has_own and own == "gelu_tanh":
        image["act_kwargs"] = {"approximate": "tanh"}
    if isinstance(text, ProjectedEncoder):  # whose activation is that of transformers
        words = write_encoder(text, config.activation)
        activation = own if has_own else config.activation
    else:
        assert isinstance(text, TextConfig)
        words = _write_text(text)
        activation = text.activation or config.activation
        if has_own and "quick_gelu" in {own, activation} and own != activation:
            raise UserError(
                f"open_clip has QuickGELU in both towers or in none; these have {own} and "
                f"{activation}"
            )
        if activation == "gelu_tanh":
            words["act_kwargs"] = {"approximate": "tanh"}
    return {
        "embed_dim": config.embed_dim,
        **({"quick_gelu": True} if activation == "quick_gelu" else {}),
        **({} if config.logit_bias is None else {"init_logit_bias": config.logit_bias}),
        **({"custom_text": True} if has_text_prefix(config) else {}),
        "vision_cfg": image,
        "text_cfg": words,
    }


def _write_text(text: TextConfig) -> JsonObject:
    """Returns the `text_cfg` of a text tower, but for its activation."""
    tokenizer: JsonObject = {}
    if text.pool == "last":
        tokenizer = {
            "hf_tokenizer_name": _SIGLIP_TOKENIZERS.get(
                text.vocab_size, _SIGLIP_TOKENIZERS[32_000]
            ),
            "tokenizer_kwargs": {"clean": "canonicalize"},
        }
        if not text.projection_bias and text.projection:  # CLIPA
            tokenizer = {
                "hf_tokenizer_name": "bert-base-uncased",
                "tokenizer_kwargs": {"strip_sep_token": True},
            }
    if text.pool == "eos":
        tokenizer = {
            "hf_tokenizer_name": _EOS_TOKENIZERS.get(text.eos_id, _EOS_TOKENIZERS[2]),
            "eos_id": text.eos_id,
        }
        if text.eos_id == 1:
            tokenizer["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return {
        **_write_words(text),
        **tokenizer,
        **({} if text.causal else {"no_causal_mask": True}),
        **({"proj_bias": True} if text.projection_bias else {}),
        **({} if text.projection else {"proj_type": "none"}),
        **({} if text.pool == "end" else {"pool_type": _POOLS[text.pool]}),
    }


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


def _write_vision(config: CLIPConfig) -> JsonObject:
    """Returns the `vision_cfg` of a tower of open_clip's own, but for its activation."""
    vision: Any = config.vision
    image: JsonObject = {"image_size": vision.image_size, "width": vision.width}
    match vision:
        case ResNetConfig():
            head = 32 * vision.width // vision.heads
            image |= {"layers": list(vision.layers), "patch_size": None}
        case _:
            head = vision.width // vision.heads
            image |= {"layers": vision.layers, "patch_size": vision.patch_size, **_ratio(vision)}
            if vision.eps != 1e-5:
                image["norm_kwargs"] = {"eps": vision.eps}
            if not vision.ln_pre:
                image["no_ln_pre"] = True
            if vision.pool == "mean":
                image |= {"pool_type": "avg"}
                if not vision.ln_before_pool:
                    image |= {"final_ln_after_pool": True}
            if vision.layer_scale:
                image["ls_init_value"] = vision.layer_scale
    if head != 64:
        image["head_width"] = head
    return image


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
    values: JsonObject = {
        "embed_dim": config.embed_dim,
        **({"quick_gelu": True} if config.activation == "quick_gelu" else {}),
        "vision_cfg": _write_vision(config),
        "text_cfg": _write_words(text),
    }
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
