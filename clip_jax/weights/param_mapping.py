"""What our parameters are called in the files of others, and how their arrays lie.

OpenAI and open_clip share their names. Everything is one table of `Leaf`s for a model and a
library, read in both directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from clip_jax.errors import UserError
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)

Library = Literal["openai", "open_clip", "hugging_face"]
LIBRARIES: dict[str, str] = {
    "openai": "OpenAI's CLIP: a state dict in a .pt file",
    "open_clip": "open_clip: open_clip_model.safetensors or .bin, and open_clip_config.json",
    "hugging_face": "transformers: a folder of model.safetensors and config.json",
}

OPENAIS_OWN = "input_resolution"  # in the files that OpenAI published; nobody else writes it
# What files hold besides parameters: sizes, and tables that follow from them.
IGNORED = (
    OPENAIS_OWN,
    "context_length",
    "vocab_size",
    "attn_mask",
    "text.attn_mask",
    "text_model.embeddings.position_ids",
    "text_model.embeddings.token_type_ids",
    "vision_model.embeddings.position_ids",
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our arrays and the tensors it is made of.

    path: ours, such as `vision/transformer/blocks/attention/qkv/kernel`.
    names: theirs; several are parts of our last axis, one after the other.
    form: how an array lies there: see `theirs`.
    shares: how large the parts are, where they differ.
    layers: their numbers, which `{}` in the names stands for, where ours leads with a layer axis.
    span: (first, end, of): the rows of their tensor that are ours, in parts of its first axis.
    """

    path: str
    names: tuple[str, ...]
    form: str = "same"
    shares: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None
    span: tuple[int, int, int] | None = None

    @property
    def tensors(self) -> list[str]:
        """The names of all tensors that it is made of."""
        if self.layers is None:
            return list(self.names)
        return [name.replace("{}", str(i)) for i in self.layers for name in self.names]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A tensor of theirs, or some of its rows, and the view of our array that holds the same."""

    name: str
    rows: tuple[int, int, int] | None
    view: np.ndarray


def theirs(form: str, array: np.ndarray) -> np.ndarray:
    """A view of our array as it lies there.

    linear: [inputs, outputs] as [outputs, inputs]; pointwise: the same as a 1×1 convolution;
    convolution: [height, width, inputs, outputs] as [outputs, inputs, height, width];
    patches: [height · width · 3, outputs] as a convolution; leading: with axes of one before it.
    """
    if form == "same":
        return array
    if form == "linear":
        return array.T
    if form == "pointwise":
        return array.T[:, :, None, None]
    if form == "convolution":
        return array.transpose(3, 2, 0, 1)
    if form == "patches":
        size = round((len(array) / 3) ** 0.5)
        return array.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)
    if form.startswith("leading"):
        return array[(None,) * int(form[-1])]
    raise ValueError(form)


def pieces(leaf: Leaf, array: np.ndarray) -> Iterator[Piece]:
    """Every tensor that a leaf is made of, and the part of `array` that it fills."""
    shares = leaf.shares or (1,) * len(leaf.names)
    unit = array.shape[-1] // sum(shares) if len(shares) > 1 else 0
    layers: Sequence[Any] = (None,) if leaf.layers is None else leaf.layers
    for i, number in enumerate(layers):
        layer = array if number is None else array[i, ...]
        start = 0
        for name, share in zip(leaf.names, shares, strict=True):
            part = layer[..., start * unit : (start + share) * unit] if unit else layer
            start += share
            name = name if number is None else name.replace("{}", str(number))
            yield Piece(name, leaf.span, theirs(leaf.form, part))


def leaves(config: CLIPConfig, library: Library) -> list[Leaf]:
    """The table for a model in a library's files.

    Raises:
      UserError: the library has no such model.
    """
    tables = _hugging_face(config) if library == "hugging_face" else _open_clip(config, library)
    found = list(tables)
    assert len({leaf.path for leaf in found}) == len(found)
    return found


# Values of a model's config that say how it is built, and not how large it is.
_STRUCTURE = (
    *("log_scale", "logit_bias", "stem", "registers", "pool", "ln_pre", "projection"),
    *("patch_bias", "ragged", "causal", "projection_bias", "pooler"),
)


def _unknown(config: CLIPConfig, library: str) -> UserError:
    unusual = [
        f"{prefix}{field.name}={value!r}"
        for part, prefix in ((config, ""), (config.vision, "vision."), (config.text, "text."))
        for field in dataclasses.fields(part)
        if field.name in _STRUCTURE and (value := getattr(part, field.name)) != field.default
    ]
    if not config.text.layers:
        unusual.append("text.layers=0 (a bag of words)")
    special = f", with {', '.join(unusual)}" if unusual else ""
    return UserError(
        f"{library} has no model of a {config.vision.kind} and a {config.text.kind} such as this "
        f"one{special}: its files have no place for it"
    )


# The parts of a table.


def _one(path: str, name: str, form: str = "same", **options: Any) -> Leaf:
    return Leaf(path, (name,), form, **options)


def _linear(
    path: str, *modules: str, form: str = "linear", bias: bool = True, **options: Any
) -> Iterator[Leaf]:
    yield Leaf(f"{path}/kernel", tuple(f"{m}.weight" for m in modules), form, **options)
    if bias:
        yield Leaf(f"{path}/bias", tuple(f"{m}.bias" for m in modules), **options)


def _in_projection(path: str, module: str, **options: Any) -> Iterator[Leaf]:
    yield _one(f"{path}/kernel", f"{module}.in_proj_weight", "linear", **options)
    yield _one(f"{path}/bias", f"{module}.in_proj_bias", **options)


def _norm(path: str, module: str, **options: Any) -> Iterator[Leaf]:
    yield _one(f"{path}/scale", f"{module}.weight", **options)
    yield _one(f"{path}/bias", f"{module}.bias", **options)


def _batch_norm(path: str, module: str, **options: Any) -> Iterator[Leaf]:
    yield from _norm(path, module, **options)
    yield _one(f"{path}/mean", f"{module}.running_mean", **options)
    yield _one(f"{path}/var", f"{module}.running_var", **options)
    yield _one(f"{path}/batches", f"{module}.num_batches_tracked", **options)


# The blocks of a Transformer: ours, and what each library calls it.
_BLOCKS: dict[str, dict[str, str]] = {
    "open_clip": {
        "ln_1": "ln_1",
        "attention/out": "attn.out_proj",
        "ln_2": "ln_2",
        "mlp/fc": "mlp.c_fc",
        "mlp/proj": "mlp.c_proj",
    },
    "timm": {
        "ln_1": "norm1",
        "attention/qkv": "attn.qkv",
        "attention/out": "attn.proj",
        "ln_2": "norm2",
        "mlp/fc": "mlp.fc1",
        "mlp/proj": "mlp.fc2",
    },
    "hugging_face": {
        "ln_1": "layer_norm1",
        "attention/qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp/fc": "mlp.fc1",
        "mlp/proj": "mlp.fc2",
    },
    "bert": {
        "attention/qkv": "attention.self.query attention.self.key attention.self.value",
        "attention/out": "attention.output.dense",
        "ln_1": "attention.output.LayerNorm",
        "mlp/fc": "intermediate.dense",
        "mlp/proj": "output.dense",
        "ln_2": "output.LayerNorm",
    },
}


def _blocks(tower: str, prefix: str, style: str, layers: int) -> Iterator[Leaf]:
    options: dict[str, Any] = dict(layers=tuple(range(layers)))
    ours = f"{tower}/transformer/blocks"
    if style == "open_clip":
        yield from _in_projection(f"{ours}/attention/qkv", f"{prefix}.{{}}.attn", **options)
    for path, modules in _BLOCKS[style].items():
        names = [f"{prefix}.{{}}.{module}" for module in modules.split()]
        if path.startswith("ln"):
            yield from _norm(f"{ours}/{path}", *names, **options)
        else:
            yield from _linear(f"{ours}/{path}", *names, **options)


# OpenAI and open_clip.


def _open_clip(config: CLIPConfig, library: str) -> Iterator[Leaf]:
    vision, text = config.vision, config.text
    if not isinstance(text, TextConfig) or not text.layers or not config.log_scale:
        raise _unknown(config, library)
    yield _one("logit_scale", "logit_scale")
    if isinstance(vision, VisionConfig) and vision.pool == "map":
        if library == "openai" or config.logit_bias is None:
            raise _unknown(config, library)
        yield _one("logit_bias", "logit_bias")
        yield from _timm_vit(vision, config, library)
        yield from _open_clip_text(text, "text.")
        return
    if config.logit_bias is not None or text.projection_bias or text.pool != "end":
        raise _unknown(config, library)
    if isinstance(vision, ResNetConfig):
        yield from _resnet(vision)
    elif isinstance(vision, VisionConfig) and _plain(vision):
        yield from _open_clip_vit(vision)
    else:
        raise _unknown(config, library)
    yield from _open_clip_text(text, "")


def _plain(vision: VisionConfig) -> bool:
    """Whether it is the paper's vision Transformer."""
    return (
        vision.pool == "class"
        and vision.ln_pre
        and vision.projection
        and not (vision.stem or vision.registers or vision.patch_bias)
    )


