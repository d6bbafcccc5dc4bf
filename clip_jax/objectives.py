"""What is minimised: functions from a model and a batch to a loss and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Key

from clip_jax.contrastive import sigmoid_loss, softmax_loss
from clip_jax.models.clip import CLIP

Metrics = dict[str, Float[Array, ""]]
Objective = Callable[[CLIP, dict[str, Any], Key[Array, ""]], tuple[Float[Array, ""], Metrics]]


def contrastive(
    model: CLIP, batch: dict[str, Any], key: Key[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """CLIP's objective: which of the N×N pairings of a batch really occurred.

    A model with a `logit_bias` is asked pairing by pairing, as SigLIP.
    """
    output = model(batch["image"], batch["tokens"], key=key)
    image, text, scale, bias = output
    if bias is None:
        loss, metrics = softmax_loss(image, text, scale)
    else:
        loss, metrics = sigmoid_loss(image, text, scale, bias)
        metrics["logit_bias"] = bias
    return loss, {**metrics, "logit_scale": scale}
