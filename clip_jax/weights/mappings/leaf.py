"""Entries of a table of parameter names, and functions that make them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig, VisionConfig
from clip_jax.models.registry import kind_of


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our arrays, and the tensors of another library that it is made of.

    Attributes:
      path: the path of our array, such as `vision/transformer/blocks/attention/qkv/kernel`.
      names: the names of the library's tensors; several are consecutive parts of our last axis.
      form: the layout of the library's tensors, see `to_their_layout`.
      shares: the relative sizes of the parts; empty: equal.
      layers: numbers of layers, for which `{}` in the names stands; our array then has a leading
        layer axis.
      span: (first, end, parts): the part of the library's tensor's first axis that is ours.
    """

    path: str
    names: tuple[str, ...]
    form: str = "same"
    shares: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None
    span: tuple[int, int, int] | None = None

    @property
    def tensors(self) -> list[str]:
        """The names of all the library's tensors."""
        if self.layers is None:
            return list(self.names)
        return [name.replace("{}", str(i)) for i in self.layers for name in self.names]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A tensor of another library, and the view of our array with the same values.

    Attributes:
      name: the name of the tensor.
      rows: the part of the tensor's first axis that is ours, as `Leaf.span`; None: all of it.
      view: the view of our array.
    """

    name: str
    rows: tuple[int, int, int] | None
    view: np.ndarray


def to_their_layout(form: str, array: np.ndarray) -> np.ndarray:
    """Returns a view of our array in the layout of another library.

    linear: [inputs, outputs] as [outputs, inputs]; pointwise: the same as a 1×1 convolution;
    convolution: [height, width, inputs, outputs] as [outputs, inputs, height, width];
    patches: [height · width · 3, outputs] as a convolution; leadingN: with N leading axes of one;
    trailingN: with N such axes at the end.
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
    if form.startswith("trailing"):
        return array[(..., *(None,) * int(form[-1]))]
    raise ValueError(form)


def pieces(leaf: Leaf, array: np.ndarray) -> Iterator[Piece]:
    """Yields every tensor of a leaf, and the part of `array` that it fills."""
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
            yield Piece(name, leaf.span, to_their_layout(leaf.form, part))


# Fields of a model's config that determine its structure, not its sizes.
_STRUCTURE = (
    *("log_scale", "logit_bias", "projection_width", "stem", "registers", "pool", "ln_pre"),
    *("projection", "patch_bias", "ragged", "causal", "projection_bias", "pooler", "head"),
    *("unpooled_class", "ln_before_pool", "layer_scale", "attention_bias"),
)


def unsupported(config: CLIPConfig, library: str) -> UserError:
    """Returns the error for a model that a library does not have; it names the unusual features."""
    parts: list[tuple[Any, str]] = [
        (config, ""),
        (config.vision, "vision."),
        (config.text, "text."),
    ]
    unusual = [
        f"{prefix}{field.name}={value!r}"
        for part, prefix in parts
        for field in dataclasses.fields(part)
        if field.name in _STRUCTURE and (value := getattr(part, field.name)) != field.default
    ]
    if config.text.blocks == 0:
        unusual.append("text.layers=0 (a bag of words)")
    special = f", with {', '.join(unusual)}" if unusual else ""
    vision, text = kind_of(config.vision), kind_of(config.text)
    return UserError(
        f"{library} has no model of a {vision} and a {text} such as this one{special}: its files "
        "have no place for it"
    )


def single(path: str, name: str, form: str = "same", **options: Any) -> Leaf:
    """Returns the leaf of an array that is one tensor of the library."""
    return Leaf(path, (name,), form, **options)


def linear(
    path: str, *modules: str, form: str = "linear", bias: bool = True, **options: Any
) -> Iterator[Leaf]:
    """Yields the leaves of a linear layer; several `modules` are parts of its outputs."""
    yield Leaf(f"{path}/kernel", tuple(f"{m}.weight" for m in modules), form, **options)
    if bias:
        yield Leaf(f"{path}/bias", tuple(f"{m}.bias" for m in modules), **options)


def in_projection(path: str, module: str, **options: Any) -> Iterator[Leaf]:
    """Yields the leaves of torch's joint projection to queries, keys and values."""
    yield single(f"{path}/kernel", f"{module}.in_proj_weight", "linear", **options)
    yield single(f"{path}/bias", f"{module}.in_proj_bias", **options)


