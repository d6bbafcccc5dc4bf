"""The mapping of open_clip's files, whose names OpenAI's files share."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.io import files
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.models.head import DECODER
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.weights import configs, preprocessing
from clip_jax.weights.configs.open_clip.timm import has_text_prefix, is_timm, projection_of
from clip_jax.weights.mappings import encoders
from clip_jax.weights.mappings.leaf import (
    Leaf,
    batch_norm,
    block_stack,
    blocks,
    gains,
    has_class_token,
    is_bare,
    is_plain,
    linear,
    norm,
    single,
    unsupported,
)
from clip_jax.weights.mappings.protocol import Document, ModelDescription, WeightsMapping
from clip_jax.weights.mappings.timm.tower import TimmTower, open_clip_leaves
from clip_jax.weights.param_mapping import mapping_of_tower


class OpenClip(WeightsMapping):
    """The mapping of open_clip's models: its own towers, those of timm, and its CoCa."""

    name = "open_clip"
    description = "open_clip: open_clip_model.safetensors or .bin, and open_clip_config.json"
    weights_file = "open_clip_model.safetensors"
    config_file = "open_clip_config.json"

    def leaves(self, config: CLIPConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter of a model."""
        match config:
            case CLIPConfig(
                vision=VisionConfig() as vision,
                text=CoCaTextConfig(projection_bias=False) as text,
                log_scale=True,
                projection_width=0,
            ) if _is_coca(config):
                return _coca_leaves(config, vision, text)
            case CLIPConfig(log_scale=True, projection_width=0):
                return _model_leaves(config)
        raise unsupported(config, self.name)

    def as_in_file(self, table: list[Leaf], names: Collection[str]) -> list[Leaf]:
        """Returns the table of a file whose text parameters have the prefix `text.`, or have not.

        open_clip saves both and reads both.
        """
        has = any(name.startswith("text.") for name in names)
        wanted = any(leaf.names[0].startswith("text.") for leaf in table)
        if has == wanted:
            return table
        return [_with_text_prefix(leaf, has) for leaf in table]

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are a model of open_clip."""
        return is_open_clip(names)

    def heads(self, config: CLIPConfig) -> tuple[str, ...]:
        """Returns the decoder of a CoCa."""
        return (DECODER,) if _is_coca(config) else ()

    def documents(self, config: CLIPConfig, preprocess: Preprocess) -> dict[str, Document]:
        """Returns open_clip_config.json."""
        values = configs.to_open_clip(config)
        pixels = preprocessing.to_open_clip(preprocess)
        return {self.config_file: {"model_cfg": values, "preprocess_cfg": pixels}}

    def interpret(
        self, config: CLIPConfig, preprocess: Preprocess, documents: Mapping[str, Document]
    ) -> Document:
        """Returns the essence of the model that open_clip builds."""
        theirs = configs.from_open_clip(documents[self.config_file]["model_cfg"])
        return configs.essence(configs.with_normalization(theirs, preprocess.mean, preprocess.std))

    def describe(self, config_file: Path) -> ModelDescription:
        """Reads open_clip_config.json."""
        fields = configs.Fields(files.read_json(config_file), str(config_file))
        model = fields.group("model_cfg").values
        config = configs.from_open_clip(model, f"{config_file}: model_cfg")
        pixels, preprocess = fields.group("preprocess_cfg").values, None
        if pixels:
            size = config.vision.image_size
            preprocess = preprocessing.from_open_clip(pixels, size, str(config_file))
        return ModelDescription(config, preprocess, f"preprocess_cfg in {config_file}")


def is_open_clip(names: Collection[str]) -> bool:
    """Returns whether these are names of open_clip or OpenAI."""
    return any(name.startswith("visual.") for name in names)


def is_siglip(names: Collection[str]) -> bool:
    """Returns whether these are names of open_clip's SigLIP."""
    return any(name.startswith("visual.trunk.") for name in names)


def is_coca(names: Collection[str]) -> bool:
    """Returns whether these are names of open_clip's CoCa."""
    return any(name.startswith("text_decoder.") for name in names)


def clip_leaves(config: CLIPConfig, library: str) -> Iterator[Leaf]:
    """Yields the leaves of a CLIP in OpenAI's files.

    Raises:
      UserError: it has no such model.
    """
    match config:
        case CLIPConfig(
            text=TextConfig(projection_bias=False, projection=True, pool="end") as text,
            log_scale=True,
            logit_bias=None,
            projection_width=0,
        ) if text.layers and type(text) is TextConfig:
            yield single("logit_scale", "logit_scale")
            match config.vision:
                case ResNetConfig() as vision:
                    yield from _resnet(vision)
                case VisionConfig() as vision if is_plain(vision):
                    yield from _open_clip_vit(vision)
                case _:
                    raise unsupported(config, library)
            yield from _open_clip_text(text, "")
        case _:
            raise unsupported(config, library)


def _model_leaves(config: CLIPConfig) -> Iterator[Leaf]:
    """Yields the leaves of a model of an image tower and a text tower."""
    yield single("logit_scale", "logit_scale")
    if config.logit_bias is not None:
        yield single("logit_bias", "logit_bias")
    match config.vision:
        case ResNetConfig() as vision:
            yield from _resnet(vision)
        case VisionConfig(pool="class" | "mean") as vision if (
            type(vision) is VisionConfig
            and not is_timm(config)
            and vision.class_tokens
            and is_bare(vision)
        ):
            yield from _open_clip_vit(vision)
        case vision if is_timm(config) and isinstance(
            mapping := mapping_of_tower(vision), TimmTower
        ):
            yield from open_clip_leaves(mapping, vision, projection_of(vision))
        case _:
            raise unsupported(config, "open_clip")
    match config.text:
        case TextConfig() as text if text.layers and type(text) is TextConfig:
            yield from _open_clip_text(text, "text." if has_text_prefix(config) else "")
        case ProjectedEncoder() as text if isinstance(
            names := mapping_of_tower(text), encoders.EncoderMapping
        ):
            yield from encoders.open_clip_leaves(names, text)
        case _:
            raise unsupported(config, "open_clip")


def _with_text_prefix(leaf: Leaf, prefix: bool) -> Leaf:
    """Returns a leaf of the text tower with the prefix `text.`, or without; others as they are."""
    if not leaf.path.startswith("text/"):
        return leaf
    names = (name.removeprefix("text.") for name in leaf.names)
    return dataclasses.replace(leaf, names=tuple("text." * prefix + name for name in names))


def _is_coca(config: CLIPConfig) -> bool:
    """Returns whether a model has CoCa's decoder, and an image tower that open_clip builds."""
    match config.vision:
        case CoCaVisionConfig() as vision:
            known = vision.pool_width == config.embed_dim and has_class_token(vision)
        case vision:
            known = isinstance(vision, VisionConfig) and is_plain(vision)
    return known and isinstance(config.head(DECODER), MultimodalConfig)


def _coca_leaves(config: CLIPConfig, vision: VisionConfig, text: CoCaTextConfig) -> Iterator[Leaf]:
    yield single("logit_scale", "logit_scale")
    if config.logit_bias is not None:
        yield single("logit_bias", "logit_bias")
    yield from _open_clip_vit(vision)
    if isinstance(vision, CoCaVisionConfig):
        pool, theirs = "vision/pool", "visual.attn_pool"
        yield single(f"{pool}/queries", f"{theirs}.query")
        yield from norm(f"{pool}/ln_q", f"{theirs}.ln_q")
        yield from norm(f"{pool}/ln_k", f"{theirs}.ln_k")
        joint = vision.width == vision.pool_width  # torch then has one matrix for all three
        yield from _cross_attention(f"{pool}/attention", f"{theirs}.attn", joint)
    yield from _open_clip_text(text, "text.")
    yield single("text/class_embedding", "text.cls_emb")
    decoder: Any = config.head(DECODER)
    ours, theirs = f"heads/{DECODER}", "text_decoder"
    yield from block_stack(
        f"{ours}/blocks/causal", f"{theirs}.resblocks", "open_clip", decoder.layers
    )
    cross, their_cross = f"{ours}/blocks/cross", f"{theirs}.cross_attn.{{}}"
    options: dict[str, Any] = dict(layers=tuple(range(decoder.layers)))
    for name, module in (("ln_1", "ln_1"), ("ln_places", "ln_1_kv"), ("ln_2", "ln_2")):
        yield from norm(f"{cross}/{name}", f"{their_cross}.{module}", **options)
    yield from _cross_attention(f"{cross}/attention", f"{their_cross}.attn", True, **options)
    yield from linear(f"{cross}/mlp/fc", f"{their_cross}.mlp.c_fc", **options)
    yield from linear(f"{cross}/mlp/proj", f"{their_cross}.mlp.c_proj", **options)
    yield from norm(f"{ours}/ln_final", f"{theirs}.ln_final")
    yield single(f"{ours}/kernel", f"{theirs}.text_projection")


def _cross_attention(ours: str, theirs: str, joint: bool, **options: Any) -> Iterator[Leaf]:
    """Yields the leaves of torch's attention whose keys and values are of another sequence."""
    q, kv = (0, 1, 3), (1, 3, 3)
    if joint:
        yield single(f"{ours}/q/kernel", f"{theirs}.in_proj_weight", "linear", span=q, **options)
        yield single(f"{ours}/kv/kernel", f"{theirs}.in_proj_weight", "linear", span=kv, **options)
    else:
        yield single(f"{ours}/q/kernel", f"{theirs}.q_proj_weight", "linear", **options)
        names = tuple(f"{theirs}.{part}_proj_weight" for part in "kv")
        yield Leaf(f"{ours}/kv/kernel", names, "linear", **options)
    yield single(f"{ours}/q/bias", f"{theirs}.in_proj_bias", span=q, **options)
    yield single(f"{ours}/kv/bias", f"{theirs}.in_proj_bias", span=kv, **options)
    yield from linear(f"{ours}/out", f"{theirs}.out_proj", **options)


def _open_clip_vit(vision: VisionConfig) -> Iterator[Leaf]:
    yield single("vision/class_embedding", "visual.class_embedding")
    yield single("vision/positional_embedding", "visual.positional_embedding")
    yield single("vision/projection/kernel", "visual.proj")
    yield single("vision/patch_embedding/kernel", "visual.conv1.weight", "patches")
    if vision.ln_pre:
        yield from norm("vision/ln_pre", "visual.ln_pre")
    blocks_name = "visual.transformer.resblocks"
    yield from blocks("vision", blocks_name, "open_clip", vision.layers)
    if vision.layer_scale:
        stacked: dict[str, Any] = dict(layers=tuple(range(vision.layers)))
        yield from gains("vision/transformer/blocks", f"{blocks_name}.{{}}.ls_", **stacked)
    yield from norm("vision/ln_post", "visual.ln_post")


def _open_clip_text(text: TextConfig, prefix: str) -> Iterator[Leaf]:
    yield single("text/token_embedding/embedding", f"{prefix}token_embedding.weight")
    yield single("text/positional_embedding", f"{prefix}positional_embedding")
    yield from blocks("text", f"{prefix}transformer.resblocks", "open_clip", text.layers)
    yield from norm("text/ln_final", f"{prefix}ln_final")
    if text.projection_bias:
        yield from linear("text/projection", f"{prefix}text_projection")
    elif text.projection:
        yield single("text/projection/kernel", f"{prefix}text_projection")


def _resnet(vision: ResNetConfig) -> Iterator[Leaf]:
    for i in (1, 2, 3):
        yield single(f"vision/stem/conv{i}/kernel", f"visual.conv{i}.weight", "convolution")
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
    yield single("vision/pool/positional_embedding", f"{pool}.positional_embedding")
    yield from linear("vision/pool/q", f"{pool}.q_proj")
    yield from linear("vision/pool/kv", f"{pool}.k_proj", f"{pool}.v_proj")
    yield from linear("vision/pool/projection", f"{pool}.c_proj")


def _bottleneck(ours: str, name: str, **options: Any) -> Iterator[Leaf]:
    for i, form in ((1, "pointwise"), (2, "convolution"), (3, "pointwise")):
        yield single(f"{ours}/conv{i}/kernel", f"{name}.conv{i}.weight", form, **options)
        yield from batch_norm(f"{ours}/bn{i}", f"{name}.bn{i}", **options)
