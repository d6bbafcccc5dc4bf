"""CoCa's decoder: it continues the text tower's tokens, and reads the image (Yu et al. 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed.param_spec import ParamSpec
from clip_jax.models.coca import CoCaText
from clip_jax.models.coca_configs import MultimodalConfig
from clip_jax.models.cross_attention import (
    CrossAttention,
    Places,
    Stacked,
    read_stacked,
    stacked_places,
)
from clip_jax.models.initializers import BlockInit, clip_text_block, normal
from clip_jax.models.layers import activation_dtype, layer_norm
from clip_jax.models.stack import check_remat, scan, stack
from clip_jax.models.transformer import MLP, Block, Cache, Mask
from clip_jax.models.words import word_logits

_OUTPUT = ParamSpec(("inputs", "vocabulary"), decay=True)

_Seen = Bool[Array, "1 batch length"]  # the tokens that may be attended to
Caches = tuple[Stacked, Stacked, _Seen]  # of the text tower and of the decoder
Memory = tuple[Stacked, Caches]  # of the places and of the tokens


class CrossBlock(nnx.Module):
    """A residual block: attention to the places of an image, then an MLP."""

    def __init__(
        self,
        config: MultimodalConfig,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        norm = partial(layer_norm, config.width, config.eps, rngs, dtype)
        self.ln_1 = norm()
        self.ln_places = norm()
        self.attention = CrossAttention(
            config.width, config.heads, q=init.qkv, out=init.out, dtype=dtype, rngs=rngs
        )
        self.ln_2 = norm()
        self.mlp = MLP(config, activation, init=init, dtype=dtype, rngs=rngs)

    def keys_and_values(self, places: Float[Array, "batch places width"]) -> Places:
        """Returns the keys and values of the places."""
        return self.attention.keys_and_values(self.ln_places(places))

    def __call__(
        self, x: Float[Array, "batch tokens width"], places: Places
    ) -> Float[Array, "batch tokens width"]:
        """Returns the residual stream, given the keys and values of the places."""
        x = x + self.attention.read(self.ln_1(x), places)
        return x + self.mlp(self.ln_2(x))


class BlockPair(nnx.Module):
    """A causal block of the text, then a block that reads the image."""

    def __init__(
        self,
        config: MultimodalConfig,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        common: dict[str, Any] = dict(init=init, dtype=dtype, rngs=rngs)
        self.causal = Block(config, activation, **common)
        self.cross = CrossBlock(config, activation, **common)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        places: Float[Array, "batch places width"],
    ) -> Float[Array, "batch tokens width"]:
        """Returns the residual stream after both blocks."""
        return self.read(x, self.keys_and_values(places), None)

    def keys_and_values(self, places: Float[Array, "batch places width"]) -> Places:
        """Returns the keys and values of the places."""
        return self.cross.keys_and_values(places)

    def read(
        self, x: Float[Array, "batch tokens width"], places: Places, mask: Mask | None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the residual stream, given the keys and values of the places."""
        return self.cross(self.causal(x, True, mask), places)


