"""What is minimised: functions from what a model makes of a batch to a loss and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from clip_jax.errors import UserError
from clip_jax.losses import contrastive
from clip_jax.losses.contrastive import caption_ids, sigmoid_loss, softmax_loss
from clip_jax.models.clip import Output

Metrics = dict[str, Float[Array, ""]]
Objective = Callable[[Output, dict[str, Any]], tuple[Float[Array, ""], Metrics]]


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """CLIP's objective: which of the N×N pairings of a batch really occurred.

    A model with a `logit_bias` is asked pairing by pairing, as SigLIP.

    Attributes:
      layout: how the pairings lie over the devices, one of `contrastive.LAYOUTS`; the numbers are
        the same in each.
      block: rows of a tile where the layout has tiles; 0 leaves it to the layout.
      label_smoothing: the share of each row's target that is spread over all of the batch.
      mask_duplicates: pairs with the same caption do not count as each other's negatives.
    """

    layout: str = "auto"
    block: int = 0
    label_smoothing: float = 0.0
    mask_duplicates: bool = False

    def __post_init__(self) -> None:
        contrastive.check(self.layout, self.block)

    def __call__(self, output: Output, batch: dict[str, Any]) -> tuple[Float[Array, ""], Metrics]:
        """The loss of the global batch."""
        image, text, scale, bias = output
        ids = caption_ids(batch["tokens"]) if self.mask_duplicates else None
        common: dict[str, Any] = dict(layout=self.layout, ids=ids, block=self.block)
        if bias is None:
            smoothing = self.label_smoothing
            loss, metrics = softmax_loss(image, text, scale, label_smoothing=smoothing, **common)
            return loss, {**metrics, "logit_scale": scale}
        loss, metrics = sigmoid_loss(image, text, scale, bias, **common)
        return loss, {**metrics, "logit_scale": scale, "logit_bias": bias}

    def check(self, *, sigmoid: bool) -> None:
        """UserError where the loss of a model cannot be had this way."""
        if sigmoid and self.label_smoothing:
            raise UserError(
                f"config.loss.label_smoothing={self.label_smoothing} is of a softmax over the "
                "batch: a model with a logit_bias has none"
            )
