"""CLIP: an image tower and a text tower that meet on a unit sphere."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from clip_jax.distributed import sharding
from clip_jax.models.architectures import name_of
from clip_jax.models.bert import BERT
from clip_jax.models.efficientnet import EfficientNet
from clip_jax.models.model_config import BertConfig, CLIPConfig, TextConfig, VisionConfig
from clip_jax.models.pixels import given_pixels
from clip_jax.models.resnet import ModifiedResNet
from clip_jax.models.text import TextTransformer
from clip_jax.models.token_ids import given_tokens
from clip_jax.models.vit import VisionTransformer

_TOWERS: dict[str, Callable[..., nnx.Module]] = {
    "vit": VisionTransformer,
    "resnet": ModifiedResNet,
    "efficientnet": EfficientNet,
    "transformer": TextTransformer,
    "bert": BERT,
}


Keys = Key[Array, ""] | Key[Array, " images"]
Params = dict[str, Any]
Variables = tuple[Params, Params]  # parameters and batch statistics


class Output(NamedTuple):
    """What a batch becomes: unit-norm features (fp32), the factor on their cosines, a bias."""

    image_features: Float[Array, "images embed_dim"]
    text_features: Float[Array, "texts embed_dim"]
    logit_scale: Float[Array, ""]
    logit_bias: Float[Array, ""] | None = None

    @property
    def logits_per_image(self) -> Float[Array, "images texts"]:
        """How well each text fits each image: scaled cosines, and the bias where there is one."""
        logits = self.logit_scale * self.image_features @ self.text_features.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    @property
    def logits_per_text(self) -> Float[Array, "texts images"]:
        """The transpose of `logits_per_image`."""
        return self.logits_per_image.T


def normalize(features: Float[Array, "*batch embed_dim"]) -> Float[Array, "*batch embed_dim"]:
    """Features scaled to length one, in fp32; a zero vector stays zero."""
    features = features.astype(jnp.float32)
    square = jnp.sum(features * features, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class CLIP(nnx.Module):
    """Two towers and a learned temperature (section 2.3).

    Args:
      config: the architecture.
      dtype: one of `model_config.DTYPES`; parameters, LayerNorms and features' norms stay fp32.
      remat: what of a layer is recomputed in the backward pass, see `transformer.Transformer`.
      chunks: rows of each device that a layer of the image and of the text Transformer takes at a
        time; 0: all.
      rngs: where initial values come from.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunks: tuple[int, int] = (0, 0),
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        common = dict(dtype=dtype, remat=remat, rngs=rngs)
        self.vision = _tower(config, config.vision, chunks[0], common)
        self.text = _tower(config, config.text, chunks[1], common)
        if config.log_scale:
            self.logit_scale = nnx.Param(jnp.asarray(-math.log(config.temperature), jnp.float32))
        else:
            self.temperature = nnx.Param(jnp.asarray(config.temperature, jnp.float32))
        if config.logit_bias is not None:
            self.logit_bias = nnx.Param(jnp.asarray(config.logit_bias, jnp.float32))

    @property
    def scale(self) -> Float[Array, ""]:
        """The learned factor on the cosines."""
        if self.config.log_scale:
            return jnp.exp(self.logit_scale[...].astype(jnp.float32))
        return 1 / self.temperature[...].astype(jnp.float32)

    def encode_image(
        self,
        image: Any,
        *,
        normalized: bool = False,
        key: Keys | None = None,
    ) -> Float[Array, "batch embed_dim"]:
        """Image features.

        Args:
          image: [batch, size, size, 3]: integers in 0…255, or floats that are normalised already;
            see `pixels.given_pixels`.
          normalized: whether features have length one.
          key: as in a call.

        Raises:
          UserError: another shape or type, or values that are no pixels.
        """
        image = given_pixels(image, self.config.vision)
        if key is None:
            return self._encode("vision", image, normalized)
        keys = key if key.ndim else jax.random.split(key, len(image))
        features = self.vision(image, key=keys)
        return normalize(features) if normalized else features

    def encode_text(
        self, tokens: Any, *, normalized: bool = False
    ) -> Float[Array, "batch embed_dim"]:
        """Text features.

        Args:
          tokens: [batch, context], whole numbers below the vocabulary's size; see
            `token_ids.given_tokens`.
          normalized: whether features have length one.

        Raises:
          UserError: texts, another shape or type, or ids of another tokenizer.
        """
        return self._encode("text", given_tokens(tokens, self.config.text), normalized)

    def _encode(self, tower: str, rows: Array, normalized: bool) -> Float[Array, "batch embed_dim"]:
        graph, params, stats = nnx.split(self, nnx.Param, nnx.BatchStat)
        return _features(graph, (params, stats), rows, tower, normalized)

    def __call__(
        self,
        image: Any,
        tokens: Any,
        *,
        key: Keys | None = None,
    ) -> Output:
        """Unit-norm features of both and the scale, from which `logits_per_image` are made.

        `key` says that this is training: it turns on what is random, and batch statistics. It is
        one for all images, or one for each: an image's chance is then its own in any batch.
        """
        return self.compared(
            self.encode_image(image, normalized=True, key=key),
            self.encode_text(tokens, normalized=True),
        )

    def compared(
        self, image: Float[Array, "images embed_dim"], text: Float[Array, "texts embed_dim"]
    ) -> Output:
        """Unit-norm features with the learned numbers that make logits of them."""
        bias = None if self.config.logit_bias is None else self.logit_bias[...].astype(jnp.float32)
        return Output(image, text, self.scale, bias)

    def __repr__(self) -> str:
        c = self.config
        patch = f"/{c.vision.patch_size}" if isinstance(c.vision, VisionConfig) else ""
        return (
            f"CLIP({name_of(c) or 'custom'}: image {c.vision.kind} {c.vision.image_size}px{patch} "
            f"{_depth(c.vision)}×{c.vision.width}, text {c.text.kind} {c.text.context_length} of "
            f"{c.text.vocab_size:,} tokens {c.text.layers}×{c.text.width}, "
            f"embed_dim {c.embed_dim}, {parameter_count(self):,} parameters)"
        )

    __str__ = __repr__


