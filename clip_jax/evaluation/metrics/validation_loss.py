"""The contrastive loss of held-out pairs, in batches that are the same each time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clip_jax.errors import UserError
from clip_jax.losses.contrastive import sigmoid_loss, softmax_loss
from clip_jax.losses.objective import Metrics

_SEED = 0  # of the order of the pairs


@dataclasses.dataclass(frozen=True)
class ValidationLoss:
    """The mean loss and accuracies of the batches.

    Attributes:
      loss: CLIP's softmax loss, or SigLIP's sigmoid loss for a model with a logit bias.
      image_to_text_accuracy: the share of images whose own text has the largest logit of the batch.
      text_to_image_accuracy: the share of texts whose own image has the largest logit of the batch.
      batch_size: the number of pairs in a batch.
      batches: the number of batches.
    """

    loss: float
    image_to_text_accuracy: float
    text_to_image_accuracy: float
    batch_size: int
    batches: int


def choose_pairs(
    image_group: Int[np.ndarray, " n"], text_group: Int[np.ndarray, " texts"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Chooses one pair of each image that has a text, in a random order that is the same each time.

    Args:
      image_group: the group of each image.
      text_group: the group of each text; it belongs to the images of the same group.

    Returns:
      The numbers of the images, and of one of the texts of each.
    """
    rng = np.random.default_rng(_SEED)
    texts: dict[int, list[int]] = {}
    for j, group in enumerate(text_group.tolist()):
        texts.setdefault(group, []).append(j)
    images = rng.permutation([i for i, g in enumerate(image_group.tolist()) if g in texts])
    chosen = [rng.choice(texts[int(image_group[i])]) for i in images]
    return images.astype(np.int64), np.array(chosen, np.int64)


def validation_loss(
    image_features: Float[np.ndarray, "n d"],
    text_features: Float[np.ndarray, "n d"],
    groups: Int[np.ndarray, " n"],
    scale: float,
    bias: float | None,
    batch_size: int,
) -> ValidationLoss:
    """Returns the loss of pairs in batches. The pairs after the last full batch are left out.

    Args:
      image_features: unit-norm features; row i belongs to row i of `text_features`.
      text_features: unit-norm features.
      groups: the group of each pair; pairs of one group are not negatives of each other.
      scale: the factor on the cosines.
      bias: the number added to the scaled cosines; None: the softmax loss.
      batch_size: the pairs in a batch; if there are fewer pairs, all are one batch.

    Raises:
      UserError: there are fewer than two pairs.
    """
    size = min(batch_size, len(groups))
    if size < 2:
        raise UserError(f"a validation loss needs two pairs at least, not {len(groups)}")
    batches = []
    for first in range(0, len(groups) // size * size, size):
        rows = slice(first, first + size)
        arrays = image_features[rows], text_features[rows], groups[rows, None].astype(np.int32)
        batches.append(jax.device_get(_batch_loss(*arrays, scale, bias)))
    means = {name: float(np.mean([batch[name] for batch in batches])) for name in batches[0]}
    return ValidationLoss(batch_size=size, batches=len(batches), **means)


@jax.jit
def _batch_loss(
    image: Float[Array, "n d"],
    text: Float[Array, "n d"],
    groups: Int[Array, "n 1"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None,
) -> Metrics:
    scale = jnp.float32(scale)
    if bias is None:
        loss, metrics = softmax_loss(image, text, scale, layout="auto", ids=groups)
    else:
        loss, metrics = sigmoid_loss(
            image, text, scale, jnp.float32(bias), layout="auto", ids=groups
        )
    return {"loss": loss, **metrics}
