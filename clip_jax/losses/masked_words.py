"""Predicts masked words of the caption from the other words and the image (ICMLM).

Source: Sariyildiz et al. 2020, Learning Visual Representations with Caption Annotations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.config.schema import Config
from clip_jax.losses import bag_of_words, vocabulary
from clip_jax.losses.bag_of_words import is_word
from clip_jax.losses.objective import TEXT_PARTS, Batch, Metrics, check_options, pooling_parts
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import TextTower, check_grid

HEAD = "masked_words"

# Of the words that a share chooses: replaced by a random one, and left as they are (VirTex).
RANDOM, UNCHANGED = 0.10, 0.05


@dataclasses.dataclass(frozen=True)
class MaskedWords:
    """The cross-entropy of masked words, given the caption around them and the image.

    Attributes:
      share: the share of a caption's words that is predicted, rounded up: 85 % of them are masked,
        10 % replaced by a random word, 5 % left as they are. 0: one word, which is masked.
      tag_weight: the factor on the loss of a bag of words, which the features of the image predict;
        0: none.
      text_tower: whether the model's text tower encodes the captions, not the head.
      pooling: the parts of the model that pool the features of places, which only tags use.
    """

    share: float = 0.0
    tag_weight: float = 0.0
    text_tower: bool = False
    pooling: tuple[str, ...] = ()
    reads_places: ClassVar[bool] = True
    extra_arrays: ClassVar[tuple[str, ...]] = ("span",)

    @staticmethod
    def heads(options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Returns the heads that these options need."""
        names = (HEAD, bag_of_words.HEAD) if options.get("tag_weight") else (HEAD,)
        return {name: {} for name in names}

    @property
    def unused_parts(self) -> tuple[str, ...]:
        """The parts of a model that are not used."""
        pooling = () if self.tag_weight else self.pooling
        if not self.text_tower:
            return (*TEXT_PARTS, *pooling)
        scalars = tuple(part for part in TEXT_PARTS if part != "text")
        return ("text.projection", "text.second_projection", "text.pooler", *scalars, *pooling)

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> MaskedWords:
        """Makes the objective; see `ConfiguredObjective.from_config`."""
        del config
        highest = {"share": 1.0, "tag_weight": 1e6}
        known = {name: (most, f"a number from 0 to {most:g}") for name, most in highest.items()}
        check_options(options, "masked_words", known)
        check_grid(model_config.vision)
        head = model_config.head(HEAD)
        pooling = pooling_parts(model_config.vision)
        return cls(**options, text_tower=getattr(head, "text_layers", 1) == 0, pooling=pooling)

    def features(
        self, model: CLIP, batch: Batch, keys: Key[Array, " n"]
    ) -> dict[str, Float[Array, " n"]]:
        """Computes the sum of the losses of each caption, and the number of masked words."""
        features, grid = model.encode_grid(batch["image"], key=keys)
        tokens, span = batch["tokens"], batch["span"]
        masked = mask_words(tokens, span, keys, self.share, model.config.text)
        head, text = model.heads[HEAD], jnp.arange(tokens.shape[1]) <= span[:, 1:]
        if self.text_tower:
            given = jnp.where(masked.hidden, head.config.mask_id, masked.tokens)
            encoded = model.text.token_features(given)
        else:
            encoded = head.text(masked.tokens, masked.hidden, text)
        losses, hits = vocabulary.losses_and_hits(
            head(grid, encoded, text, masked.positions),
            head.output.kernel[...],
            head.output.bias[...],
            jnp.take_along_axis(tokens, masked.positions, axis=1),
        )
        result = {
            "loss": jnp.sum(losses * masked.counts, axis=1),
            "hits": jnp.sum(hits * masked.counts, axis=1),
            "words": jnp.sum(masked.counts, axis=1),
        }
        if self.tag_weight:
            tags = bag_of_words.word_losses(features, model.heads[bag_of_words.HEAD], batch)
            result |= {"tag_" + name: value for name, value in tags.items()}
        return result

    def loss(
        self, features: Mapping[str, Float[Array, " n"]], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean over all masked words, plus the weighted loss of the bag of words.

        The metrics are the share of masked words that are the likeliest of all, and the two losses
        if there are two.
        """
        total = jnp.maximum(jnp.sum(features["words"]), 1)
        loss = jnp.sum(features["loss"]) / total
        metrics = {"accuracy": jnp.sum(features["hits"]) / total}
        if not self.tag_weight:
            return loss, metrics
        tags = bag_of_words.mean_loss({n: features["tag_" + n] for n in ("loss", "rows")})
        metrics |= {"word_loss": loss, "tag_loss": tags}
        return loss + self.tag_weight * tags, metrics

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the head over captions of the full length."""
        head: Any = model_config.head(HEAD)
        text = model_config.text
        length = text.context_length
        each = head.flops(
            length,
            masked_count(self.share, length),
            *model_config.vision.grid_shape(),
            text.vocab_size,
            text.token_width,
        )
        tags = bag_of_words.word_flops(model_config, batch_size) if self.tag_weight else 0
        return batch_size * each + tags


class MaskedRows(NamedTuple):
    """Captions of which some words are masked.

    Attributes:
      tokens: the captions, with random words in place of some.
      hidden: which tokens are masked.
      positions: where words are predicted.
      counts: 1 where `positions` has a word that is predicted, 0 where it fills a row up.
    """

    tokens: Int[Array, "n context"]
    hidden: Bool[Array, "n context"]
    positions: Int[Array, "n masked"]
    counts: Float[Array, "n masked"]


def masked_count(share: float, length: int) -> int:
    """Returns the number of words that are predicted at most in a caption of `length` tokens."""
    return math.ceil(share * length) if share else 1


def mask_words(
    tokens: Int[Array, "n context"],
    span: Int[Array, "n 2"],
    keys: Key[Array, " n"],
    share: float,
    text: TextTower,
) -> MaskedRows:
    """Chooses words of each caption by the random key of its row, and masks them.

    Args:
      tokens: the captions.
      span: the position of the first word of each caption, and that after the last.
      keys: a random key for each row.
      share: the share of the words that is chosen, rounded up; at least one word.
      text: the sizes of captions, whatever padding is cut off here, and of the vocabulary.
    """
    length, full = tokens.shape[1], (text.context_length,)

    def draw(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        order, way, word = jax.random.split(jax.random.fold_in(key, 2), 3)
        return (
            jax.random.uniform(order, full),
            jax.random.uniform(way, full),
            jax.random.randint(word, full, 0, text.vocab_size, tokens.dtype),
        )

    order, way, word = (drawn[:, :length] for drawn in jax.vmap(draw)(keys))
    words = is_word(tokens, span)
    _, positions = jax.lax.top_k(jnp.where(words, order, -1), masked_count(share, length))
    count = jnp.sum(words, axis=1)
    chosen = jnp.maximum(jnp.ceil(share * count - 1e-4), jnp.minimum(count, 1))
    counts = jnp.arange(positions.shape[1]) < chosen[:, None]
    places = jnp.arange(length)
    predicted = jnp.any((positions[..., None] == places) & counts[..., None], axis=1)
    if not share:
        return MaskedRows(tokens, predicted, positions, counts.astype(jnp.float32))
    replaced = predicted & (way < RANDOM)
    hidden = predicted & (way >= RANDOM + UNCHANGED)
    given = jnp.where(replaced, word, tokens)
    return MaskedRows(given, hidden, positions, counts.astype(jnp.float32))