def prefixed(leaves: Iterator[Leaf], prefix: str) -> Iterator[Leaf]:
    """Yields leaves whose tensors' names start with a prefix."""
    for leaf in leaves:
        yield dataclasses.replace(leaf, names=tuple(prefix + name for name in leaf.names))


def gains(path: str, module: str, form: str = "same", **options: Any) -> Iterator[Leaf]:
    """Yields the leaves of the gains of a block's two branches; `module` is without its number."""
    for number in (1, 2):
        yield single(f"{path}/scale_{number}", f"{module}{number}.gamma", form, **options)


def norm(path: str, module: str, **options: Any) -> Iterator[Leaf]:
    """Yields the leaves of a LayerNorm."""
    yield single(f"{path}/scale", f"{module}.weight", **options)
    yield single(f"{path}/bias", f"{module}.bias", **options)


def batch_norm(path: str, module: str, **options: Any) -> Iterator[Leaf]:
    """Yields the leaves of a BatchNorm with its running statistics."""
    yield from norm(path, module, **options)
    yield single(f"{path}/mean", f"{module}.running_mean", **options)
    yield single(f"{path}/var", f"{module}.running_var", **options)
    yield single(f"{path}/batches", f"{module}.num_batches_tracked", **options)


def attention_pool(path: str, module: str) -> Iterator[Leaf]:
    """Yields the leaves of timm's attention of a learned query to all tokens."""
    yield single(f"{path}/probe", f"{module}.latent", "leading2")
    for ours, theirs in (("q", "q"), ("kv", "kv"), ("out", "proj")):
        yield from linear(f"{path}/{ours}", f"{module}.{theirs}")
    yield from norm(f"{path}/ln", f"{module}.norm")
    yield from linear(f"{path}/mlp/fc", f"{module}.mlp.fc1")
    yield from linear(f"{path}/mlp/proj", f"{module}.mlp.fc2")


# The modules of a Transformer block: our names, and those of each library.
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
    "vitamin": {
        "ln_1": "norm1",
        "attention/qkv": "attn.qkv",
        "attention/out": "attn.proj",
        "ln_2": "norm2",
        "mlp/ln": "mlp.norm",
        "mlp/gate": "mlp.w0",
        "mlp/fc": "mlp.w1",
        "mlp/proj": "mlp.w2",
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
    "m2m": {
        "ln_1": "self_attn_layer_norm",
        "attention/qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
        "ln_2": "final_layer_norm",
        "mlp/fc": "fc1",
        "mlp/proj": "fc2",
    },
}


def blocks(tower: str, prefix: str, style: str, layers: int, bias: bool = True) -> Iterator[Leaf]:
    """Yields the leaves of a Transformer's blocks.

    Args:
      tower: the path of the tower in our model.
      prefix: the prefix of the blocks' names in the library.
      style: whose names the blocks have, such as `open_clip` or `timm`.
      layers: the number of blocks.
      bias: whether queries, keys and values have a bias.
    """
    yield from block_stack(f"{tower}/transformer/blocks", prefix, style, layers, bias)


def block_stack(
    ours: str, prefix: str, style: str, layers: int, bias: bool = True
) -> Iterator[Leaf]:
    """Yields the leaves of a stack of blocks at the path `ours`; arguments as for `blocks`."""
    options: dict[str, Any] = dict(layers=tuple(range(layers)))
    if style == "open_clip":
        yield from in_projection(f"{ours}/attention/qkv", f"{prefix}.{{}}.attn", **options)
    for path, modules in _BLOCKS[style].items():
        names = [f"{prefix}.{{}}.{module}" for module in modules.split()]
        if path.rpartition("/")[2].startswith("ln"):
            yield from norm(f"{ours}/{path}", *names, **options)
        else:
            has_bias = bias or path != "attention/qkv"
            yield from linear(f"{ours}/{path}", *names, bias=has_bias, **options)


def is_plain(vision: VisionConfig) -> bool:
    """Returns whether a tower is the vision Transformer of CLIP's paper."""
    return type(vision) is VisionConfig and has_class_token(vision)


def has_class_token(vision: VisionConfig) -> bool:
    """Returns whether a tower is CLIP's up to its last block, and projects its output."""
    return vision.pool == "class" and vision.ln_pre and not vision.layer_scale and is_bare(vision)


def is_bare(vision: VisionConfig) -> bool:
    """Returns whether a tower has the biases and the projection of CLIP's, and no stem."""
    return (
        vision.projection
        and vision.attention_bias
        and not (vision.stem or vision.registers or vision.patch_bias or vision.projection_bias)
    )
