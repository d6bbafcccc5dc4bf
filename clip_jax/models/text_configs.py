"""Configs of the text towers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.built_in import TransformerTower
from clip_jax.models.encoder_configs import EncoderTower
from clip_jax.models.flop_counts import product
from clip_jax.models.tower import (
    Params,
    TextTower,
    check_activation,
    check_blocks,
    check_layers,
)
from clip_jax.tokenizers.protocol import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextConfig(TransformerTower, TextTower):
    """The config of a text Transformer.

    Attributes:
      layers: the number of blocks; 0 for a bag of words, the mean of the tokens (the paper's CBOW,
        section 2.3).
      causal: whether a token attends only to itself and those before it.
      pool: the token whose features are the output: `end`, the one with the largest id (CLIP);
        `eos`, the first with the id `eos_id`; or `last`, the last of the row, padding included
        (SigLIP).
      eos_id: the id of the end of a text, for `pool="eos"`.
      projection: whether a matrix projects `width` to `embed_dim`; without it they are equal.
      projection_bias: whether the projection to `embed_dim` has a bias.
      activation: the activation of the MLPs; empty for that of the model.
    """

    kind: ClassVar[str] = "transformer"
    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    causal: bool = True
    pool: str = "end"
    eos_id: int = 2
    projection: bool = True
    projection_bias: bool = False
    activation: str = ""
    eps: float = 1e-5

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        check_layers("text", self.layers, 0)
        if self.layers:
            check_blocks("text", self)
        if self.pool not in ("end", "eos", "last"):
            raise UserError(f"model.text.pool={self.pool!r} must be 'end', 'eos' or 'last'")
        if self.pool == "eos" and not self.eos_id < self.vocab_size:
            raise UserError(
                f"model.text.eos_id={self.eos_id} must be below "
                f"model.text.vocab_size={self.vocab_size}"
            )
        check_activation("text", self.activation)

    @property
    def positions(self) -> int:
        """The length of the table of positions."""
        return self.context_length

    @property
    def blind_to_padding(self) -> bool:
        """Whether tokens after the end of a text change nothing, so that they can be cut off."""
        return not self.layers or (self.causal and self.pool != "last")

    def flops(self, embed_dim: int, tokens: int) -> int:
        """Returns the FLOPs of the forward pass of one text of `tokens` tokens."""
        projection = product(1, self.width, embed_dim) if self.projection else 0
        return flop_counts.transformer(self, tokens) + projection

    def resize_positions(self, params: Params, context_length: int, keep: int = 0) -> Params:
        """Returns the parameters of this tower for texts of another length."""
        from clip_jax.models.positions import resize_line

        if not self.layers:  # a bag of words has no positions
            return params
        table = resize_line(params["positional_embedding"], context_length, keep)
        return {**params, "positional_embedding": table}

    def check_tokenizer(self, name: str, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tower cannot read the rows of a tokenizer."""
        TextTower.check_tokenizer(self, name, tokenizer)
        if self.pool == "eos" and tokenizer.eot_id != self.eos_id:
            raise UserError(
                f"tokenizer {name} ends a text by the id {tokenizer.eot_id}: set "
                "config.model.text.eos_id to it"
            )
        at_end = self.pool == "end" or not self.layers
        if at_end and tokenizer.eot_id != tokenizer.vocab_size - 1:
            raise UserError(
                f"config.model.text.pool={self.pool!r} reads a text out at its largest id, which "
                f"in tokenizer {name} is not its end: use 'clip' or 'sentencepiece:PATH.model'"
            )

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{TextTower.summary(self)} {self.layers}×{self.width}"


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderTower):
    """The config of a BERT (Devlin et al. 2018).

    Attributes:
      pool: the output: `first`, that of the first token (ALIGN), or `mean`, the mean over all
        tokens that are no padding (sentence-transformers).
      activation: the activation of its MLPs; empty for that of the model.
      positions: length of the table of positions; texts have `context_length` tokens.
      token_types: length of the table of segments, of which only the first is used.
      pad_id: the padding token; no token attends to it.
      pooler: whether the parameters of BERT's tanh layer are kept. ALIGN's files hold them; ALIGN
        does not use them.
      projection_bias: whether the projection to `embed_dim` has a bias.
    """

    kind: ClassVar[str] = "bert"
    vocab_size: int = 30522
    context_length: int = 64
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    pool: str = "first"
    activation: str = ""
    positions: int = 512
    token_types: int = 2
    pad_id: int = 0
    pooler: bool = True
    projection_bias: bool = True
    eps: float = 1e-12

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""
        check_blocks("text", self)
        check_layers("text", self.layers, 1)
        if self.pool not in ("first", "mean"):
            raise UserError(f"model.text.pool={self.pool!r} must be 'first' or 'mean'")
        check_activation("text", self.activation)
        if self.context_length > self.positions:
            raise UserError(
                f"model.text.context_length={self.context_length} is above "
                f"model.text.positions={self.positions}"
            )

    def flops(self, embed_dim: int, tokens: int) -> int:
        """Returns the FLOPs of the forward pass of one text of `tokens` tokens."""
        return flop_counts.transformer(self, tokens) + product(1, self.width, embed_dim)
