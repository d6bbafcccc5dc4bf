"""Supervised classification: a linear classifier on the features of the image tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.losses.objective import TEXT_PARTS, Batch, Metrics, refuse_options
from clip_jax.models import classifier
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig


@dataclasses.dataclass(frozen=True)
class Classification:
    """Predicts the class of each image, by the softmax of the model's classifier.

    The text tower and the logit scale take no part, and stay as they are.

    Attributes:
      label_smoothing: the share of each target that is spread over all classes.
    """

    label_smoothing: float = 0.0
    reads_image_features: ClassVar[bool] = True
    options_change_features: ClassVar[bool] = False
    extra_arrays: ClassVar[tuple[str, ...]] = ("label",)
    unused_parts: ClassVar[tuple[str, ...]] = TEXT_PARTS

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> Classification:
        """Makes the objective from `config.classifier`; see `ConfiguredObjective.from_config`."""
        hint = "; its keys are those of config.classifier"
        refuse_options(options, "the objective classification", hint)
        if model_config.head(classifier.NAME) is None:
            raise UserError(
                "the objective classification needs the names of the classes: give a list of them "
                "by config.classifier.labels"
            )
        return cls(config.classifier.label_smoothing)

    def features(
        self, model: CLIP, batch: Batch, keys: Key[Array, " n"]
    ) -> Float[Array, "n embed_dim"]:
        """Computes unit-norm features of images, float32.

        A batch may hold `image_features` in place of `image`: unit-norm features of a frozen tower.
        """
        if "image_features" in batch:
            given: Array = batch["image_features"]
            return given
        return model.encode_image(batch["image"], normalized=True, key=keys)

    def loss(
        self, features: Float[Array, "n embed_dim"], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the mean cross-entropy over the batch, and the accuracy.

        The batch has the number of the class of each image as `label`, int32 [n].
        """
        logits, label = model.class_logits(features), batch["label"]
        loss = jnp.mean(_cross_entropy(logits, label, self.label_smoothing))
        return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == label)}

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the product of all features with the classifier's kernel."""
        return 2 * batch_size * model_config.embed_dim * len(model_config.labels)


def _cross_entropy(
    logits: Float[Array, "n classes"], label: Int[Array, " n"], smoothing: float
) -> Float[Array, " n"]:
    targets = jax.nn.one_hot(label, logits.shape[-1])
    return optax.losses.softmax_cross_entropy(
        logits, optax.losses.smooth_labels(targets, smoothing)
    )
