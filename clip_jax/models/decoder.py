"""A text decoder that attends to the places of an image: the head of captioning objectives.

Sources: Desai and Johnson 2021, VirTex (both directions, tied output); Tschannen et al. 2023, Image
Captioners Are Scalable Vision Learners Too (parallel prediction).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, VECTOR, ParamSpec
from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.cross_attention import (
    CrossAttention,
    Places,
    Stacked,
    read_stacked,
    stacked_places,
)
from clip_jax.models.flop_counts import product
from clip_jax.models.head import Head
from clip_jax.models.initializers import BlockInit, LinearInit, clip_text_block, normal
from clip_jax.models.layers import activation_dtype, embedding, layer_norm, linear
from clip_jax.models.positions import resize_line
from clip_jax.models.stack import check_remat, scan, stack
from clip_jax.models.tower import MAX_LAYERS, Params
from clip_jax.models.transformer import MLP, Attention, Cache, Mask
from clip_jax.models.words import word_logits

_OUTPUT_BIAS = ParamSpec(("vocabulary",), decay=False)
_TOKENS = normal(0.02)

Memory = tuple[Stacked, Stacked]  # of the places and of the tokens


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Head):
    """The config of a text decoder.

    Attributes:
      width: features of a token.
      layers: the number of blocks, in each direction.
      heads: attention heads.
      mlp_ratio: the width of the MLPs' hidden layer, divided by `width`.
      both_ways: whether a second stack of blocks predicts captions backward. It shares the
        embedding and the output layer with the first.
      eps: added to the variance in LayerNorms.
    """

    kind: ClassVar[str] = "decoder"
    width: int = 512
    layers: int = 6
    heads: int = 8
    mlp_ratio: float = 4.0
    both_ways: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= MAX_LAYERS:
            raise UserError(f"a decoder's layers={self.layers} must be from 1 to {MAX_LAYERS}")
        if self.width % self.heads:
            raise UserError(f"a decoder's heads={self.heads} do not divide width={self.width}")

    def build(self, model_config: Any, *, dtype: Any, remat: str, rngs: Any) -> Decoder:
        """Builds the module; see `Head.build`."""
        return Decoder(self, model_config, dtype=dtype, remat=remat, rngs=rngs)

    def resize_positions(self, params: Params, context_length: int) -> Params:
        """Returns the parameters of this head for texts of another length."""
        table = resize_line(params["positional_embedding"], context_length)
        return {**params, "positional_embedding": table}

    def flops(self, tokens: int, places: int, channels: int, vocabulary: int) -> int:
        """Returns the FLOPs of the forward pass of one caption, with the output layer.

        Args:
          tokens: the number of tokens that are predicted.
          places: the number of places of the image.
          channels: the features of each place.
          vocabulary: the number of words, each of which has a logit for every token.
        """
        width = self.width
        cross = product(tokens, width, 2 * width) + product(places, width, 2 * width)
        cross += flop_counts.attention(tokens, places, width)
        blocks = flop_counts.transformer(self, tokens) + self.layers * cross
        ways = 2 if self.both_ways else 1
        return product(places, channels, width) + ways * (
            blocks + product(tokens, width, vocabulary)
        )


class DecoderBlock(nnx.Module):
    """A residual block: attention to earlier tokens, attention to the image, MLP."""

    def __init__(
        self,
        config: DecoderConfig,
        activation: str,
        *,
        init: BlockInit,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        norm = partial(layer_norm, config.width, config.eps, rngs, dtype)
        common: dict[str, Any] = dict(init=init, dtype=dtype, rngs=rngs)
        self.ln_1 = norm()
        self.attention = Attention(config, **common)
        self.ln_cross = norm()
        self.cross_attention = CrossAttention(
            config.width, config.heads, q=init.qkv, out=init.out, dtype=dtype, rngs=rngs
        )
        self.ln_2 = norm()
        self.mlp = MLP(config, activation, **common)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        memory: Float[Array, "batch places width"],
        mask: Bool[Array, "batch 1 tokens tokens"] | None,
    ) -> Float[Array, "batch tokens width"]:
        """Returns the residual stream; without a mask attention is causal."""
        return self.read(x, self.keys_and_values(memory), mask)

    def keys_and_values(self, memory: Float[Array, "batch places width"]) -> Places:
        """Returns the keys and values of the places."""
        return self.cross_attention.keys_and_values(memory)

    def read(
        self, x: Float[Array, "batch tokens width"], memory: Places, mask: Mask | None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the residual stream, given the keys and values of the places."""
        x = x + self.attention(self.ln_1(x), mask is None, mask)
        x = x + self.cross_attention.read(self.ln_cross(x), memory)
        return x + self.mlp(self.ln_2(x))

    def step(
        self,
        x: Float[Array, "batch 1 width"],
        memory: Places,
        cache: Cache,
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "batch 1 width"], Cache]:
        """Returns the residual stream at one position, see `Attention.step`."""
        y, cache = self.attention.step(self.ln_1(x), cache, position)
        x = x + y
        x = x + self.cross_attention.read(self.ln_cross(x), memory)
        return x + self.mlp(self.ln_2(x)), cache


