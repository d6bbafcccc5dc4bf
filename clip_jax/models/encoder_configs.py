"""Configs of text encoders that come pretrained, and what they have in common with BERT's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import PROJECTIONS, TransformerTower, WithProjection
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import (
    Params,
    TextTower,
    check_activation,
    check_blocks,
    check_layers,
    hidden_width,
)
from clip_jax.tokenizers.protocol import Tokenizer


class EncoderTower(TransformerTower, TextTower):
    """A text encoder in which all tokens that are no padding attend to each other.

    Attributes:
      pad_id: the padding token; no token attends to it.
    """

    pad_id: int

    @property
    def blind_to_padding(self) -> bool:
        """Whether tokens after the end of a text change nothing, so that they can be cut off."""
        return True

    @property
    def token_width(self) -> int:
        """The number of features of each token."""
        return self.width

    @property
    def any_length(self) -> bool:
        """Whether the same parameters serve any length up to that of their table of positions."""
        return True

    def resize_positions(self, params: Params, context_length: int, keep: int = 0) -> Params:
        """Returns the parameters as they are: no table has a row for each token of a text."""
        return params

    def check_tokenizer(self, name: str, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tower cannot read the rows of a tokenizer."""
        TextTower.check_tokenizer(self, name, tokenizer)
        if tokenizer.pad_id != self.pad_id:
            raise UserError(
                f"tokenizer {name} pads with {tokenizer.pad_id}: set config.model.text.pad_id to it"
            )

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{TextTower.summary(self)} {self.layers}×{self.width}"


class ProjectedEncoder(EncoderTower, WithProjection):
    """A text encoder of transformers, as open_clip projects it to the embedding space.

    No layer of its projection has a bias.

    Attributes:
      pool: what is projected, one of `pools`.
      pools: the poolings of this kind of encoder.
    """

    pools: ClassVar[tuple[str, ...]] = ("mean", "first")
    pool: str

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        check_blocks("text", self)
        check_layers("text", self.layers, 1)
        if self.pool not in self.pools:
            raise UserError(f"model.text.pool={self.pool!r:.80} must be {' or '.join(self.pools)}")
        if self.projection not in PROJECTIONS:
            raise UserError(
                f"model.text.projection={self.projection!r:.80} must be one of "
                f"{', '.join(PROJECTIONS)}"
            )
        if self.pad_id >= self.vocab_size:
            raise UserError(
                f"model.text.pad_id={self.pad_id} must be below "
                f"model.text.vocab_size={self.vocab_size}"
            )

    def projection_hidden(self, embed_dim: int) -> int:
        """Returns the width of the hidden layer of the projection `mlp`."""
        return (self.width + embed_dim) // 2

    def flops(self, embed_dim: int, tokens: int) -> int:
        """Returns the FLOPs of the forward pass of one text of `tokens` tokens."""
        return self.encoder_flops(tokens) + self.projection_flops(self.width, embed_dim)

    def encoder_flops(self, tokens: int) -> int:
        """Returns the FLOPs of the forward pass up to the output of the last block."""
        return flop_counts.transformer(self, tokens)


