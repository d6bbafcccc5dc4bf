"""Predicts the words of the caption, in any order, from the image (Joulin et al. 2016).

It is the second of the objectives that figure 2 of the CLIP paper compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.config.schema import Config
from clip_jax.losses import vocabulary
from clip_jax.losses.objective import TEXT_PARTS, Batch, Metrics, refuse_options
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.words import Words

HEAD = "words"


@dataclasses.dataclass(frozen=True)
class BagOfWords:
    """Minus the mean log-probability of the distinct words of a caption.

    The probabilities are a softmax over the vocabulary, of a linear layer on the features of the
    image. Start, end and padding are no words.
    """

    extra_arrays: ClassVar[tuple[str, ...]] = ("span",)
    unused_parts: ClassVar[tuple[str, ...]] = TEXT_PARTS
    heads: ClassVar[Mapping[str, Mapping[str, Any]]] = {HEAD: {}}

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> BagOfWords:
        """Makes the objective; see `ConfiguredObjective.from_config`."""
        del config, model_config
        refuse_options(options, "the objective bag_of_words")
        return cls()

    def features(
        self, model: CLIP, batch: Batch, keys: Key[Array, " n"]
    ) -> dict[str, Float[Array, " n"]]:
        """Computes the loss of each row; a caption without words counts nothing."""
        features = model.encode_image(batch["image"], key=keys)
        return word_losses(features, model.heads[HEAD], batch)

    def loss(
        self, features: Mapping[str, Float[Array, " n"]], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean over the rows that have words; there are no metrics."""
        return mean_loss(features), {}

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the product of all features with the kernel."""
        return word_flops(model_config, batch_size)


def word_losses(
    features: Float[Array, "n embed_dim"], head: Words, batch: Batch
) -> dict[str, Float[Array, " n"]]:
    """Returns the loss of each row, and which rows have words, for `mean_loss`.

    Args:
      features: the features of the images.
      head: the layer that predicts words.
      batch: the captions as `tokens` and `span`.
    """
    words = distinct_words(batch["tokens"], batch["span"])
    count = jnp.sum(words, axis=-1)
    shares = words / jnp.maximum(count, 1)[:, None]
    losses = vocabulary.token_losses(
        features[:, None].astype(head.dtype),
        head.kernel[...],
        head.bias[...],
        batch["tokens"][:, None],
        shares[:, None],
    )
    return {"loss": jnp.where(count > 0, losses[:, 0], 0), "rows": (count > 0) * 1.0}


def mean_loss(losses: Mapping[str, Float[Array, " n"]]) -> Float[Array, ""]:
    """Returns the mean of the result of `word_losses` over the rows that have words."""
    return jnp.sum(losses["loss"]) / jnp.maximum(jnp.sum(losses["rows"]), 1)


def word_flops(model_config: CLIPConfig, batch_size: int) -> int:
    """Returns the FLOPs of `word_losses`."""
    return 2 * batch_size * model_config.embed_dim * model_config.text.vocab_size


def is_word(tokens: Int[Array, "n context"], span: Int[Array, "n 2"]) -> Bool[Array, "n context"]:
    """Returns which tokens are words: not start, end or padding.

    Args:
      tokens: the captions.
      span: the position of the first word of each caption, and that after the last.
    """
    place = jnp.arange(tokens.shape[1])
    return (place >= span[:, :1]) & (place < span[:, 1:])


def distinct_words(
    tokens: Int[Array, "n context"], span: Int[Array, "n 2"]
) -> Bool[Array, "n context"]:
    """Returns where each word of a caption occurs first; arguments as for `is_word`."""
    words = is_word(tokens, span)
    equal = (tokens[:, :, None] == tokens[:, None, :]) & words[:, None, :]
    place = jnp.arange(tokens.shape[1])
    earlier = equal & (place < place[:, None])
    return words & ~jnp.any(earlier, axis=-1)