def _open_clip_vit(vision: VisionConfig) -> Iterator[Leaf]:
    yield _one("vision/class_embedding", "visual.class_embedding")
    yield _one("vision/positional_embedding", "visual.positional_embedding")
    yield _one("vision/projection/kernel", "visual.proj")
    yield _one("vision/patch_embedding/kernel", "visual.conv1.weight", "patches")
    yield from _norm("vision/ln_pre", "visual.ln_pre")
    yield from _blocks("vision", "visual.transformer.resblocks", "open_clip", vision.layers)
    yield from _norm("vision/ln_post", "visual.ln_post")


def _timm_vit(vision: VisionConfig, config: CLIPConfig, library: str) -> Iterator[Leaf]:
    if vision.ln_pre or vision.projection or vision.stem or vision.registers:
        raise _unknown(config, library)
    trunk, pool = "visual.trunk", "visual.trunk.attn_pool"
    yield _one("vision/positional_embedding", f"{trunk}.pos_embed", "leading1")
    yield from _linear("vision/patch_embedding", f"{trunk}.patch_embed.proj", form="patches")
    yield from _blocks("vision", f"{trunk}.blocks", "timm", vision.layers)
    yield from _norm("vision/ln_post", f"{trunk}.norm")
    yield _one("vision/pool/probe", f"{pool}.latent", "leading2")
    yield from _linear("vision/pool/q", f"{pool}.q")
    yield from _linear("vision/pool/kv", f"{pool}.kv")
    yield from _linear("vision/pool/out", f"{pool}.proj")
    yield from _norm("vision/pool/ln", f"{pool}.norm")
    yield from _linear("vision/pool/mlp/fc", f"{pool}.mlp.fc1")
    yield from _linear("vision/pool/mlp/proj", f"{pool}.mlp.fc2")


