"""Scores labels for images by the log-probabilities of their prompts: the zero-shot of a captioner.

A decoder scores all prompts of a chunk as one sequence: the tree of their prefixes, in which each
prefix attends to those that it begins with. So a prefix that prompts share is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
from clip_jax.models.head import DECODER
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.words import word_logits

WORDS = "words"  # in `model.heads`
HEADS = (DECODER, WORDS)  # the heads that score labels, the first that a model has
_MAX_BYTES = 64 << 20  # of the float32 logits that exist at once on a device


@runtime_checkable
class ScoringDecoder(Protocol):
    """A decoder that predicts the token after each prefix of many texts at once.

    `model.heads.decoder.writer(model.text)` returns it.
    """

    @property
    def output_kernel(self) -> Float[Array, "width vocabulary"]:
        """The kernel of the output layer."""

    @property
    def output_bias(self) -> Any:
        """The bias of the output layer, [vocabulary]; None for none."""

    def caption_features(
        self, grid: Float[Array, "batch places channels"], tokens: Int[Array, "batch context"]
    ) -> Float[Array, "batch context width"]:
        """Returns the features from which each token of a caption is predicted.

        Args:
          grid: the features of the places of the images.
          tokens: the captions.
        """

    def start_scoring(self, grid: Float[Array, "batch places channels"]) -> Any:
        """Returns what `prefix_features` needs of the images, computed once for all prefixes."""

    def prefix_features(
        self,
        memory: Any,
        tokens: Int[Array, " prefixes"],
        lengths: Int[Array, " prefixes"],
        visible: Bool[Array, "prefixes prefixes"],
    ) -> Float[Array, "batch prefixes width"]:
        """Returns the features from which the token after each prefix is predicted.

        Args:
          memory: the result of `start_scoring`.
          tokens: the last token of each prefix; any for the empty prefix.
          lengths: the number of tokens of each prefix; 0 for the empty prefix.
          visible: True where a row's prefix is, or begins with, a column's prefix.
        """


# The annotations of both have no shapes, because a scan makes them of single chunks.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixTrees:
    """The prompts of all labels for a decoder, in chunks whose prefixes are trees.

    Attributes:
      tokens, lengths: int32 [chunks, prefixes], see `ScoringDecoder.prefix_features`.
      visible: bool [chunks, prefixes, prefixes], see there.
      prefix: int32 [chunks, prompts, tokens], the prefix that each token is predicted from.
      target: int32 [chunks, prompts, tokens], the tokens of the prompts.
      weight: float32 [chunks, prompts, tokens], the factor on the log-probability of each token; 0
        for padding.
      label: int32 [chunks, prompts], the label of each prompt.
      labels: the number of labels.
    """

    tokens: Any
    lengths: Any
    visible: Any
    prefix: Any
    target: Any
    weight: Any
    label: Any
    labels: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WordBags:
    """The words of the prompts of all labels, in chunks.

    Attributes:
      target: int32 [chunks, prompts, tokens], the distinct words of each prompt.
      weight: float32 [chunks, prompts, tokens], the factor on the log-probability of each word; 0
        for padding.
      label: int32 [chunks, prompts], the label of each prompt.
      labels: the number of labels.
    """

    target: Any
    weight: Any
    label: Any
    labels: int = dataclasses.field(metadata={"static": True})


Prompts = PrefixTrees | WordBags


def scoring_head(config: CLIPConfig) -> str:
    """Returns the head of a model that scores labels; empty without one."""
    return next((name for name in HEADS if config.head(name) is not None), "")


def label_scores(model: Any, image: Array, prompts: Prompts) -> Float[Array, "batch labels"]:
    """Returns the score of each label for each image, float32.

    A score is the sum of the weighted log-probabilities of all tokens of the label's prompts.

    Args:
      model: a `CLIP` with a head of `HEADS`.
      image: as for `CLIP.encode_image`.
      prompts: the prompts, for the head that `scoring_head` names.
    """
    if isinstance(prompts, WordBags):
        logits = model.heads[WORDS](model.encode_image(image))
        shares = jax.nn.log_softmax(logits)

        def bag_scores(chunk: WordBags) -> Float[Array, "batch prompts"]:
            return jnp.sum(shares[:, chunk.target] * chunk.weight, axis=-1)

        return _summed(bag_scores, prompts, len(image))
    decoder: ScoringDecoder = model.heads[DECODER].writer(model.text)
    memory = decoder.start_scoring(model.encode_grid(image)[1])

    def tree_scores(chunk: PrefixTrees) -> Float[Array, "batch prompts"]:
        hidden = decoder.prefix_features(memory, chunk.tokens, chunk.lengths, chunk.visible)
        compute = partial(_log_probabilities, decoder, chunk)
        parts = _parts(hidden, decoder.output_kernel.shape[1])
        if parts == 1:
            return compute(hidden)
        pieces = sharding.split_chunks(hidden, parts)
        scores: Array = sharding.merge_chunks(jax.lax.map(compute, pieces))
        return scores

    return _summed(tree_scores, prompts, len(image))


def _summed(
    score: Callable[[Any], Float[Array, "batch prompts"]], prompts: Prompts, batch: int
) -> Float[Array, "batch labels"]:
    """Returns the sum of the scores of each label's prompts, one chunk at a time."""

    def add(total: Array, chunk: Any) -> tuple[Array, None]:
        return total.at[:, chunk.label].add(score(chunk)), None

    total, _ = jax.lax.scan(add, jnp.zeros((batch, prompts.labels), jnp.float32), prompts)
    return total


def _log_probabilities(
    decoder: ScoringDecoder, chunk: PrefixTrees, hidden: Float[Array, "n prefixes width"]
) -> Float[Array, "n prompts"]:
    bias = decoder.output_bias
    logits = word_logits(hidden, decoder.output_kernel, None if bias is None else bias[...])
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    shares = logits[:, chunk.prefix, chunk.target] - normalizer[:, chunk.prefix]
    return jnp.sum(shares * chunk.weight, axis=-1)


def _parts(hidden: Float[Array, "n prefixes width"], vocabulary: int) -> int:
    """Returns the least number of equal parts of each device's rows that are small enough."""
    rows = len(hidden) // sharding.row_shards()
    row_bytes = hidden.shape[1] * vocabulary * 4
    fits = (p for p in range(1, rows) if rows % p == 0 and rows // p * row_bytes <= _MAX_BYTES)
    return next(fits, max(rows, 1))
