"""The names in the files of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.weights.mappings.leaf import (
    Leaf,
    batch_norm,
    blocks,
    in_projection,
    is_plain,
    linear,
    norm,
    one,
    unsupported,
)


def hugging_face(config: CLIPConfig) -> Iterator[Leaf]:
    """The table for a model in the files of transformers.

    Raises:
      UserError: it has no such model.
    """
    vision, text = config.vision, config.text
    if isinstance(vision, EfficientNetConfig) and isinstance(text, BertConfig):
        yield from _align(config, vision, text)
        return
    if not isinstance(vision, VisionConfig) or not isinstance(text, TextConfig) or not text.layers:
        raise unsupported(config, "hugging_face")
    if not config.log_scale or vision.stem or vision.registers:
        raise unsupported(config, "hugging_face")
    if is_plain(vision) and text.pool == "end" and text.causal and config.logit_bias is None:
        yield from _hugging_face_clip(vision, text)
    elif vision.pool == "map" and text.pool == "last" and config.logit_bias is not None:
        yield from _siglip(vision, text)
    else:
        raise unsupported(config, "hugging_face")


def _hugging_face_text(text: TextConfig) -> Iterator[Leaf]:
    tower = "text_model"
    yield one("text/token_embedding/embedding", f"{tower}.embeddings.token_embedding.weight")
    yield one("text/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from blocks("text", f"{tower}.encoder.layers", "hugging_face", text.layers)
    yield from norm("text/ln_final", f"{tower}.final_layer_norm")


def _hugging_face_clip(vision: VisionConfig, text: TextConfig) -> Iterator[Leaf]:
    tower = "vision_model"
    yield one("logit_scale", "logit_scale")
    yield from _hugging_face_text(text)
    yield from linear("text/projection", "text_projection", bias=text.projection_bias)
    yield one("vision/class_embedding", f"{tower}.embeddings.class_embedding")
    yield one("vision/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from linear(
        "vision/patch_embedding", f"{tower}.embeddings.patch_embedding", form="patches", bias=False
    )
    yield from norm("vision/ln_pre", f"{tower}.pre_layrnorm")
    yield from blocks("vision", f"{tower}.encoder.layers", "hugging_face", vision.layers)
    yield from norm("vision/ln_post", f"{tower}.post_layernorm")
    yield from linear("vision/projection", "visual_projection", bias=False)


def _siglip(vision: VisionConfig, text: TextConfig) -> Iterator[Leaf]:
    tower, head = "vision_model", "vision_model.head"
    yield one("logit_scale", "logit_scale", "leading1")
    yield one("logit_bias", "logit_bias", "leading1")
    yield from _hugging_face_text(text)
    yield from linear("text/projection", "text_model.head", bias=text.projection_bias)
    yield from linear(
        "vision/patch_embedding",
        f"{tower}.embeddings.patch_embedding",
        form="patches",
        bias=vision.patch_bias,
    )
    yield one("vision/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from blocks("vision", f"{tower}.encoder.layers", "hugging_face", vision.layers)
    yield from norm("vision/ln_post", f"{tower}.post_layernorm")
    yield one("vision/pool/probe", f"{head}.probe", "leading2")
    yield from in_projection("vision/pool/q", f"{head}.attention", span=(0, 1, 3))
    yield from in_projection("vision/pool/kv", f"{head}.attention", span=(1, 3, 3))
    yield from linear("vision/pool/out", f"{head}.attention.out_proj")
    yield from norm("vision/pool/ln", f"{head}.layernorm")
    yield from linear("vision/pool/mlp/fc", f"{head}.mlp.fc1")
    yield from linear("vision/pool/mlp/proj", f"{head}.mlp.fc2")


def _align(config: CLIPConfig, vision: EfficientNetConfig, text: BertConfig) -> Iterator[Leaf]:
    if config.log_scale or not text.pooler or not text.projection_bias:
        raise unsupported(config, "hugging_face")
    tower = "text_model"
    yield one("temperature", "temperature")
    yield one("text/token_embedding/embedding", f"{tower}.embeddings.word_embeddings.weight")
    yield one("text/positional_embedding", f"{tower}.embeddings.position_embeddings.weight")
    yield one("text/segment_embedding", f"{tower}.embeddings.token_type_embeddings.weight")
    yield from norm("text/ln_embedding", f"{tower}.embeddings.LayerNorm")
    yield from blocks("text", f"{tower}.encoder.layer", "bert", text.layers)
    yield from linear("text/pooler", f"{tower}.pooler.dense")
    yield from linear("text/projection", "text_projection")
    tower = "vision_model"
    yield one("vision/stem/kernel", f"{tower}.embeddings.convolution.weight", "convolution")
    yield from batch_norm("vision/bn_stem", f"{tower}.embeddings.batchnorm")
    block = 0
    for stage, (_, _, expansion, _, _, repeats) in enumerate(vision.stages, 1):
        depth, name = vision.repeats(repeats), f"{tower}.encoder.blocks"
        yield from _mbconv(f"vision/stage{stage}/first", f"{name}.{block}", expansion > 1)
        if depth > 1:
            numbers = tuple(range(block + 1, block + depth))
            yield from _mbconv(
                f"vision/stage{stage}/rest", f"{name}.{{}}", expansion > 1, layers=numbers
            )
        block += depth


def _mbconv(ours: str, name: str, expands: bool, **options: Any) -> Iterator[Leaf]:
    point = dict(form="pointwise", **options)
    if expands:
        yield from linear(f"{ours}/expand", f"{name}.expansion.expand_conv", bias=False, **point)
        yield from batch_norm(f"{ours}/bn_expand", f"{name}.expansion.expand_bn", **options)
    depthwise = f"{name}.depthwise_conv"
    kernel = f"{depthwise}.depthwise_conv.weight"
    yield one(f"{ours}/depthwise/kernel", kernel, "convolution", **options)
    yield from batch_norm(f"{ours}/bn_depthwise", f"{depthwise}.depthwise_norm", **options)
    squeeze = f"{name}.squeeze_excite"
    yield from linear(f"{ours}/squeeze_excite/reduce", f"{squeeze}.reduce", **point)
    yield from linear(f"{ours}/squeeze_excite/expand", f"{squeeze}.expand", **point)
    project = f"{name}.projection"
    yield from linear(f"{ours}/project", f"{project}.project_conv", bias=False, **point)
    yield from batch_norm(f"{ours}/bn_project", f"{project}.project_bn", **options)