def _open_clip_text(text: TextConfig, prefix: str) -> Iterator[Leaf]:
    yield _one("text/token_embedding/embedding", f"{prefix}token_embedding.weight")
    yield _one("text/positional_embedding", f"{prefix}positional_embedding")
    yield from _blocks("text", f"{prefix}transformer.resblocks", "open_clip", text.layers)
    yield from _norm("text/ln_final", f"{prefix}ln_final")
    if text.projection_bias:
        yield from _linear("text/projection", f"{prefix}text_projection")
    else:
        yield _one("text/projection/kernel", f"{prefix}text_projection")


def _resnet(vision: ResNetConfig) -> Iterator[Leaf]:
    for i in (1, 2, 3):
        yield _one(f"vision/stem/conv{i}/kernel", f"visual.conv{i}.weight", "convolution")
        yield from _batch_norm(f"vision/stem/bn{i}", f"visual.bn{i}")
    for stage, depth in enumerate(vision.layers, 1):
        ours, name = f"vision/stage{stage}", f"visual.layer{stage}"
        yield from _bottleneck(f"{ours}/first", f"{name}.0")
        yield from _linear(
            f"{ours}/first/conv_shortcut", f"{name}.0.downsample.0", form="pointwise", bias=False
        )
        yield from _batch_norm(f"{ours}/first/bn_shortcut", f"{name}.0.downsample.1")
        if depth > 1:
            yield from _bottleneck(f"{ours}/rest", f"{name}.{{}}", layers=tuple(range(1, depth)))
    pool = "visual.attnpool"
    yield _one("vision/pool/positional_embedding", f"{pool}.positional_embedding")
    yield from _linear("vision/pool/q", f"{pool}.q_proj")
    yield from _linear("vision/pool/kv", f"{pool}.k_proj", f"{pool}.v_proj")
    yield from _linear("vision/pool/projection", f"{pool}.c_proj")


def _bottleneck(ours: str, name: str, **options: Any) -> Iterator[Leaf]:
    for i, form in ((1, "pointwise"), (2, "convolution"), (3, "pointwise")):
        yield _one(f"{ours}/conv{i}/kernel", f"{name}.conv{i}.weight", form, **options)
        yield from _batch_norm(f"{ours}/bn{i}", f"{name}.bn{i}", **options)


# Hugging Face transformers.


def _hugging_face(config: CLIPConfig) -> Iterator[Leaf]:
    vision, text = config.vision, config.text
    if isinstance(vision, EfficientNetConfig) and isinstance(text, BertConfig):
        yield from _align(config, vision, text)
        return
    if not isinstance(vision, VisionConfig) or not isinstance(text, TextConfig) or not text.layers:
        raise _unknown(config, "hugging_face")
    if not config.log_scale or vision.stem or vision.registers:
        raise _unknown(config, "hugging_face")
    if _plain(vision) and text.pool == "end" and text.causal and config.logit_bias is None:
        yield from _hugging_face_clip(vision, text)
    elif vision.pool == "map" and text.pool == "last" and config.logit_bias is not None:
        yield from _siglip(vision, text)
    else:
        raise _unknown(config, "hugging_face")