class Multimodal(nnx.Module):
    """Pairs of blocks and an output layer over the vocabulary of the text tower."""

    def __init__(
        self,
        config: MultimodalConfig,
        model_config: Any,
        *,
        dtype: DTypeLike,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype = config, activation_dtype(dtype)
        self.remat = check_remat(remat)
        width, words = config.width, model_config.text.vocab_size
        init = clip_text_block(width, config.layers)
        make = partial(BlockPair, config, model_config.activation, init=init, dtype=dtype)
        self.blocks = stack(make, config.layers, rngs)
        self.ln_final = layer_norm(width, config.eps, rngs)
        draw = normal(width**-0.5)
        self.kernel = nnx.Param(draw(rngs.params(), (width, words)), spec=_OUTPUT)

    def __call__(
        self,
        grid: Float[Array, "batch places width"],
        words: Float[Array, "batch tokens width"],
    ) -> Float[Array, "batch tokens width"]:
        """Returns the features from which the token after each one is predicted.

        Args:
          grid: the features of the places of the images.
          words: the output of the text tower for each token.
        """

        def apply(pair: BlockPair, x: Array, places: Array) -> Array:
            return pair(x, places)

        places = grid.astype(self.dtype)
        x = scan(self.blocks, words.astype(self.dtype), apply, self.remat, rest=(places,))
        return self.ln_final(x).astype(self.dtype)

    def writer(self, text: CoCaText) -> TextAndDecoder:
        """Returns what writes captions with this decoder; see `generation.Writer`."""
        return TextAndDecoder(text, self)


class TextAndDecoder:
    """Writes captions with a text tower and the decoder on top of it.

    Args:
      text: the text tower.
      decoder: the decoder.
    """

    needs_start = True

    def __init__(self, text: CoCaText, decoder: Multimodal) -> None:
        self.text, self.decoder = text, decoder

    @property
    def output_kernel(self) -> Float[Array, "width vocabulary"]:
        """The kernel of the output layer."""
        return self.decoder.kernel[...]

    @property
    def output_bias(self) -> None:
        """The output layer has no bias."""

    def caption_features(
        self, grid: Float[Array, "batch places width"], tokens: Int[Array, "batch context"]
    ) -> Float[Array, "batch context width"]:
        """Returns the features that predict each token; those of the first, the start, are zero."""
        _, words = self.text.features_and_words(tokens)
        hidden = self.decoder(grid, words[:, :-1])
        return jnp.pad(hidden, ((0, 0), (1, 0), (0, 0)))

    def start_scoring(self, grid: Float[Array, "batch places width"]) -> Stacked:
        """Returns the keys and values of the places, stacked by layer."""
        return stacked_places(self.decoder.blocks, grid.astype(self.decoder.dtype))

    def prefix_features(
        self,
        memory: Stacked,
        tokens: Int[Array, " prefixes"],
        lengths: Int[Array, " prefixes"],
        visible: Bool[Array, "prefixes prefixes"],
    ) -> Float[Array, "batch prefixes width"]:
        """Returns the features that predict the token after each prefix; see `ScoringDecoder`.

        The empty prefix predicts nothing: texts begin with a start.
        """
        text, decoder = self.text, self.decoder
        itself = jnp.eye(len(lengths), dtype=bool)
        mask = (visible & (lengths > 0) | itself)[None, None]
        # as `CoCaText._with_class` hides what follows padding
        before = visible & (lengths == lengths[:, None] - 1) & (lengths > 0)
        hidden = jnp.any(before & (tokens == text.pad_id), axis=1)
        seen = visible & (lengths > 0) & ~hidden | itself & (lengths == 0)
        x = text.token_embedding.embedding[...][tokens]
        x = x + text.positional_embedding[...][jnp.maximum(lengths - 1, 0)]
        x = text.transformer(x[None].astype(text.dtype), seen[None, None])[0].astype(decoder.dtype)
        x = jnp.broadcast_to(x, (memory[0].shape[1], *x.shape))
        x = read_stacked(decoder.blocks, x, memory, mask)
        return decoder.ln_final(x).astype(decoder.dtype)

    def start_generation(self, grid: Float[Array, "batch places width"], length: int) -> Memory:
        """Returns the memory of images without tokens; see `generation.Writer`."""
        decoder, batch = self.decoder, len(grid)
        places = self.start_scoring(grid)
        text_cache = _empty(self.text.config, batch, length, self.text.dtype)
        cache = _empty(decoder.config, batch, length, decoder.dtype)
        seen = jnp.broadcast_to(jnp.arange(length) == 0, (1, batch, length))
        return places, (text_cache, cache, seen)

    def next_logits(
        self, token: Int[Array, " batch"] | None, position: Int[Array, ""], memory: Memory
    ) -> tuple[Float[Array, "batch vocabulary"], Memory]:
        """Returns the logits of a token and the next memory; see `generation.Writer`."""
        assert token is not None
        text, decoder = self.text, self.decoder
        places, (text_cache, cache, seen) = memory
        here = position - 1  # where the token is
        following = (jnp.arange(seen.shape[2]) == position)[None, None]
        seen = seen | (following & (token != text.pad_id)[None, :, None])
        x = text.token_embedding.embedding[...][token] + text.positional_embedding[...][here]
        x = x[:, None].astype(text.dtype)
        graph, params = nnx.split(text.transformer.blocks, nnx.Param)

        def text_layer(x: Array, inputs: Any) -> tuple[Array, Cache]:
            params, cache = inputs
            return nnx.merge(graph, params).step(x, cache, here, seen[0])

        x, text_cache = jax.lax.scan(text_layer, x, (params, text_cache))
        pairs, pair_params = nnx.split(decoder.blocks, nnx.Param)

        def pair_layer(x: Array, inputs: Any) -> tuple[Array, Cache]:
            params, places, cache = inputs
            pair = nnx.merge(pairs, params)
            x, cache = pair.causal.step(x, cache, here)
            return pair.cross(x, places), cache

        x, cache = jax.lax.scan(pair_layer, x.astype(decoder.dtype), (pair_params, places, cache))
        hidden = decoder.ln_final(x)[:, 0].astype(decoder.dtype)
        logits = word_logits(hidden, decoder.kernel[...], None)
        return logits, (places, (text_cache, cache, seen))


def _empty(config: Any, batch: int, length: int, dtype: DTypeLike) -> Stacked:
    """Returns empty keys and values of a Transformer's blocks."""
    shape = (config.layers, batch, length, config.heads, config.width // config.heads)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