@dataclasses.dataclass(frozen=True)
class RobertaConfig(ProjectedEncoder):
    """The config of a RoBERTa (Liu et al. 2019) or an XLM-RoBERTa (Conneau et al. 2019).

    Attributes:
      pool: the output: `mean`, the mean over all tokens that are no padding; `first`, that of the
        first token; or `tanh`, the same after a layer with a tanh, which RoBERTa calls its pooler.
      projection: from the output to `embed_dim`: `none`; `linear`, a matrix; or `mlp`, two of them
        with a GELU between. None has a bias.
      activation: the activation of its MLPs; empty for that of the model.
      positions: length of the table of positions, of which the first `pad_id + 1` are unused; texts
        have `context_length` tokens.
      token_types: length of the table of segments, of which only the first is used.
      pad_id: the padding token; no token attends to it.
    """

    kind: ClassVar[str] = "roberta"
    pools: ClassVar[tuple[str, ...]] = ("mean", "first", "tanh")
    vocab_size: int = 50265
    context_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    pool: str = "mean"
    projection: str = "linear"
    activation: str = "gelu"
    positions: int = 514
    token_types: int = 1
    pad_id: int = 1
    eps: float = 1e-5

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        ProjectedEncoder.check(self)
        check_activation("text", self.activation)
        if self.context_length + self.pad_id + 1 > self.positions:
            raise UserError(
                f"model.text.context_length={self.context_length} is above the "
                f"{max(0, self.positions - self.pad_id - 1)} tokens for which "
                f"model.text.positions={self.positions} has room after model.text.pad_id="
                f"{self.pad_id}"
            )

    @property
    def pooler(self) -> bool:
        """Whether it has the layer with a tanh."""
        return self.pool == "tanh"

    def flops(self, embed_dim: int, tokens: int) -> int:
        """Returns the FLOPs of the forward pass of one text of `tokens` tokens."""
        pooler = product(1, self.width, self.width) if self.pooler else 0
        return ProjectedEncoder.flops(self, embed_dim, tokens) + pooler


@dataclasses.dataclass(frozen=True)
class T5Config(ProjectedEncoder):
    """The config of the encoder of an mT5 (Xue et al. 2020), a T5 with gated MLPs.

    Attributes:
      pool: the output: `mean`, the mean over all tokens that are no padding, or `first`, that of
        the first token.
      projection: from the output to `embed_dim`: `none`; `linear`, a matrix; or `mlp`, two of them
        with a GELU between. None has a bias.
      buckets: the number of ranges of relative positions, half of them for each direction.
      max_distance: the distance from which all positions are in the last range.
      pad_id: the padding token; no token attends to it.
      eps: the number that the norms add to the mean of squares.
    """

    kind: ClassVar[str] = "t5"
    in_chunks: ClassVar[bool] = False  # a bias of relative positions is no row of a batch
    vocab_size: int = 250112
    context_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 8 / 3
    pool: str = "mean"
    projection: str = "linear"
    buckets: int = 32
    max_distance: int = 128
    pad_id: int = 0
    eps: float = 1e-6

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        ProjectedEncoder.check(self)
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise UserError(
                f"model.text.buckets={self.buckets} must be a multiple of 4, and "
                f"model.text.max_distance={self.max_distance} above a quarter of it"
            )

    @property
    def hidden_width(self) -> int:
        """0: no layer takes rows in chunks."""
        return 0

    def encoder_flops(self, tokens: int) -> int:
        """Returns the FLOPs of the forward pass up to the output of the last block."""
        gates = self.layers * product(tokens, self.width, hidden_width(self))
        return flop_counts.transformer(self, tokens) + gates


@dataclasses.dataclass(frozen=True)
class M2MConfig(ProjectedEncoder):
    """The config of the encoder of an NLLB (NLLB Team 2022), an M2M-100 (Fan et al. 2020).

    Attributes:
      pool: the output: `first`, that of the first token, which names the language; or `mean`, the
        mean over all tokens that are no padding.
      projection: from the output to `embed_dim`: `none`; `linear`, a matrix; or `mlp`, two of them
        with a GELU between. None has a bias.
      pad_id: the padding token; no token attends to it.
    """

    kind: ClassVar[str] = "m2m"
    vocab_size: int = 256206
    context_length: int = 77
    width: int = 1024
    layers: int = 12
    heads: int = 16
    mlp_ratio: float = 4.0
    pool: str = "first"
    projection: str = "linear"
    pad_id: int = 1
    eps: float = 1e-5

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        ProjectedEncoder.check(self)
        if self.width % 2 or self.width < 4:
            raise UserError(
                f"model.text.width={self.width} must be even and at least 4: positions are sines "
                "and cosines"
            )