def _hugging_face_text(text: TextConfig) -> Iterator[Leaf]:
    tower = "text_model"
    yield _one("text/token_embedding/embedding", f"{tower}.embeddings.token_embedding.weight")
    yield _one("text/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from _blocks("text", f"{tower}.encoder.layers", "hugging_face", text.layers)
    yield from _norm("text/ln_final", f"{tower}.final_layer_norm")


def _hugging_face_clip(vision: VisionConfig, text: TextConfig) -> Iterator[Leaf]:
    tower = "vision_model"
    yield _one("logit_scale", "logit_scale")
    yield from _hugging_face_text(text)
    yield from _linear("text/projection", "text_projection", bias=text.projection_bias)
    yield _one("vision/class_embedding", f"{tower}.embeddings.class_embedding")
    yield _one("vision/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from _linear(
        "vision/patch_embedding", f"{tower}.embeddings.patch_embedding", form="patches", bias=False
    )
    yield from _norm("vision/ln_pre", f"{tower}.pre_layrnorm")
    yield from _blocks("vision", f"{tower}.encoder.layers", "hugging_face", vision.layers)
    yield from _norm("vision/ln_post", f"{tower}.post_layernorm")
    yield from _linear("vision/projection", "visual_projection", bias=False)


def _siglip(vision: VisionConfig, text: TextConfig) -> Iterator[Leaf]:
    tower, head = "vision_model", "vision_model.head"
    yield _one("logit_scale", "logit_scale", "leading1")
    yield _one("logit_bias", "logit_bias", "leading1")
    yield from _hugging_face_text(text)
    yield from _linear("text/projection", "text_model.head", bias=text.projection_bias)
    yield from _linear(
        "vision/patch_embedding",
        f"{tower}.embeddings.patch_embedding",
        form="patches",
        bias=vision.patch_bias,
    )
    yield _one("vision/positional_embedding", f"{tower}.embeddings.position_embedding.weight")
    yield from _blocks("vision", f"{tower}.encoder.layers", "hugging_face", vision.layers)
    yield from _norm("vision/ln_post", f"{tower}.post_layernorm")
    yield _one("vision/pool/probe", f"{head}.probe", "leading2")
    yield from _in_projection("vision/pool/q", f"{head}.attention", span=(0, 1, 3))
    yield from _in_projection("vision/pool/kv", f"{head}.attention", span=(1, 3, 3))
    yield from _linear("vision/pool/out", f"{head}.attention.out_proj")
    yield from _norm("vision/pool/ln", f"{head}.layernorm")
    yield from _linear("vision/pool/mlp/fc", f"{head}.mlp.fc1")
    yield from _linear("vision/pool/mlp/proj", f"{head}.mlp.fc2")


def _align(config: CLIPConfig, vision: EfficientNetConfig, text: BertConfig) -> Iterator[Leaf]:
    if config.log_scale or not text.pooler or not text.projection_bias:
        raise _unknown(config, "hugging_face")
    tower = "text_model"
    yield _one("temperature", "temperature")
    yield _one("text/token_embedding/embedding", f"{tower}.embeddings.word_embeddings.weight")
    yield _one("text/positional_embedding", f"{tower}.embeddings.position_embeddings.weight")
    yield _one("text/segment_embedding", f"{tower}.embeddings.token_type_embeddings.weight")
    yield from _norm("text/ln_embedding", f"{tower}.embeddings.LayerNorm")
    yield from _blocks("text", f"{tower}.encoder.layer", "bert", text.layers)
    yield from _linear("text/pooler", f"{tower}.pooler.dense")
    yield from _linear("text/projection", "text_projection")
    tower = "vision_model"
    yield _one("vision/stem/kernel", f"{tower}.embeddings.convolution.weight", "convolution")
    yield from _batch_norm("vision/bn_stem", f"{tower}.embeddings.batchnorm")
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
        yield from _linear(f"{ours}/expand", f"{name}.expansion.expand_conv", bias=False, **point)
        yield from _batch_norm(f"{ours}/bn_expand", f"{name}.expansion.expand_bn", **options)
    depthwise = f"{name}.depthwise_conv"
    kernel = f"{depthwise}.depthwise_conv.weight"
    yield _one(f"{ours}/depthwise/kernel", kernel, "convolution", **options)
    yield from _batch_norm(f"{ours}/bn_depthwise", f"{depthwise}.depthwise_norm", **options)
    squeeze = f"{name}.squeeze_excite"
    yield from _linear(f"{ours}/squeeze_excite/reduce", f"{squeeze}.reduce", **point)
    yield from _linear(f"{ours}/squeeze_excite/expand", f"{squeeze}.expand", **point)
    project = f"{name}.projection"
    yield from _linear(f"{ours}/project", f"{project}.project_conv", bias=False, **point)
    yield from _batch_norm(f"{ours}/bn_project", f"{project}.project_bn", **options)
