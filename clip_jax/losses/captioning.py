"""Predicts the caption, word by word, from the image (VirTex, CapPa)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.losses import vocabulary
from clip_jax.losses.objective import TEXT_PARTS, Batch, Metrics, check_options, pooling_parts
from clip_jax.models.clip import CLIP
from clip_jax.models.decoder import Decoder, DecoderConfig
from clip_jax.models.head import DECODER
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.registry import kind_of
from clip_jax.models.tower import check_grid


@dataclasses.dataclass(frozen=True)
class Captioning:
    """The cross-entropy of each token of a caption, given the image and the tokens before it.

    Words and the end count, start and padding do not. The loss is the mean over all tokens of the
    batch; a decoder that predicts both ways adds that of the reversed captions.

    Attributes:
      label_smoothing: the share of each target that is spread over the vocabulary.
      parallel: the share of the captions whose tokens are all hidden, so that each is predicted
        from the image and its position alone (CapPa: 0.75).
      pooling: the parts of the model that pool the features of places, which are not used.
    """

    label_smoothing: float = 0.0
    parallel: float = 0.0
    pooling: tuple[str, ...] = ()
    reads_places: ClassVar[bool] = True
    extra_arrays: ClassVar[tuple[str, ...]] = ("span",)
    heads: ClassVar[Mapping[str, Mapping[str, Any]]] = {DECODER: {}}

    @property
    def unused_parts(self) -> tuple[str, ...]:
        """The parts of a model that are not used."""
        return (*TEXT_PARTS, *self.pooling)

    @property
    def full_rows(self) -> bool:
        """Whether padding changes the loss: hidden tokens attend to all positions."""
        return self.parallel > 0

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> Captioning:
        """Makes the objective; see `ConfiguredObjective.from_config`."""
        del config
        share = "a share from 0 to 1"
        known = {"label_smoothing": (0.999999, share), "parallel": (1.0, share)}
        check_options(options, "captioning", known)
        check_grid(model_config.vision)
        decoder = model_config.head(DECODER)
        if not isinstance(decoder, DecoderConfig):
            raise UserError(
                f"the objective captioning trains a decoder of kind {DecoderConfig.kind}, not "
                f"model.heads.{DECODER}.kind={kind_of(decoder)}, which the objective coca trains"
            )
        return cls(**options, pooling=pooling_parts(model_config.vision))

    def features(
        self, model: CLIP, batch: Batch, keys: Key[Array, " n"]
    ) -> dict[str, Float[Array, " n"]]:
        """Computes the sum of the losses of each caption, and the number of its tokens."""
        _, grid = model.encode_grid(batch["image"], key=keys)
        decoder: Decoder = model.heads[DECODER]
        tokens, span = batch["tokens"], batch["span"]
        parallel = None
        if self.parallel:
            chances = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
            parallel = chances < self.parallel
        counts = is_predicted(tokens, span)
        losses = self._losses(decoder, grid, tokens, parallel=parallel)
        result = {
            "loss": jnp.sum(losses * counts, axis=1),
            "tokens": jnp.sum(counts, axis=1).astype(jnp.float32),
        }
        if decoder.config.both_ways:
            losses = self._losses(decoder, grid, reversed_words(tokens, span), backward=True)
            result["backward"] = jnp.sum(losses * counts, axis=1)
        return result

    def _losses(
        self, decoder: Decoder, grid: Array, tokens: Int[Array, "n context"], **options: Any
    ) -> Float[Array, "n context"]:
        hidden = decoder(grid, tokens, **options)
        return vocabulary.token_losses(
            hidden,
            decoder.output_kernel,
            decoder.output_bias[...],
            tokens[..., None],
            jnp.ones((*tokens.shape, 1)),
            label_smoothing=self.label_smoothing,
        )

    def loss(
        self, features: Mapping[str, Float[Array, " n"]], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean over all tokens; metrics are those of both ways, if there are two."""
        total = jnp.maximum(jnp.sum(features["tokens"]), 1)
        forward = jnp.sum(features["loss"]) / total
        if "backward" not in features:
            return forward, {}
        backward = jnp.sum(features["backward"]) / total
        return forward + backward, {"forward_loss": forward, "backward_loss": backward}

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the decoder over captions of the full length."""
        decoder: Any = model_config.head(DECODER)
        places, channels = model_config.vision.grid_shape()
        text = model_config.text
        each: int = decoder.flops(text.context_length, places, channels, text.vocab_size)
        return batch_size * each


def is_predicted(
    tokens: Int[Array, "n context"], span: Int[Array, "n 2"]
) -> Bool[Array, "n context"]:
    """Returns which tokens are predicted: the words, and the end of a text that has one.

    Args:
      tokens: the captions.
      span: the position of the first word of each caption, and that after the last.
    """
    place = jnp.arange(tokens.shape[1])
    return (place >= span[:, :1]) & (place <= span[:, 1:])


def reversed_words(
    tokens: Int[Array, "n context"], span: Int[Array, "n 2"]
) -> Int[Array, "n context"]:
    """Returns captions with their words in reverse; other tokens stay where they are."""
    place = jnp.arange(tokens.shape[1])
    first, end = span[:, :1], span[:, 1:]
    inside = (place >= first) & (place < end)
    return jnp.take_along_axis(tokens, jnp.where(inside, first + end - 1 - place, place), axis=1)
