"""Registries of towers and heads: `kind` in `config.model.vision`, `.text` and `.heads.NAME`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clip_jax.registry import Registry

# The config classes, see `clip_jax.models.tower`. The first is the default.
VISION_TOWERS: Registry[type] = Registry(
    "vision tower",
    {
        "vit": "clip_jax.models.vision_configs:VisionConfig",
        "coca_vit": "clip_jax.models.coca_configs:CoCaVisionConfig",
        "resnet": "clip_jax.models.vision_configs:ResNetConfig",
        "efficientnet": "clip_jax.models.vision_configs:EfficientNetConfig",
        "convnext": "clip_jax.models.convnext_configs:ConvNeXtConfig",
        "eva": "clip_jax.models.eva_configs:EvaConfig",
        "vitamin": "clip_jax.models.vitamin_configs:ViTaminConfig",
        "fastvit": "clip_jax.models.fastvit_configs:FastViTConfig",
        "mci_vit": "clip_jax.models.mci_vit_configs:MCiViTConfig",
        "swin": "clip_jax.models.swin_configs:SwinConfig",
        "relpos_vit": "clip_jax.models.relpos_vit_configs:RelPosViTConfig",
        "naflex": "clip_jax.models.naflex_configs:NaFlexConfig",
    },
)
TEXT_TOWERS: Registry[type] = Registry(
    "text tower",
    {
        "transformer": "clip_jax.models.text_configs:TextConfig",
        "bert": "clip_jax.models.text_configs:BertConfig",
        "roberta": "clip_jax.models.encoder_configs:RobertaConfig",
        "t5": "clip_jax.models.encoder_configs:T5Config",
        "m2m": "clip_jax.models.encoder_configs:M2MConfig",
        "coca_transformer": "clip_jax.models.coca_configs:CoCaTextConfig",
    },
)

# The config classes of heads, see `clip_jax.models.head`.
HEADS: Registry[type] = Registry(
    "head",
    {
        "classifier": "clip_jax.models.classifier:ClassifierConfig",
        "decoder": "clip_jax.models.decoder:DecoderConfig",
        "masked_words": "clip_jax.models.masked_words:MaskedWordsConfig",
        "multimodal": "clip_jax.models.coca_configs:MultimodalConfig",
        "words": "clip_jax.models.words:WordsConfig",
    },
)

# The modules that our configs build, apart from them so that reading a config imports no JAX.
MODULES: Registry[Callable[..., Any]] = Registry(
    "module",
    {
        "vit": "clip_jax.models.vit:VisionTransformer",
        "coca_vit": "clip_jax.models.coca:CoCaVision",
        "resnet": "clip_jax.models.resnet:ModifiedResNet",
        "efficientnet": "clip_jax.models.efficientnet:EfficientNet",
        "convnext": "clip_jax.models.convnext:ConvNeXt",
        "eva": "clip_jax.models.eva:Eva",
        "vitamin": "clip_jax.models.vitamin:ViTamin",
        "fastvit": "clip_jax.models.fastvit:FastViT",
        "mci_vit": "clip_jax.models.mci_vit:MCiViT",
        "swin": "clip_jax.models.swin:Swin",
        "relpos_vit": "clip_jax.models.relpos_vit:RelPosViT",
        "naflex": "clip_jax.models.naflex:NaFlex",
        "transformer": "clip_jax.models.text:TextTransformer",
        "bert": "clip_jax.models.bert:BERT",
        "roberta": "clip_jax.models.bert:RoBERTa",
        "t5": "clip_jax.models.t5:T5Encoder",
        "m2m": "clip_jax.models.m2m:M2MEncoder",
        "coca_transformer": "clip_jax.models.coca:CoCaText",
        "multimodal": "clip_jax.models.multimodal:Multimodal",
    },
)


def kind_of(part: object) -> str:
    """Returns the `kind` of a tower or head: a short name, or the path of a user's class."""
    cls = type(part)
    return cls.__dict__.get("kind") or f"{cls.__module__}:{cls.__qualname__}"
