"""Logistic regression on frozen features: linear probes and few-shot classifiers.

Sources: Radford et al. 2021, section 3.2 and appendix A.3 (probe), figure 6 (few-shot).

For features x, classes y and a strength λ what is minimised is

    Σᵢ −log softmax(W xᵢ + b)[yᵢ] + λ/2 ‖W‖²,

the *sum* over rows; the bias is free. This is scikit-learn's `LogisticRegression(C=1/λ)`, with
which the paper's released example makes its probe, so λ means here what it means there. (With a
mean over rows in place of the sum, λ would be n times as strong.) Two classes share one weight
vector, as there; a multi-label target has a logistic regression for each class.
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

from clip_jax import hosts
from clip_jax.errors import UserError
from clip_jax.evaluation import lbfgs, zero_shot

Target = Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]
Metric = Callable[[Float[np.ndarray, "n classes"], Target], float]

TOLERANCE = 1e-7
BLOCK_BYTES = 2**23  # of the logits that a device holds at once
SLOT_BYTES = 2**32  # of the problems that a device holds at once
NOISE = 1e-12  # variance, as a part of the largest, that float32 features cannot hold
_EXACT = jax.lax.Precision.HIGHEST


class Weights(NamedTuple):
    """Linear classifiers, one for each problem: scores are `features @ kernel.T + bias`."""

    kernel: Float[np.ndarray, "problems classes d"]
    bias: Float[np.ndarray, "problems classes"]
    converged: Bool[np.ndarray, " problems"]


def grid() -> Float[np.ndarray, " 97"]:
    """The strengths λ from 1e-6 to 1e6 in 96 steps, eight per decade; both ends count."""
    return 10.0 ** (np.arange(97) / 8 - 6)


def accuracy(scores: Float[np.ndarray, "n classes"], target: Int[np.ndarray, " n"]) -> float:
    """The share of rows whose class has the highest score."""
    return zero_shot.top_k(scores, target, (1,))["top1"]


def _cross_entropy(z: Array, target: Array) -> tuple[Array, Array]:
    """Losses [p, b] and their gradients by the logits z [p, k, b]; target [b].

    Small ones are exact: neither is made as the difference of numbers near one.
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
    """The same for a multi-label target [k, b], summed over the classes."""
    sign = jnp.where(target, -1.0, 1.0)
    return jax.nn.softplus(sign * z).sum(1), sign * jax.nn.sigmoid(sign * z)


def _objective(x: Array, problem: Any, shared: Any) -> tuple[Array, Array]:
    """Mean loss and λ/2n ‖W‖² of p problems, x [p, k, d + 1], scanned in blocks of rows."""
    ridge, which = problem
    blocks, free = shared

    def add(sums: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], None]:
        features, target, weights = block
        entropy = _cross_entropy if target.ndim == 1 else _sigmoid_entropy
        z = jnp.einsum("pkd,bd->pkb", x, features, precision=_EXACT)
        loss, residual = entropy(z, target)
        weight = weights[which]
        gradient = jnp.einsum("pkb,bd->pkd", residual * weight[:, None], features, precision=_EXACT)
        return (sums[0] + (loss * weight).sum(1), sums[1] + gradient), None

    penalty = ridge[:, None, None] * free * x
    start = ((penalty * x).sum((1, 2)) / 2, penalty)
    return jax.lax.scan(add, start, blocks)[0]


class _Space(NamedTuple):
    """Principal axes, in which the Hessian of the loss is nearly diagonal.

    A rotation leaves ‖W‖ as it is and the free bias takes up the mean, so the minimum is the same.
    """

    mean: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "d d"]
    rows: Float[np.ndarray, "n d+1"]  # the features there, and a column of ones for the bias
    scale: Float[np.ndarray, " d+1"]  # mean squares of the columns


def _space(features: Float[np.ndarray, "n d"], block: int = 4096) -> _Space:
    n, d = features.shape
    mean = features.mean(0, dtype=np.float64).astype(np.float32)
    gram = np.zeros((d, d))
    for i in range(0, n, block):
        part = features[i : i + block] - mean
        gram += part.T @ part
    axes = np.linalg.eigh(gram)[1].astype(np.float32)
    if hosts.many():  # another machine's may be turned otherwise
        axes = np.asarray(multihost_utils.broadcast_one_to_all(axes))
    rows = np.ones((n, d + 1), np.float32)
    for i in range(0, n, block):
        rows[i : i + block, :d] = (features[i : i + block] - mean) @ axes
    scale = np.einsum("nd,nd->d", rows, rows, dtype=np.float64) / n
    rows[:, scale <= NOISE * max(scale[:d].max(), 1e-30)] = 0
    return _Space(mean, axes, rows, scale)


