"""Predicts masked words of a text from the text and from the places of an image.

Source: Sariyildiz et al. 2020, Learning Visual Representations with Caption Annotations (ICMLM).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, VECTOR
from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.cross_attention import CrossAttention
from clip_jax.models.flop_counts import product
from clip_jax.models.head import Head
from clip_jax.models.initializers import LinearInit, clip_text_block, normal
from clip_jax.models.layers import activation_dtype, embedding, layer_norm, linear
from clip_jax.models.positions import resize_line
from clip_jax.models.tower import Params, TextTower, check_blocks, check_layers
from clip_jax.models.transformer import Transformer
from clip_jax.models.words import Words

FUSIONS = ("tfm", "att_fc")
_SECTION = "heads.masked_words"
_TOKENS = normal(0.02)


@dataclasses.dataclass(frozen=True)
class MaskedWordsConfig(Head):
    """The config of a head that predicts masked words.

    Attributes:
      fusion: how text and image are joined: `tfm`, Transformer blocks over the places of the image
        and the tokens together; `att_fc`, attention of the masked tokens to the places, whose
        result alone predicts the words.
      width: features of a token and of a place.
      layers: the number of blocks of `tfm`.
      text_layers: the number of blocks of the head's own text encoder; 0: the tokens of the model's
        text tower are used, a BERT.
      heads: attention heads.
      mlp_ratio: the width of the MLPs' hidden layer, divided by `width`.
      mask_id: with `text_layers=0`, the id of the tokenizer's mask token: 103 in BERT's vocabulary.
      eps: added to the variance in LayerNorms.
    """

    kind: ClassVar[str] = "masked_words"
    fusion: str = "tfm"
    width: int = 512
    layers: int = 2
    text_layers: int = 6
    heads: int = 8
    mlp_ratio: float = 4.0
    mask_id: int = -1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise UserError(
                f"model.{_SECTION}.fusion={self.fusion!r:.80} must be one of {', '.join(FUSIONS)}"
            )
        check_blocks(_SECTION, self)
        check_layers(_SECTION, self.layers, 1)
        check_layers(_SECTION, self.text_layers, 0, "text_layers")

    @property
    def text_sizes(self) -> MaskedWordsConfig:
        """The sizes of the blocks of the head's own text encoder."""
        return dataclasses.replace(self, layers=self.text_layers)

    def resize_positions(self, params: Params, context_length: int) -> Params:
        """Returns the parameters of this head for texts of another length."""
        if not self.text_layers:
            return params
        text = params["text"]
        table = resize_line(text["positional_embedding"], context_length)
        return {**params, "text": {**text, "positional_embedding": table}}

    def build(self, model_config: Any, *, dtype: Any, remat: str, rngs: Any) -> MaskedWordsHead:
        """Builds the module; see `Head.build`.

        Raises:
          UserError: the head has no text encoder, and the text tower gives no features of tokens,
            or `mask_id` is none of its ids.
        """
        if not self.text_layers:
            self._check_tower(model_config.text)
        return MaskedWordsHead(self, model_config, dtype=dtype, remat=remat, rngs=rngs)

    def _check_tower(self, tower: TextTower) -> None:
        if not tower.token_width:
            raise UserError(
                f"model.{_SECTION}.text_layers=0 needs a text tower that gives features of tokens, "
                "such as one with model.text.kind=bert; or set text_layers above 0"
            )
        if not 0 <= self.mask_id < tower.vocab_size:
            raise UserError(
                f"model.{_SECTION}.mask_id={self.mask_id} must be the id of the tokenizer's mask "
                "token: 103 in BERT's vocabulary"
            )

    def flops(
        self, tokens: int, masked: int, places: int, channels: int, vocabulary: int, text_width: int
    ) -> int:
        """Returns the FLOPs of the forward pass of one caption, with the output layer.

        Args:
          tokens: the number of tokens.
          masked: the number of tokens that are predicted.
          places: the number of places of the image.
          channels: the features of each place.
          vocabulary: the number of words, each of which has a logit for every predicted token.
          text_width: the features of a token of the text tower.
        """
        width = self.width
        total = product(places, channels, width) + product(masked, width, vocabulary)
        if self.text_layers:
            total += flop_counts.transformer(self.text_sizes, tokens)
        else:
            total += product(tokens, text_width, width)
        if self.fusion == "tfm":
            return total + flop_counts.transformer(self, places + tokens)
        projections = product(masked, width, 2 * width) + product(places, width, 2 * width)
        return total + projections + flop_counts.attention(masked, places, width)


