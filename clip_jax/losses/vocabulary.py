"""Cross-entropy over a vocabulary, some rows of the batch at a time.

The logits of 4,096 captions of 77 tokens over 49,408 words take 58 GiB. Here only those of a few
rows exist at once; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import sharding
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
    parts = _parts(hidden, layer[0].shape[1], max_bytes)
    if parts == 1:
        return compute(layer, (hidden, targets))

    def split(rows: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)

    def merge(pieces: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pieces)

    @jax.custom_vjp
    def run(layer: Layer, hidden: Array, targets: Any) -> tuple[Array, Any]:
        def forward(layer: Layer, rows: Any) -> tuple[tuple[()], Any]:
            return (), merge(jax.lax.map(partial(compute, layer), split(rows)))

        results: tuple[Array, Any] = sharding.by_device(forward, layer, (hidden, targets))[1]
        return results

    def run_forward(layer: Layer, hidden: Array, targets: Any) -> tuple[Any, Any]:
        return run(layer, hidden, targets), (layer, hidden, targets)

    def run_backward(saved: Any, gradients: Any) -> tuple[Any, Array, None]:
        layer, hidden, targets = saved

        def backward(layer: Layer, rows: Any) -> tuple[Any, Array]:
            def add_piece(sums: Any, piece: Any) -> tuple[Any, Array]:
                (hidden, targets), gradient = piece
                losses = partial(_losses_of, compute, targets)
                more, to_hidden = jax.vjp(losses, layer, hidden)[1](gradient)
                return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, more), to_hidden

            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), layer)
            sums, to_hidden = jax.lax.scan(add_piece, zero, split(rows))
            return sums, merge(to_hidden)

        rows = ((hidden, targets), gradients[0])
        sums, to_hidden = sharding.by_device(backward, layer, rows)
        to_layer = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, layer)
        return to_layer, to_hidden, None

    run.defvjp(run_forward, run_backward)
    results: tuple[Array, Any] = run(layer, sharding.constrain_rows(hidden), targets)
    return results


def _losses_of(
    compute: Callable[[Layer, Any], tuple[Array, Any]], targets: Any, layer: Layer, hidden: Array
) -> Array:
    return compute(layer, (hidden, targets))[0]


def _parts(hidden: Float[Array, "n tokens width"], vocabulary: int, max_bytes: int) -> int:
    """Returns the least number of equal parts of each device's rows that are small enough."""
    rows = len(hidden) // sharding.row_shards()
    row_bytes = hidden.shape[1] * vocabulary * 4
    fits = (p for p in range(1, rows) if rows % p == 0 and rows // p * row_bytes <= max_bytes)
    return next(fits, max(rows, 1))
