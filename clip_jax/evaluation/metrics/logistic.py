"""Logistic regressions on frozen features, many at once, for linear probes and few-shot learning.

For features x, classes y and a strength λ the objective is

    Σᵢ −log softmax(W xᵢ + b)[yᵢ] + λ/2 ‖W‖²,

with a *sum* over rows and a free bias. This is scikit-learn's `LogisticRegression(C=1/λ)`, which
the paper's released example uses, so that λ means the same. (With a mean over rows λ would be n
times as strong.) As there, two classes share one weight vector. A multi-label target has a logistic
regression for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from clip_jax.distributed import multihost
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics import lbfgs

Target = Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]

TOLERANCE = 1e-7
BLOCK_BYTES = 2**23  # of logits on a device at once
LEAST = 32  # rows of a block, if problems have rows of their own
SLOT_BYTES = 2**32  # of problems on a device at once
NOISE = 1e-12  # variance, relative to the largest, that is rounding in float32 features
TOGETHER = 256  # classes of problems on different rows that are computed side by side
_EXACT = jax.lax.Precision.HIGHEST


class Weights(NamedTuple):
    """Linear classifiers, one for each problem.

    The scores are `features @ kernel.T + bias`.
    """

    kernel: Float[np.ndarray, "problems classes d"]
    bias: Float[np.ndarray, "problems classes"]
    converged: Bool[np.ndarray, " problems"]


def _cross_entropy(z: Array, target: Array) -> tuple[Array, Array]:
    """Losses [p, b] and their gradients by the logits z [p, k, b]; target [b].

    Small losses are exact: neither is computed as a difference of numbers near one.
    """
    own = jnp.arange(z.shape[1])[:, None] == target
    z = z - jnp.where(own, z, 0).sum(1, keepdims=True)
    top = jnp.maximum(z.max(1, keepdims=True), 0)
    share = jnp.where(own, 0, jnp.exp(z - top))
    others = share.sum(1, keepdims=True)
    total = others + jnp.exp(-top)
    loss = top + jnp.where(top > 0, jnp.log(total), jnp.log1p(others))
    return loss[:, 0], jnp.where(own, -others, share) / total


def _sigmoid_entropy(z: Array, target: Array) -> tuple[Array, Array]:
    """Returns losses and gradients as `_cross_entropy` for a multi-label target [k, b].

    They are summed over the classes.
    """
    sign = jnp.where(target, -1.0, 1.0)
    return jax.nn.softplus(sign * z).sum(1), sign * jax.nn.sigmoid(sign * z)


def _problems_at_once(classes: int) -> int:
    """Returns how many problems on different rows are computed side by side."""
    return max(1, TOGETHER // classes)


def _objective(x: Array, problem: Any, shared: Any) -> tuple[Array, Array]:
    """Returns the mean loss plus λ/2n ‖W‖² of p problems, x [p, k, r + 1], and the gradients.

    One product serves all problems on the same rows. Problems on different rows run a few at a
    time, each over its own blocks of rows alone.
    """
    if len(shared[0]) == 1:
        return _losses(x, (*problem[:2], 0), shared)

    def single(problem: Any) -> tuple[Array, Array]:
        x, ridge, count, which = problem
        value, gradient = _losses(x[None], (ridge[None], count[None], which), shared)
        return value[0], gradient[0]

    p, k = x.shape[:2]
    # a divisor of the number of problems, so that there is no second compilation
    even = next(i for i in range(_problems_at_once(k), 0, -1) if p % i == 0)
    return jax.lax.map(single, (x, *problem), batch_size=even)


def _losses(x: Array, problem: Any, shared: Any) -> tuple[Array, Array]:
    """Returns what `_objective` returns, for p problems on the first rows of one set.

    The rows are read in blocks.
    """
    ridge, count, which = problem
    features, target, free = shared

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, labels = features[which, i], target[which, i]
        entropy = _cross_entropy if labels.ndim == 1 else _sigmoid_entropy
        z = jnp.einsum("pkd,bd->pkb", x, rows, precision=_EXACT)
        loss, residual = entropy(z, labels)
        is_row = i * len(rows) + jnp.arange(len(rows)) < count[:, None]
        weight = is_row / count[:, None].astype(jnp.float32)
        gradient = jnp.einsum("pkb,bd->pkd", residual * weight[:, None], rows, precision=_EXACT)
        return sums[0] + (loss * weight).sum(1), sums[1] + gradient

    penalty = ridge[:, None, None] * free * x
    start = ((penalty * x).sum((1, 2)) / 2, penalty)
    blocks = -(-count.max() // features.shape[2])
    return jax.lax.fori_loop(0, blocks, add, start)


class _Space(NamedTuple):
    """The principal axes of a set of rows, in which the Hessian of the loss is nearly diagonal.

    A rotation does not change ‖W‖ and the free bias absorbs the mean, so the minimum is the same.
    The rows do not differ along the other axes, where the minimum has no weight.
    """

    mean: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "d r"]
    rows: Float[np.ndarray, "n r"]  # the features there
    scale: Float[np.ndarray, " r"]  # mean squares of the columns


def _space(features: Float[np.ndarray, "n d"], block: int = 4096) -> _Space:
    n, d = features.shape
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    gram = np.zeros((d, d))
    for i in range(0, n, block):
        part = (features[i : i + block] - mean).astype(np.float64)
        gram += part.T @ part
    squares, axes = (a.astype(np.float32) for a in np.linalg.eigh(gram / n))
    if multihost.is_multi_process():  # eigenvectors may differ between machines
        squares, axes = map(np.asarray, multihost_utils.broadcast_one_to_all((squares, axes)))
    varying = squares > NOISE * max(squares.max(), 1e-30)
    axes = axes[:, varying]
    rows = np.empty((n, axes.shape[1]), np.float32)
    for i in range(0, n, block):
        rows[i : i + block] = (features[i : i + block] - mean) @ axes
    return _Space(mean, axes, rows, squares[varying])


def check(features: np.ndarray, target: np.ndarray, classes: int, what: str) -> None:
    """Raises a UserError if no classifier can be fitted to or tested on the features and labels."""
    if len(features) != len(target) or not len(target):
        raise UserError(f"{what}: {len(features)} features for {len(target)} labels")
    bad = ~np.isfinite(features).all(1)
    if bad.any():
        where = f"{bad.sum():,} of {len(bad):,} rows, the first is row {bad.argmax()}"
        raise UserError(f"{what}: features are not finite in {where}: is the model sound?")
    if target.ndim == 2 and target.shape[1] != classes:
        raise UserError(f"{what}: labels of {target.shape[1]} classes, not {classes}")
    if target.ndim == 1 and not (target.min() >= 0 and target.max() < classes):
        raise UserError(f"{what}: a label is not one of 0 … {classes - 1}")


def check_classes(target: np.ndarray, classes: int) -> None:
    """Raises a UserError if a class has no row: its bias would go to infinity."""
    if target.ndim == 1:
        missing = np.bincount(target, minlength=classes) == 0
    else:
        missing = (target.sum(0) == 0) | (target.sum(0) == len(target))
    if missing.any():
        without = "row to train on" if target.ndim == 1 else "row with and one without it"
        raise UserError(
            f"{missing.sum()} of {classes} classes, the first is class {missing.argmax()}, "
            f"have no {without}: complete the training split or leave them out"
        )


def fit(
    features: Float[np.ndarray, "n d"],
    target: Target,
    classes: int,
    lambdas: Float[np.ndarray, " problems"],
    rows: Int[np.ndarray, "sets rows"] | None = None,
    which: Int[np.ndarray, " problems"] | None = None,
    counts: Int[np.ndarray, " problems"] | None = None,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """Fits logistic regressions on the same features or on subsets of the rows, all at once.

    Each set of rows is stored once, and each problem computes with its own rows alone.

    Args:
      features: finite features, on any scale.
      target: the class of each row, or bool [n, classes] if a row may have several.
      classes: the number of classes; each needs a row.
      lambdas: the strength λ of each problem.
      rows: sets of row numbers; a repeated number counts twice. None: one set with all rows.
      which: the set of each problem; None: the first.
      counts: the number of the first rows of its set that each problem uses; None: all.
      mesh: its devices share the problems; None: one device.
      progress: called with the number of finished problems and of all.

    Raises:
      UserError: the features or labels cannot be fitted.
    """
    check(features, target, classes, "linear probe")
    rows = np.arange(len(target))[None] if rows is None else rows
    which = np.zeros(len(lambdas), int) if which is None else which
    counts = np.full(len(lambdas), rows.shape[1]) if counts is None else counts
    for i, count in sorted({*zip(which.tolist(), counts.tolist(), strict=True)}):
        check_classes(target[rows[i, :count]], classes)
    spaces = [_space(np.asarray(features[own], np.float32)) for own in rows]
    d = max(len(space.scale) for space in spaces) + 1  # the last is the bias's
    least = counts.min() if len(rows) > 1 else rows.shape[1]
    devices = mesh.size if mesh else 1
    slots, block = _block_sizes(len(lambdas), len(rows), int(least), classes, d, devices)
    blocks, labels, squares = _blocks(spaces, target[rows], block, d)
    # two opposite vectors of half the length have half the penalty of the one they stand for
    pair = 2.0 if classes == 2 and target.ndim == 1 else 1.0
    ridge = (pair * np.asarray(lambdas, np.float64) / counts).astype(np.float32)
    free = np.append(np.ones(d - 1, np.float32), np.float32(0))
    steep = 1 / classes if target.ndim == 1 else 0.25  # of a loss's Hessian where x = 0
    scaling = 1 / np.maximum(steep * squares[which] + ridge[:, None] * free, 1e-30)
    minima = lbfgs.minimize(
        _objective,
        np.broadcast_to(np.float32(0), (len(lambdas), classes, d)),
        (ridge, counts.astype(np.int32), which.astype(np.int32)),
        (blocks, labels, free),
        scaling=scaling[:, None, :],
        tolerance=TOLERANCE,
        slots=slots,
        mesh=mesh,
        progress=progress,
    )
    return _unrotate(minima, spaces, which)


def _blocks(
    spaces: Sequence[_Space], target: np.ndarray, block: int, d: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of each set in blocks, padded with zeros.

    Args:
      target: [sets, rows] or [sets, rows, classes].

    Returns:
      Features and ones [sets, blocks, block, d]; labels [sets, blocks, block] or [sets, blocks,
      classes, block]; mean squares [sets, d].
    """
    sets, size = target.shape[:2]
    padded = -(-size // block) * block
    features = np.zeros((sets, padded, d), np.float32)
    labels = np.zeros((sets, padded, *target.shape[2:]), bool if target.ndim == 3 else np.int32)
    squares = np.zeros((sets, d))
    features[:, :size, -1], labels[:, :size], squares[:, -1] = 1, target, 1
    for i, space in enumerate(spaces):
        rank = len(space.scale)
        features[i, :size, :rank], squares[i, :rank] = space.rows, space.scale
    labels = labels.reshape(sets, -1, block, *target.shape[2:])
    labels = labels.swapaxes(2, 3) if target.ndim == 3 else labels
    return features.reshape(sets, -1, block, d), labels, squares


def _unrotate(minima: lbfgs.Minima, spaces: Sequence[_Space], which: np.ndarray) -> Weights:
    """Returns the classifiers for the original features, before centring and rotation."""
    x, bias = minima.x[..., :-1], minima.x[..., -1].copy()
    kernel = np.empty((*bias.shape, len(spaces[0].mean)), np.float32)
    for i, space in enumerate(spaces):
        for j in np.flatnonzero(which == i):
            kernel[j] = x[j, :, : len(space.scale)] @ space.axes.T
            bias[j] -= kernel[j] @ space.mean
    return Weights(kernel, bias, minima.converged)


def _block_sizes(
    problems: int, sets: int, least: int, classes: int, d: int, devices: int
) -> tuple[int, int]:
    """Returns the numbers of problems at a time and of rows per block that fit into device memory.

    Args:
      least: the rows of the smallest problem; a larger block would be partly empty.
    """
    state = (4 * lbfgs.MEMORY + 16) * classes * d * 4  # twice: packing copies the slots
    own = max(1, min(-(-problems // devices), SLOT_BYTES // state))
    beside, width = (own, classes) if sets == 1 else (_problems_at_once(classes), classes + d)
    rows = max(8, BLOCK_BYTES // (beside * width * 4))  # logits, and the rows of each problem
    return own * devices, int(min(rows, max(least, LEAST)))


def scores(
    features: Float[np.ndarray, "n d"], weights: Weights, problem: int = 0
) -> Float[np.ndarray, "n classes"]:
    """Returns the logits of one problem's classifier."""
    return features @ weights.kernel[problem].T + weights.bias[problem]