class Decoder(nnx.Module):
    """A Transformer that predicts each token of a caption from the image and the tokens before.

    Its input begins with a learned vector in place of the first token, which has none before it.
    """

    needs_start = False

    def __init__(
        self,
        config: DecoderConfig,
        model_config: Any,
        *,
        dtype: DTypeLike,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype = config, activation_dtype(dtype)
        self.remat = check_remat(remat)
        width, text = config.width, model_config.text
        _, channels = model_config.vision.grid_shape()
        init = clip_text_block(width, config.layers)
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.memory = linear(channels, width, init=LinearInit(normal(channels**-0.5)), **common)
        self.token_embedding = embedding(text.vocab_size, width, init=_TOKENS, **common)
        draw = normal(0.01)
        self.positional_embedding = nnx.Param(
            draw(rngs.params(), (text.context_length, width)), spec=POSITIONS
        )
        self.start = nnx.Param(_TOKENS(rngs.params(), (width,)), spec=VECTOR)
        self.hidden = nnx.Param(_TOKENS(rngs.params(), (width,)), spec=VECTOR)
        make = partial(DecoderBlock, config, model_config.activation, init=init, dtype=dtype)
        self.forward_blocks = stack(make, config.layers, rngs)
        if config.both_ways:
            self.backward_blocks = stack(make, config.layers, rngs)
        self.ln_final = layer_norm(width, config.eps, rngs)
        self.output_bias = nnx.Param(jnp.zeros(text.vocab_size), spec=_OUTPUT_BIAS)

    def __call__(
        self,
        grid: Float[Array, "batch places channels"],
        tokens: Int[Array, "batch context"],
        *,
        backward: bool = False,
        parallel: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch context width"]:
        """Returns the features from which each token is predicted.

        Args:
          grid: the features of the places of the images.
          tokens: the captions; position i of the result depends on the tokens before i only.
          backward: whether the second stack of blocks is used, on captions that are reversed.
          parallel: the captions whose tokens are all hidden: each is predicted from the image and
            its position alone.
        """
        memory = self.memory(grid.astype(self.dtype))
        x = self._inputs(tokens, parallel)
        mask = None
        if parallel is not None:
            places = jnp.arange(x.shape[1])
            causal = places <= places[:, None]
            mask = (parallel[:, None, None] | causal)[:, None]

        def apply(block: DecoderBlock, x: Array, memory: Array, mask: Any) -> Array:
            return block(x, memory, mask)

        blocks = self.backward_blocks if backward else self.forward_blocks
        x = scan(blocks, x, apply, self.remat, rest=(memory, mask))
        return self.ln_final(x).astype(self.dtype)

    def writer(self, text: nnx.Module) -> Decoder:
        """Returns what writes captions with this decoder: itself, without the text tower."""
        del text
        return self

    def start_generation(self, grid: Float[Array, "batch places channels"], length: int) -> Memory:
        """Returns the keys and values of the places, and empty ones of the tokens, by layer.

        See `generation.Writer`.
        """
        size = self.config.width // self.config.heads
        shape = (self.config.layers, len(grid), length, self.config.heads, size)
        empty = jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)
        return self.start_scoring(grid), empty

    def caption_features(
        self, grid: Float[Array, "batch places channels"], tokens: Int[Array, "batch context"]
    ) -> Float[Array, "batch context width"]:
        """Returns the features from which each token is predicted, forward."""
        return self(grid, tokens)

    def start_scoring(self, grid: Float[Array, "batch places channels"]) -> Stacked:
        """Returns the keys and values of the places, stacked by layer."""
        return stacked_places(self.forward_blocks, self.memory(grid.astype(self.dtype)))

    def prefix_features(
        self,
        memory: Stacked,
        tokens: Int[Array, " prefixes"],
        lengths: Int[Array, " prefixes"],
        visible: Bool[Array, "prefixes prefixes"],
    ) -> Float[Array, "batch prefixes width"]:
        """Returns the features that predict the token after each prefix; see `ScoringDecoder`."""
        x = self.token_embedding.embedding[...][tokens]
        x = jnp.where(lengths[:, None] == 0, self.start[...], x)
        x = (x + self.positional_embedding[...][lengths]).astype(self.dtype)
        x = jnp.broadcast_to(x, (memory[0].shape[1], *x.shape))
        x = read_stacked(self.forward_blocks, x, memory, visible[None, None])
        return self.ln_final(x).astype(self.dtype)

    def next_logits(
        self, token: Int[Array, " batch"] | None, position: Int[Array, ""], memory: Memory
    ) -> tuple[Float[Array, "batch vocabulary"], Memory]:
        """Returns the logits of a token and the next memory; see `generation.Writer`."""
        places, caches = memory
        if token is None:
            x = jnp.broadcast_to(self.start[...], (places[0].shape[1], self.config.width))
        else:
            x = self.token_embedding.embedding[...][token]
        x = (x + self.positional_embedding[...][position])[:, None].astype(self.dtype)
        graph, params = nnx.split(self.forward_blocks, nnx.Param)

        def layer(x: Array, inputs: Any) -> tuple[Array, Cache]:
            params, places, cache = inputs
            return nnx.merge(graph, params).step(x, places, cache, position)

        x, caches = jax.lax.scan(layer, x, (params, places, caches))
        hidden = self.ln_final(x)[:, 0].astype(self.dtype)
        logits = word_logits(hidden, self.output_kernel, self.output_bias[...])
        return logits, (places, caches)

    def _inputs(
        self, tokens: Int[Array, "batch context"], parallel: Bool[Array, " batch"] | None
    ) -> Float[Array, "batch context width"]:
        """Returns the embeddings of the tokens before each position, with positions."""
        table = self.token_embedding.embedding[...]
        x = sharding.embed_tokens(table, tokens[:, :-1], self.dtype)
        if parallel is not None:
            x = jnp.where(parallel[:, None, None], self.hidden[...].astype(self.dtype), x)
        start = jnp.broadcast_to(self.start[...].astype(self.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([start, x], axis=1)
        return x + self.positional_embedding[: x.shape[1]].astype(self.dtype)

    @property
    def output_kernel(self) -> Float[Array, "width vocabulary"]:
        """The kernel of the output layer: the transpose of the token embedding."""
        return self.token_embedding.embedding[...].T
