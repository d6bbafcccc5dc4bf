"""The names in the files of OpenAI and open_clip, which share them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.weights.mappings.leaf import (
    Leaf,
    batch_norm,
    blocks,
    is_plain,
    linear,
    norm,
    one,
    unsupported,
)


def open_clip(config: CLIPConfig, library: str) -> Iterator[Leaf]:
    """The table for a model in OpenAI's or open_clip's files.

    Raises:
      UserError: the library has no such model.
    """
    vision, text = config.vision, config.text
    if not isinstance(text, TextConfig) or not text.layers or not config.log_scale:
        raise unsupported(config, library)
    yield one("logit_scale", "logit_scale")
    if isinstance(vision, VisionConfig) and vision.pool == "map":
        if library == "openai" or config.logit_bias is None:
            raise unsupported(config, library)
        yield one("logit_bias", "logit_bias")
        yield from _timm_vit(vision, config, library)
        yield from _open_clip_text(text, "text.")
        return
    if config.logit_bias is not None or text.projection_bias or text.pool != "end":
        raise unsupported(config, library)
    if isinstance(vision, ResNetConfig):
        yield from _resnet(vision)
    elif isinstance(vision, VisionConfig) and is_plain(vision):
        yield from _open_clip_vit(vision)
    else:
        raise unsupported(config, library)
    yield from _open_clip_text(text, "")


def _open_clip_vit(vision: VisionConfig) -> Iterator[Leaf]:
    yield one("vision/class_embedding", "visual.class_embedding")
    yield one("vision/positional_embedding", "visual.positional_embedding")
    yield one("vision/projection/kernel", "visual.proj")
    yield one("vision/patch_embedding/kernel", "visual.conv1.weight", "patches")
    yield from norm("vision/ln_pre", "visual.ln_pre")
    yield from blocks("vision", "visual.transformer.resblocks", "open_clip", vision.layers)
    yield from norm("vision/ln_post", "visual.ln_post")


def _timm_vit(vision: VisionConfig, config: CLIPConfig, library: str) -> Iterator[Leaf]:
    if vision.ln_pre or vision.projection or vision.stem or vision.registers:
        raise unsupported(config, library)
    trunk, pool = "visual.trunk", "visual.trunk.attn_pool"
    yield one("vision/positional_embedding", f"{trunk}.pos_embed", "leading1")
    yield from linear("vision/patch_embedding", f"{trunk}.patch_embed.proj", form="patches")
    yield from blocks("vision", f"{trunk}.blocks", "timm", vision.layers)
    yield from norm("vision/ln_post", f"{trunk}.norm")
    yield one("vision/pool/probe", f"{pool}.latent", "leading2")
    yield from linear("vision/pool/q", f"{pool}.q")
    yield from linear("vision/pool/kv", f"{pool}.kv")
    yield from linear("vision/pool/out", f"{pool}.proj")
    yield from norm("vision/pool/ln", f"{pool}.norm")
    yield from linear("vision/pool/mlp/fc", f"{pool}.mlp.fc1")
    yield from linear("vision/pool/mlp/proj", f"{pool}.mlp.fc2")


def _open_clip_text(text: TextConfig, prefix: str) -> Iterator[Leaf]:
    yield one("text/token_embedding/embedding", f"{prefix}token_embedding.weight")
    yield one("text/positional_embedding", f"{prefix}positional_embedding")
    yield from blocks("text", f"{prefix}transformer.resblocks", "open_clip", text.layers)
    yield from norm("text/ln_final", f"{prefix}ln_final")
    if text.projection_bias:
        yield from linear("text/projection", f"{prefix}text_projection")
    else:
        yield one("text/projection/kernel", f"{prefix}text_projection")


def _resnet(vision: ResNetConfig) -> Iterator[Leaf]:
    for i in (1, 2, 3):
        yield one(f"vision/stem/conv{i}/kernel", f"visual.conv{i}.weight", "convolution")
        yield from batch_norm(f"vision/stem/bn{i}", f"visual.bn{i}")
    for stage, depth in enumerate(vision.layers, 1):
        ours, name = f"vision/stage{stage}", f"visual.layer{stage}"
        yield from _bottleneck(f"{ours}/first", f"{name}.0")
        yield from linear(
            f"{ours}/first/conv_shortcut", f"{name}.0.downsample.0", form="pointwise", bias=False
        )
        yield from batch_norm(f"{ours}/first/bn_shortcut", f"{name}.0.downsample.1")
        if depth > 1:
            yield from _bottleneck(f"{ours}/rest", f"{name}.{{}}", layers=tuple(range(1, depth)))
    pool = "visual.attnpool"
    yield one("vision/pool/positional_embedding", f"{pool}.positional_embedding")
    yield from linear("vision/pool/q", f"{pool}.q_proj")
    yield from linear("vision/pool/kv", f"{pool}.k_proj", f"{pool}.v_proj")
    yield from linear("vision/pool/projection", f"{pool}.c_proj")


def _bottleneck(ours: str, name: str, **options: Any) -> Iterator[Leaf]:
    for i, form in ((1, "pointwise"), (2, "convolution"), (3, "pointwise")):
        yield one(f"{ours}/conv{i}/kernel", f"{name}.conv{i}.weight", form, **options)
        yield from batch_norm(f"{ours}/bn{i}", f"{name}.bn{i}", **options)
