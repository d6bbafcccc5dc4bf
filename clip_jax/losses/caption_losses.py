"""The losses of captions by a trained model, to evaluate it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.losses import bag_of_words, vocabulary
from clip_jax.losses.captioning import is_predicted
from clip_jax.losses.objective import Batch
from clip_jax.models.clip import CLIP
from clip_jax.models.head import DECODER
from clip_jax.models.scoring import ScoringDecoder


def names(heads: Sequence[str]) -> list[str]:
    """Returns the names in the result of `caption_losses` for a model with these heads, sorted."""
    decoder = ("decoder", "tokens") if DECODER in heads else ()
    words = ("captions", "words") if bag_of_words.HEAD in heads else ()
    return sorted((*decoder, *words))


def caption_losses(model: CLIP, batch: Batch) -> dict[str, Float[Array, " n"]]:
    """Computes the losses of captions by the heads of a model, without dropout or smoothing.

    Args:
      model: a model with a decoder, a head `words`, or both.
      batch: `image`, `tokens` and `span`, see `objective.extra_arrays`.

    Returns:
      With a decoder `decoder`, the sum of the cross-entropies of the words and the end, and
      `tokens`, their number. With `words`, minus the mean log-probability of the distinct words
      under that name, and `captions`: 1, or 0 for a caption without words.
    """
    tokens, span = batch["tokens"], batch["span"]
    heads: Any = model.heads
    losses: dict[str, Array] = {}
    if DECODER in heads:
        decoder: ScoringDecoder = heads[DECODER].writer(model.text)
        bias, counts = decoder.output_bias, is_predicted(tokens, span)
        each = vocabulary.token_losses(
            decoder.caption_features(model.encode_grid(batch["image"])[1], tokens),
            decoder.output_kernel,
            None if bias is None else bias[...],
            tokens[..., None],
            jnp.ones((*tokens.shape, 1)),
        )
        losses |= {"decoder": jnp.sum(each * counts, axis=1), "tokens": jnp.sum(counts, axis=1)}
    if bag_of_words.HEAD in heads:
        features = model.encode_image(batch["image"])
        words = bag_of_words.word_losses(features, heads[bag_of_words.HEAD], batch)
        losses |= {"words": words["loss"], "captions": words["rows"]}
    return {name: value.astype(jnp.float32) for name, value in losses.items()}
