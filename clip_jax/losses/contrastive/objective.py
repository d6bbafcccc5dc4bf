"""The contrastive objective of CLIP and SigLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Array, Float, Key

from clip_jax.config.schema import Config
from clip_jax.errors import UserError
from clip_jax.losses import contrastive
from clip_jax.losses.contrastive import caption_ids, sigmoid_loss, softmax_loss
from clip_jax.losses.objective import Batch, Metrics, refuse_options
from clip_jax.models.clip import CLIP, Output
from clip_jax.models.model_config import CLIPConfig

Features = tuple[Float[Array, "n d"], Float[Array, "n d"]]


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Predicts which of the N×N pairings of a batch really occurred (section 2.3).

    A model with a `logit_bias` gets SigLIP's sigmoid loss over single pairings, any other CLIP's
    symmetric cross-entropy.

    Attributes:
      layout: how the similarities are computed, one of `contrastive.LAYOUTS`; all give the same
        numbers.
      block: rows of a tile in the layouts that have tiles; 0: the layout's default.
      label_smoothing: the share of each row's target that is spread over the batch.
      image_weight: the weight of the direction image to text; that of the other is the rest to 1.
      mask_duplicates: whether pairs with equal captions are not negatives of each other.
      multi_positive: whether pairs of one group are positives of each other. The batch has the
        groups as `group`.
    """

    layout: str = "auto"
    block: int = 0
    label_smoothing: float = 0.0
    image_weight: float = 0.5
    mask_duplicates: bool = False
    multi_positive: bool = False
    reads_image_features: ClassVar[bool] = True
    options_change_features: ClassVar[bool] = False

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        """The arrays that the loss needs beside image and tokens."""
        return ("group",) if self.multi_positive else ()

    def __post_init__(self) -> None:
        contrastive.check_layout(self.layout, self.block)

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> Contrastive:
        """Makes the objective from `config.loss`; see `ConfiguredObjective.from_config`."""
        hint = "; its keys are those of config.loss"
        refuse_options(options, "the contrastive objective", hint)
        objective = cls(**config.loss.to_dict())
        if model_config.logit_bias is not None:
            for key, usual in (("label_smoothing", 0.0), ("image_weight", 0.5)):
                if (value := getattr(objective, key)) != usual:
                    raise UserError(
                        f"config.loss.{key}={value} applies to the softmax over the batch, which a "
                        f"model with a logit_bias does not have: set it to {usual:g}"
                    )
        return objective

    def features(self, model: CLIP, batch: Batch, keys: Key[Array, " n"]) -> Features:
        """Computes unit-norm features of images and texts, float32.

        A batch may hold `image_features` in place of `image`: unit-norm features of a frozen tower.
        """
        if "image_features" in batch:
            text = model.encode_text(batch["tokens"], normalized=True)
            return batch["image_features"], text
        output = model(batch["image"], batch["tokens"], key=keys)
        return output.image_features, output.text_features

    def loss(
        self, features: Features, model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of the global batch.

        The metrics are both accuracies, the logit scale and the bias.
        """
        return self.loss_of_output(model.compared(*features), batch)

    def loss_of_output(self, output: Output, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss and metrics of a model's output.

        It needs `tokens` and `group` of the batch.
        """
        image, text, scale, bias = output
        ids = caption_ids(batch["tokens"]) if self.mask_duplicates else None
        groups = batch["group"] if self.multi_positive else None
        if bias is None:
            loss, metrics = softmax_loss(
                image,
                text,
                scale,
                layout=self.layout,
                ids=ids,
                groups=groups,
                label_smoothing=self.label_smoothing,
                image_weight=self.image_weight,
                block=self.block,
            )
            return loss, {**metrics, "logit_scale": scale}
        loss, metrics = sigmoid_loss(
            image, text, scale, bias, layout=self.layout, ids=ids, groups=groups, block=self.block
        )
        return loss, {**metrics, "logit_scale": scale, "logit_bias": bias}

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the product of all image features with all text features."""
        return 2 * batch_size * model_config.embed_dim * batch_size
