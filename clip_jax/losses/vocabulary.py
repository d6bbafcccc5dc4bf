"""Cross-entropy over a vocabulary, some rows of the batch at a time.

The logits of 4,096 captions of 77 tokens over 49,408 words take 58 GiB. Here only those of a few
rows exist at once; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
from clip_jax.distributed.pieces import map_pieces, pull_pieces
from clip_jax.models.words import word_logits

MAX_BYTES = 64 << 20  # of the float32 logits that exist at once on a device

Layer = tuple[Float[Array, "width vocabulary"], Float[Array, " vocabulary"] | None]


def token_losses(
    hidden: Float[Array, "n tokens width"],
    kernel: Float[Array, "width vocabulary"],
    bias: Float[Array, " vocabulary"] | None,
    targets: Int[Array, "n tokens choices"],
    shares: Float[Array, "n tokens choices"],
    *,
    label_smoothing: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> Float[Array, "n tokens"]:
    """Returns the cross-entropy of each token with a distribution over some words, float32.

    Logits are hidden · kernel + bias; the product has the dtype of `hidden`, sums are float32.

    Args:
      hidden: the features from which words are predicted.
      kernel, bias: the output layer.
      targets: the ids of the words that are right.
      shares: the probability of each of them; they sum to 1.
      label_smoothing: the share of the target that is spread over the whole vocabulary.
      max_bytes: the size of the logits that exist at once on a device. At least one row is computed
        at a time.
    """

    def compute(layer: Layer, rows: Any) -> tuple[Array, tuple[()]]:
        hidden, (targets, shares) = rows
        logits = word_logits(hidden, *layer)
        chosen = jnp.sum(shares * jnp.take_along_axis(logits, targets, axis=-1), axis=-1)
        if label_smoothing:
            mean = jnp.mean(logits, axis=-1)
            chosen = (1 - label_smoothing) * chosen + label_smoothing * mean
        return jax.nn.logsumexp(logits, axis=-1) - chosen, ()

    return _in_parts(compute, (kernel, bias), hidden, (targets, shares), max_bytes)[0]


def losses_and_hits(
    hidden: Float[Array, "n tokens width"],
    kernel: Float[Array, "width vocabulary"],
    bias: Float[Array, " vocabulary"],
    targets: Int[Array, "n tokens"],
    *,
    max_bytes: int = MAX_BYTES,
) -> tuple[Float[Array, "n tokens"], Bool[Array, "n tokens"]]:
    """Returns the cross-entropy of each token with one word, and whether that word is likeliest.

    The arguments are those of `token_losses`.
    """

    def compute(layer: Layer, rows: Any) -> tuple[Array, Array]:
        hidden, targets = rows
        logits = word_logits(hidden, *layer)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen, chosen >= jnp.max(logits, axis=-1)

    return _in_parts(compute, (kernel, bias), hidden, targets, max_bytes)


def _in_parts(
    compute: Callable[[Layer, Any], tuple[Array, Any]],
    layer: Layer,
    hidden: Float[Array, "n tokens width"],
    targets: Any,
    max_bytes: int,
) -> tuple[Array, Any]:
    """Applies a function to the rows of a batch, on each device a few of its own at a time.

    The backward pass sums the gradients of the layer over all parts in float32 before devices
    exchange them: one exchange of a vocabulary's kernel takes milliseconds.

    Args:
      compute: maps the layer and (hidden, targets) of some rows to their losses, and to more that
        has no gradient.
      layer: the kernel and the bias.
      hidden: the features from which words are predicted.
      targets: arrays [n, …] without gradients.
      max_bytes: as for `token_losses`.
    """
    row_bytes = hidden.shape[1] * layer[0].shape[1] * 4
    most = max(max_bytes // row_bytes, 1)
    if len(hidden) // sharding.row_shards() <= most:
        return compute(layer, (hidden, targets))

    @jax.custom_vjp
    def run(layer: Layer, hidden: Array, targets: Any) -> tuple[Array, Any]:
        results: tuple[Array, Any] = map_pieces(compute, layer, (hidden, targets), most)
        return results

    def run_forward(layer: Layer, hidden: Array, targets: Any) -> tuple[Any, Any]:
        return run(layer, hidden, targets), (layer, hidden, targets)

    def run_backward(saved: Any, gradients: Any) -> tuple[Any, Array, None]:
        layer, *rows = saved

        def losses(layer: Layer, rows: Any) -> Array:
            return compute(layer, rows)[0]

        sums, to_hidden = pull_pieces(losses, layer, tuple(rows), gradients[0], most)
        to_layer = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, layer)
        return to_layer, to_hidden, None

    run.defvjp(run_forward, run_backward)
    results: tuple[Array, Any] = run(layer, sharding.constrain_rows(hidden), targets)
    return results
