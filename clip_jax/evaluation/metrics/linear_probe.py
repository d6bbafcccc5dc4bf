"""Linear probes: logistic regression on frozen features by the paper's protocol.

Source: Radford et al. 2021, section 3.2 and appendix A.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from clip_jax.evaluation.metrics import zero_shot
from clip_jax.evaluation.metrics.logistic import Target, check, fit, scores

Metric = Callable[[Float[np.ndarray, "n classes"], Target], float]


def grid() -> Float[np.ndarray, " 97"]:
    """Returns the strengths λ from 1e-6 to 1e6 in 96 steps, eight per decade, with both ends."""
    return 10.0 ** (np.arange(97) / 8 - 6)


def accuracy(scores: Float[np.ndarray, "n classes"], target: Int[np.ndarray, " n"]) -> float:
    """Returns the share of rows whose class has the highest score."""
    return zero_shot.top_k(scores, target, (1,))["top1"]


class Sweep(NamedTuple):
    """The validation metric of each strength of `grid`.

    Attributes:
      lambdas: the strengths.
      values: the metric of each strength.
      chosen: the λ that the paper's search returns.
      best: the λ with the best metric.
      visited: the indices, in `lambdas`, that the search evaluates.
    """

    lambdas: Float[np.ndarray, " 97"]
    values: Float[np.ndarray, " 97"]
    chosen: float
    best: float
    visited: tuple[int, ...]


def halving(values: Sequence[float]) -> tuple[int, tuple[int, ...]]:
    """Runs the paper's search over `grid`.

    It starts with every second decade and halves the distance around the peak down to an eighth of
    a decade. Of equal values the stronger λ is the peak.

    Args:
      values: the metric of each strength of `grid`.

    Returns:
      The index of the result, and all indices that the search evaluates.
    """
    distance, visited = 16, set(range(0, len(values), 16))

    def peak(numbers: set[int]) -> int:
        return max(numbers, key=lambda i: (values[i], i))

    best = peak(visited)
    while distance > 1:
        distance //= 2
        near = {i for i in (best - distance, best, best + distance) if 0 <= i < len(values)}
        visited |= near
        best = peak(near)
    return best, tuple(sorted(visited))


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
    """Fits all strengths of the grid at once and compares them on the validation split.

    Source: appendix A.3.

    Raises:
      UserError: as for `fit`.
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


def held_out(
    target: Target, classes: int, share: float = 0.1, seed: int = 0
) -> Bool[np.ndarray, " n"]:
    """Returns a mask of rows to hold out for validation: a random share of each class.

    A class of one row stays in training; every other class has at least one row held out. A row
    with several labels counts for its rarest.
    """
    if target.ndim == 2:
        rarity = np.where(target, target.sum(0), len(target) + 1)
        target = np.where(target.any(1), rarity.argmin(1), classes)
    mask = np.zeros(len(target), bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(target):
        own = rng.permutation(np.flatnonzero(target == label))
        if len(own) > 1:
            mask[own[: max(1, round(share * len(own)))]] = True
    return mask


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """A strength λ and the metric that it gives on the validation split."""

    lambda_: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear probe.

    Attributes:
      lambda_: the strength λ that the paper's search returns, with which the probe is fitted.
      best_lambda: the λ that is best on the validation split.
      train: the number of rows of the training split.
      validation: the number of rows of the validation split.
      sweep: the validation metric of every λ.
    """

    lambda_: float
    best_lambda: float
    train: int
    validation: int
    sweep: list[SweepPoint]


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
) -> tuple[Probe, Float[np.ndarray, "t classes"]]:
    """Fits the paper's linear probe: chooses λ on the validation split, refits on both, tests.

    Args:
      validation: the features of the validation split; None: a tenth of each class of the training
        split is held out (`held_out`).
      metric: (scores, target) → a number; more is better.
      progress: as for `fit`, called during the sweep.

    Returns:
      The probe, and its scores of the test split's rows.

    Raises:
      UserError: as for `fit`.
    """
    check(test, test_target, classes, "test split")
    if validation is None or validation_target is None:
        mask = held_out(train_target, classes)
        validation, validation_target = train[mask], train_target[mask]
        train, train_target = train[~mask], train_target[~mask]
    both = (train, train_target, validation, validation_target)
    sweep = search(*both, classes, metric, mesh=mesh, progress=progress)
    all_rows = np.concatenate([train, validation])
    all_targets = np.concatenate([train_target, validation_target])
    weights = fit(all_rows, all_targets, classes, np.array([sweep.chosen]), mesh=mesh)
    logits = scores(test, weights)
    points = zip(sweep.lambdas.tolist(), sweep.values.tolist(), strict=True)
    fitted = Probe(
        lambda_=sweep.chosen,
        best_lambda=sweep.best,
        train=len(train),
        validation=len(validation),
        sweep=[SweepPoint(strength, value) for strength, value in points],
    )
    return fitted, logits