class TextEncoder(nnx.Module):
    """Transformer blocks over the tokens of a text, all of which a token attends to.

    A masked token is a learned vector in place of its embedding.
    """

    def __init__(
        self,
        config: MaskedWordsConfig,
        model_config: Any,
        *,
        dtype: DTypeLike,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = activation_dtype(dtype)
        width, text = config.width, model_config.text
        self.token_embedding = embedding(
            text.vocab_size, width, init=_TOKENS, dtype=dtype, rngs=rngs
        )
        draw = normal(0.01)
        self.positional_embedding = nnx.Param(
            draw(rngs.params(), (text.context_length, width)), spec=POSITIONS
        )
        self.mask = nnx.Param(_TOKENS(rngs.params(), (width,)), spec=VECTOR)
        self.transformer = Transformer(
            config.text_sizes,
            model_config.activation,
            init=clip_text_block(width, config.text_layers),
            causal=False,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.ln_final = layer_norm(width, config.eps, rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch context"],
        hidden: Bool[Array, "batch context"],
        text: Bool[Array, "batch context"],
    ) -> Float[Array, "batch context width"]:
        """Returns the features of the tokens.

        Args:
          tokens: the texts.
          hidden: which tokens are masked.
          text: which tokens are no padding.
        """
        x = sharding.embed_tokens(self.token_embedding.embedding[...], tokens, self.dtype)
        x = jnp.where(hidden[..., None], self.mask[...].astype(self.dtype), x)
        x = x + self.positional_embedding[: x.shape[1]].astype(self.dtype)
        x = self.transformer(x, text[:, None, None, :])
        return self.ln_final(x).astype(self.dtype)


class MaskedWordsHead(nnx.Module):
    """Joins the features of tokens with those of places, and predicts words at some positions."""

    def __init__(
        self,
        config: MaskedWordsConfig,
        model_config: Any,
        *,
        dtype: DTypeLike,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype = config, activation_dtype(dtype)
        width, text = config.width, model_config.text
        _, channels = model_config.vision.grid_shape()
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.places = linear(channels, width, init=LinearInit(normal(channels**-0.5)), **common)
        if config.text_layers:
            self.text = TextEncoder(config, model_config, remat=remat, **common)
        else:
            inputs = text.token_width
            self.tokens = linear(inputs, width, init=LinearInit(normal(inputs**-0.5)), **common)
        init = clip_text_block(width, config.layers)
        if config.fusion == "tfm":
            self.transformer = Transformer(
                config, model_config.activation, init=init, causal=False, remat=remat, **common
            )
        else:
            self.attention = CrossAttention(width, config.heads, q=init.qkv, out=init.out, **common)
        self.ln_final = layer_norm(width, config.eps, rngs)
        self.output = Words(width, text.vocab_size, **common)

    def __call__(
        self,
        grid: Float[Array, "batch places channels"],
        tokens: Float[Array, "batch context features"],
        text: Bool[Array, "batch context"],
        positions: Int[Array, "batch masked"],
    ) -> Float[Array, "batch masked width"]:
        """Returns the features from which the words at some positions are predicted.

        Args:
          grid: the features of the places of the images.
          tokens: the features of the tokens, from `text` or from the model's text tower.
          text: which tokens are no padding.
          positions: the positions of the tokens that are predicted.
        """
        memory = self.places(grid.astype(self.dtype))
        x = tokens.astype(self.dtype)
        if not self.config.text_layers:
            x = self.tokens(x)
        if self.config.fusion == "tfm":
            count = memory.shape[1]
            visible = jnp.pad(text, ((0, 0), (count, 0)), constant_values=True)
            x = jnp.concatenate([memory, x], axis=1)
            x = _take(self.transformer(x, visible[:, None, None, :]), positions + count)
        else:
            x = self.attention(_take(x, positions), memory)
        return self.ln_final(x).astype(self.dtype)


def _take(
    x: Float[Array, "batch length width"], positions: Int[Array, "batch chosen"]
) -> Float[Array, "batch chosen width"]:
    return jnp.take_along_axis(x, positions[..., None], axis=1)
