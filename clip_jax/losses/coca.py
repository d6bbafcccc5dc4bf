"""CoCa (Yu et al. 2022): contrastive and captioning losses by one pass of each tower."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.losses import vocabulary
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.losses.objective import Batch, Metrics, check_options
from clip_jax.models.clip import CLIP, normalize
from clip_jax.models.coca_configs import MultimodalConfig
from clip_jax.models.dropout import row_keys
from clip_jax.models.head import DECODER
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.registry import kind_of
from clip_jax.models.second_projection import project


@dataclasses.dataclass(frozen=True)
class CoCa:
    """The contrastive loss, and the cross-entropy of each token given image and earlier tokens.

    The text tower makes the features that are compared, and the input of the decoder. The second
    loss is the mean over all tokens of the batch after the first, padding left out.

    Attributes:
      contrastive: the contrastive loss.
      contrastive_weight, captioning_weight: the factors of both losses.
    """

    contrastive: Contrastive
    contrastive_weight: float = 1.0
    captioning_weight: float = 2.0
    reads_places: ClassVar[bool] = True
    heads: ClassVar[Mapping[str, Mapping[str, Any]]] = {DECODER: {"kind": MultimodalConfig.kind}}

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        """The arrays that the contrastive loss needs beside image and tokens."""
        return self.contrastive.extra_arrays

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> CoCa:
        """Makes the objective; see `ConfiguredObjective.from_config`."""
        weight = (sys.float_info.max, "a number, 0 or more")
        known = {"contrastive_weight": weight, "captioning_weight": weight}
        hint = "; the keys of its contrastive loss are those of config.loss"
        check_options(options, "coca", known, hint)
        decoder = model_config.head(DECODER)
        if not isinstance(decoder, MultimodalConfig):
            raise UserError(
                f"the objective coca trains a decoder of kind {MultimodalConfig.kind}, not "
                f"model.heads.{DECODER}.kind={kind_of(decoder)}, which the objective captioning "
                "trains"
            )
        decoder.check(model_config)
        return cls(Contrastive.from_config(config, model_config, {}), **options)

    def features(
        self, model: CLIP, batch: Batch, keys: Key[Array, " n"]
    ) -> dict[str, Float[Array, "n ..."]]:
        """Computes unit-norm features, and the sum of the losses of each caption and its tokens."""
        image, grid = model.encode_grid(batch["image"], key=keys)
        tokens = batch["tokens"]
        with row_keys(keys if model.dropout else None):
            text, words = model.text.features_and_words(tokens)
        decoder = model.heads[DECODER]
        targets = tokens[:, 1:]
        losses = vocabulary.token_losses(
            decoder(grid, words[:, :-1]),
            decoder.kernel[...],
            None,
            targets[..., None],
            jnp.ones((*targets.shape, 1)),
        )
        counts = targets != model.text.pad_id
        return {
            "image": normalize(image),
            "text": normalize(project(model.text, text)),
            "loss": jnp.sum(losses * counts, axis=1),
            "tokens": jnp.sum(counts, axis=1).astype(jnp.float32),
        }

    def loss(
        self, features: Mapping[str, Float[Array, "n ..."]], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the weighted sum; metrics are both losses, and those of the contrastive one."""
        both = features["image"], features["text"]
        contrastive, metrics = self.contrastive.loss(both, model, batch)
        captioning = jnp.sum(features["loss"]) / jnp.maximum(jnp.sum(features["tokens"]), 1)
        loss = self.contrastive_weight * contrastive + self.captioning_weight * captioning
        return loss, {**metrics, "contrastive_loss": contrastive, "captioning_loss": captioning}

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the similarities, and of the decoder over texts of full length."""
        decoder: Any = model_config.head(DECODER)
        places, _ = model_config.vision.grid_shape()
        text = model_config.text
        each: int = decoder.flops(text.context_length - 1, places, text.vocab_size)
        return self.contrastive.flops(model_config, batch_size) + batch_size * each