def _tower(config: CLIPConfig, tower: Any, chunk: int, common: dict[str, Any]) -> Any:
    if isinstance(tower, (VisionConfig, TextConfig, BertConfig)):
        common = {**common, "chunk": chunk}
    return _TOWERS[tower.kind](tower, config.embed_dim, config.activation, **common)


# Compiled as a whole, so that a notebook's first call is one program and not hundreds.
@partial(jax.jit, static_argnums=(0, 3, 4))
def _features(graph: nnx.GraphDef, held: Any, rows: Any, tower: str, normalized: bool) -> Any:
    features = getattr(nnx.merge(graph, *held), tower)(rows)
    return normalize(features) if normalized else features


def _depth(tower: Any) -> str:
    depth = tower.depth if tower.kind == "efficientnet" else tower.layers
    return "-".join(map(str, depth)) if isinstance(depth, tuple) else str(depth)


def abstract_model(
    config: CLIPConfig,
    dtype: str = "float32",
    remat: str = "none",
    chunks: tuple[int, int] = (0, 0),
) -> CLIP:
    """The model's structure with shapes in place of arrays: nothing is allocated."""
    return nnx.merge(*_abstract(config, dtype, remat, chunks))


@lru_cache(maxsize=32)
def _abstract(
    config: CLIPConfig, dtype: str, remat: str, chunks: tuple[int, int]
) -> tuple[nnx.GraphDef, nnx.State]:
    def make() -> CLIP:
        return CLIP(config, dtype=dtype, remat=remat, chunks=chunks, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(make))


def assembled(graph: nnx.GraphDef, held: Variables) -> CLIP:
    """The model of these variables inside a program over a mesh, see `sharding.gathered`."""
    params, stats = held
    return nnx.merge(graph, sharding.gathered(params), stats)


def variables(model: CLIP) -> Variables:
    """A model's parameters and batch statistics as nested dictionaries of arrays (or shapes)."""
    params, stats = nnx.state(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def parameter_count(model: nnx.Module) -> int:
    """How many numbers a model (or its `nnx.eval_shape`) learns."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
