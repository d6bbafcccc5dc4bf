"""Configs of the towers and the decoder of CoCa (Yu et al. 2022), as open_clip builds them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.flop_counts import product
from clip_jax.models.head import Head
from clip_jax.models.registry import MODULES, kind_of
from clip_jax.models.text_configs import TextConfig
from clip_jax.models.tower import MAX_LAYERS, Params, TextTower, check_grid
from clip_jax.models.vision_configs import VisionConfig
from clip_jax.tokenizers.protocol import Tokenizer


@dataclasses.dataclass(frozen=True)
class CoCaVisionConfig(VisionConfig):
    """The config of a vision Transformer whose output is read by learned queries.

    They attend to the output of the blocks, class token included. The first is the output of the
    tower, the others are its places, of which a decoder reads.

    Attributes:
      pool_queries: the number of queries.
      pool_width: features of a query; open_clip has `embed_dim`.
      pool_heads: the heads of their attention.
    """

    kind: ClassVar[str] = "coca_vit"
    pool_queries: int = 256
    pool_width: int = 512
    pool_heads: int = 8

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""
        super().check(embed_dim)
        if self.pool != "class" or self.registers or not self.projection:
            raise UserError(
                f"model.vision.kind={self.kind} needs pool='class', registers=0 and a projection"
            )
        if self.pool_queries < 2 or self.pool_width % self.pool_heads:
            raise UserError(
                f"model.vision.pool_queries={self.pool_queries} must be at least 2, and "
                f"model.vision.pool_heads={self.pool_heads} divide "
                f"model.vision.pool_width={self.pool_width}"
            )

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts that the features of places do not need, see `VisionTower`."""
        return ("projection",)

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of queries that a decoder reads, and their features."""
        return self.pool_queries - 1, self.pool_width

    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image.

        Those of the queries' own projection do not count: it is computed once for all images.
        """
        queries, tokens, width = self.pool_queries, self.tokens, self.pool_width
        pool = product(tokens, self.width, 2 * width) + product(queries, width, width)
        pool += flop_counts.attention(queries, tokens, width) + product(1, width, embed_dim)
        return self._patch_flops() + flop_counts.transformer(self, tokens) + pool


@dataclasses.dataclass(frozen=True)
class CoCaTextConfig(TextConfig):
    """The config of a text Transformer whose output is that of a class token after the text.

    The outputs of the other tokens are the input of a decoder that reads the image, too
    (`MultimodalConfig`).

    Attributes:
      context_length: the number of tokens of a text, without the class token.
      pad_id: the padding token.
    """

    kind: ClassVar[str] = "coca_transformer"
    context_length: int = 76
    pad_id: int = 0

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        super().check()
        if not self.layers or not self.causal or self.pool != "end":
            raise UserError(
                f"model.text.kind={self.kind} reads its class token and is causal: it needs "
                "layers above 0, causal=True and pool='end'"
            )

    @property
    def positions(self) -> int:
        """The length of the table of positions: that of the tokens and the class token."""
        return self.context_length + 1

    @property
    def blind_to_padding(self) -> bool:
        """Whether tokens after the end of a text change nothing; the class token follows them."""
        return False

    def flops(self, embed_dim: int, tokens: int) -> int:
        """Returns the FLOPs of the forward pass of one text of `tokens` tokens."""
        return super().flops(embed_dim, tokens + 1)

    def resize_positions(self, params: Params, context_length: int, keep: int = 0) -> Params:
        """Returns the parameters of this tower for texts of another length."""
        import jax.numpy as jnp

        from clip_jax.models.positions import resize_line

        table = params["positional_embedding"]
        table = jnp.concatenate([resize_line(table[:-1], context_length, keep), table[-1:]])
        return {**params, "positional_embedding": table}

    def check_tokenizer(self, name: str, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tower cannot read the rows of a tokenizer."""
        TextTower.check_tokenizer(self, name, tokenizer)
        if tokenizer.pad_id != self.pad_id:
            raise UserError(
                f"tokenizer {name} pads with {tokenizer.pad_id}: set config.model.text.pad_id to it"
            )
        if tokenizer.sot_id is None:
            raise UserError(
                f"tokenizer {name} has no token that begins a text, from which this model "
                "predicts the first word: use 'clip' or another one that has"
            )


@dataclasses.dataclass(frozen=True)
class MultimodalConfig(Head):
    """The config of a decoder on top of the text tower, whose tokens are its input.

    Attributes:
      width: features of a token: those of the text tower and of the places of the image.
      layers: the number of pairs of blocks; the second of a pair attends to the image.
      heads: attention heads.
      mlp_ratio: the width of the MLPs' hidden layer, divided by `width`.
      eps: added to the variance in LayerNorms.
    """

    kind: ClassVar[str] = "multimodal"
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= MAX_LAYERS:
            raise UserError(f"a decoder's layers={self.layers} must be from 1 to {MAX_LAYERS}")
        if self.width % self.heads:
            raise UserError(f"a decoder's heads={self.heads} do not divide width={self.width}")

    def build(self, model_config: Any, *, dtype: Any, remat: str, rngs: Any) -> Any:
        """Builds the module; see `Head.build`."""
        self.check(model_config)
        return MODULES.get(self.kind)(self, model_config, dtype=dtype, remat=remat, rngs=rngs)

    def check(self, model_config: Any) -> None:
        """Raises UserError if the towers of a model do not fit this decoder."""
        text, vision = model_config.text, model_config.vision
        if not isinstance(text, CoCaTextConfig):
            raise UserError(
                f"a multimodal decoder continues the tokens of a text tower of kind "
                f"{CoCaTextConfig.kind}, not {kind_of(text)}: start from "
                "--config=configs/coca_b32.py"
            )
        check_grid(vision)
        channels = vision.grid_shape()[1]
        if not self.width == text.width == channels:
            raise UserError(
                f"a multimodal decoder's width={self.width} must be model.text.width={text.width} "
                f"and the features of the image's places, {channels}"
            )

    def flops(self, tokens: int, places: int, vocabulary: int) -> int:
        """Returns the FLOPs of the forward pass of one caption, with the output layer.

        Args:
          tokens: the number of tokens that are predicted.
          places: the number of places of the image.
          vocabulary: the number of words, each of which has a logit for every token.
        """
        width = self.width
        cross = product(tokens, width, 2 * width) + product(places, width, 2 * width)
        cross += flop_counts.attention(tokens, places, width) + flop_counts.mlp(self, tokens)
        blocks = flop_counts.transformer(self, tokens) + self.layers * cross
        return blocks + product(tokens, width, vocabulary)