def check(features: np.ndarray, target: np.ndarray, classes: int, what: str) -> None:
    """Raises UserError for features and labels that no classifier can be fitted to or judged by."""
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


def check_classes(target: np.ndarray, weights: np.ndarray, classes: int) -> None:
    """Raises UserError where a class has no row, which would send its bias to infinity."""
    for present in weights > 0:
        own = target[present]
        if target.ndim == 1:
            missing = np.bincount(own, minlength=classes) == 0
        else:
            missing = (own.sum(0) == 0) | (own.sum(0) == len(own))
        if missing.any():
            without = "row to train on" if target.ndim == 1 else "row with and one without it"
            raise UserError(
                f"{missing.sum()} of {classes} classes, the first is class {missing.argmax()}, "
                f"have no {without}: complete the training split or leave them out"
            )


def _blocks(arrays: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """Arrays [n, …] as [blocks, rows, …], filled up with zeros."""
    filled = []
    for array in arrays:
        count = -(-len(array) // rows)
        whole = np.zeros((count * rows, *array.shape[1:]), array.dtype)
        whole[: len(array)] = array
        filled.append(whole.reshape(count, rows, *array.shape[1:]))
    return filled


def fit(
    features: Float[np.ndarray, "n d"],
    target: Target,
    classes: int,
    lambdas: Float[np.ndarray, " problems"],
    weights: Float[np.ndarray, "sets n"] | None = None,
    which: Int[np.ndarray, " problems"] | None = None,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """Logistic regressions on the same features, all at once.

    Args:
      features: finite, on any scale.
      target: the class of each row, or bool [n, classes] where a row may have several.
      classes: how many; each needs a row.
      lambdas: the strength λ of each problem.
      weights: how often each row counts, for several sets of rows; 0 is as good as absent.
      which: the set of each problem; None: the first.
      mesh: its devices share the problems; None: one device.
      progress: called with how many problems are done, and how many there are.

    Raises:
      UserError: the features or labels cannot be fitted.
    """
    check(features, target, classes, "linear probe")
    lambdas = np.asarray(lambdas, np.float64)
    weights = np.ones((1, len(target)), np.float32) if weights is None else weights
    which = np.zeros(len(lambdas), np.int32) if which is None else which.astype(np.int32)
    check_classes(target, weights, classes)
    space = _space(np.asarray(features, np.float32))
    total = weights.sum(1, dtype=np.float64)
    # two opposite vectors of half the length have half the penalty of the one they stand for
    pair = 2.0 if classes == 2 and target.ndim == 1 else 1.0
    ridge = (pair * lambdas / total[which]).astype(np.float32)
    d = space.rows.shape[1]
    free = np.append(np.ones(d - 1, np.float32), np.float32(0))
    steep = 1 / classes if target.ndim == 1 else 0.25  # of a loss's Hessian where x = 0
    scaling = 1 / np.maximum(steep * space.scale + ridge[:, None] * free, 1e-30)
    devices = mesh.size if mesh else 1
    slots, rows = _room(len(lambdas), len(target), classes, d, devices)
    shares = (weights / total[:, None]).astype(np.float32).T
    labels = target.astype(np.int32) if target.ndim == 1 else target
    features_, labels, shares = _blocks((space.rows, labels, shares), rows)
    labels = labels if target.ndim == 1 else labels.swapaxes(1, 2)
    found = lbfgs.minimize(
        _objective,
        np.broadcast_to(np.float32(0), (len(lambdas), classes, d)),
        (ridge, which),
        ((features_, labels, shares.swapaxes(1, 2)), free),
        scaling=scaling[:, None, :],
        tolerance=TOLERANCE,
        slots=slots,
        mesh=mesh,
        progress=progress,
    )
    kernel = (found.x[..., :-1] @ space.axes.T).astype(np.float32)
    return Weights(kernel, found.x[..., -1] - kernel @ space.mean, found.converged)


def _room(problems: int, n: int, classes: int, d: int, devices: int) -> tuple[int, int]:
    """How many problems at a time, and in blocks of how many rows, a device's memory allows."""
    state = (4 * lbfgs.MEMORY + 16) * classes * d * 4  # twice, as slots are packed anew
    own = max(1, min(-(-problems // devices), SLOT_BYTES // state))
    rows = max(8, BLOCK_BYTES // (own * classes * 4))
    return own * devices, int(min(rows, n))


class Sweep(NamedTuple):
    """What each strength of `grid` gives on the validation split.

    chosen: the λ that the paper's search comes to. best: the λ that is best of all.
    visited: the numbers, in `lambdas`, of those that the search looked at.
    """

    lambdas: Float[np.ndarray, " 97"]
    values: Float[np.ndarray, " 97"]
    chosen: float
    best: float
    visited: tuple[int, ...]


def halving(values: Sequence[float]) -> tuple[int, tuple[int, ...]]:
    """The paper's search over `grid`: the number that it comes to, and all that it looked at.

    It begins with every second decade and halves the distance around the peak down to an eighth of
    a decade. Of equal values the stronger λ counts as the peak.
    """
    distance, looked = 16, set(range(0, len(values), 16))

    def peak(numbers: set[int]) -> int:
        return max(numbers, key=lambda i: (values[i], i))

    best = peak(looked)
    while distance > 1:
        distance //= 2
        near = {i for i in (best - distance, best, best + distance) if 0 <= i < len(values)}
        looked |= near
        best = peak(near)
    return best, tuple(sorted(looked))


def search(
    train: Float[np.ndarray, "n d"],
    train_target: Target,
    validation: Float[np.ndarray, "v d"],
    validation_target: Target,
    classes: int,
    metric: Metric = accuracy,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """The whole grid of strengths at once, judged on the validation split (appendix A.3).

    Raises:
      UserError: as `fit`.
    """
    check(validation, validation_target, classes, "validation split")
    lambdas = grid()
    weights = fit(train, train_target, classes, lambdas, mesh=mesh, progress=progress)
    values = np.array(
        [metric(scores(validation, weights, i), validation_target) for i in range(len(lambdas))]
    )
    number, visited = halving(values.tolist())
    best = len(values) - 1 - int(values[::-1].argmax())
    return Sweep(lambdas, values, float(lambdas[number]), float(lambdas[best]), visited)


def scores(
    features: Float[np.ndarray, "n d"], weights: Weights, problem: int = 0
) -> Float[np.ndarray, "n classes"]:
    """The logits that one problem's classifier gives."""
    return features @ weights.kernel[problem].T + weights.bias[problem]


def held_out(
    target: Target, classes: int, share: float = 0.1, seed: int = 0
) -> Bool[np.ndarray, " n"]:
    """A validation split where a set has none: a part of each class, drawn with a seed.

    A class of one row stays in training; of every other one at least one row is held out. Of
    several labels a row counts for its rarest.
    """
    if target.ndim == 2:
        rarity = np.where(target, target.sum(0), len(target) + 1)
        target = np.where(target.any(1), rarity.argmin(1), classes)
    held = np.zeros(len(target), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(target):
        own = rng.permutation(np.flatnonzero(target == label))
        if len(own) > 1:
            held[own[: max(1, round(share * len(own)))]] = True
    return held


def probe(
    train: Float[np.ndarray, "n d"],
    train_target: Target,
    validation: Float[np.ndarray, "v d"] | None,
    validation_target: Target | None,
    test: Float[np.ndarray, "t d"],
    test_target: Target,
    classes: int,
    metric: Metric = accuracy,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], Float[np.ndarray, "t classes"]]:
    """The paper's linear probe: choose λ on the validation split, refit on both, test.

    Args:
      validation: None: a tenth of each class of the training split is held out (`held_out`).
      metric: (scores, target) → a number, the more the better.
      progress: as in `fit`, of the sweep.

    Returns:
      `value` (the metric on the test split), `lambda`, `best_lambda`, `train` and `validation` (how
      many rows), `sweep` ({"lambda", "accuracy"}, the metric on the validation split); and the
      scores of the test split.

    Raises:
      UserError: as `fit`.
    """
    check(test, test_target, classes, "test split")
    if validation is None or validation_target is None:
        held = held_out(train_target, classes)
        validation, validation_target = train[held], train_target[held]
        train, train_target = train[~held], train_target[~held]
    both = (train, train_target, validation, validation_target)
    sweep = search(*both, classes, metric, mesh=mesh, progress=progress)
    all_rows = np.concatenate([train, validation])
    all_targets = np.concatenate([train_target, validation_target])
    weights = fit(all_rows, all_targets, classes, np.array([sweep.chosen]), mesh=mesh)
    logits = scores(test, weights)
    points = zip(sweep.lambdas.tolist(), sweep.values.tolist(), strict=True)
    found = {
        "value": float(metric(logits, test_target)),
        "lambda": sweep.chosen,
        "best_lambda": sweep.best,
        "train": len(train),
        "validation": len(validation),
        "sweep": [{"lambda": strength, "accuracy": value} for strength, value in points],
    }
    return found, logits
