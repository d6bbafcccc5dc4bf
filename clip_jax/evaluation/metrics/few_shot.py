"""Few-shot classifiers: logistic regression on a few images of each class (figure 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clip_jax.evaluation.metrics import linear_probe, logistic
from clip_jax.evaluation.metrics.linear_probe import Metric, accuracy
from clip_jax.evaluation.metrics.logistic import Target, Weights

STRENGTH = 1 / 0.316  # λ without a validation split: C = 0.316 in CLIP's own example
HELD_BYTES = 2**32  # of classifiers that are fitted at once


@dataclasses.dataclass(frozen=True)
class FewShot:
    """The test metric of few-shot classifiers.

    Attributes:
      shots: the numbers of rows per class.
      seeds: the number of draws for each number of shots.
      mean: the mean over the draws, for each number of shots.
      std: the standard deviation over the draws, for each number of shots.
      values: the value of every draw, for each number of shots.
    """

    shots: list[int]
    seeds: int
    mean: list[float]
    std: list[float]
    values: list[list[float]]

    @classmethod
    def from_values(cls, shots: Sequence[int], values: Float[np.ndarray, "shots seeds"]) -> FewShot:
        """Returns the statistics of the values [shots, seeds] of every number of shots and draw."""
        return cls(
            shots=list(shots),
            seeds=values.shape[1],
            mean=values.mean(1).tolist(),
            std=values.std(1).tolist(),
            values=values.tolist(),
        )


def draw(target: Int[np.ndarray, " n"], shots: int, seed: int) -> Int[np.ndarray, " rows"]:
    """Returns the numbers of `shots` random rows of each class, or of all rows of a smaller class.

    They are in rounds of one row per class, so that a draw with fewer shots and the same seed is a
    prefix.
    """
    order = np.random.default_rng(seed).permutation(len(target))
    by_class = order[np.argsort(target[order], kind="stable")]
    labels = target[by_class]
    turn = np.arange(len(labels)) - np.searchsorted(labels, labels)
    rounds = by_class[np.argsort(turn, kind="stable")]
    return rounds[: int((turn < shots).sum())]


def few_shot(
    train: Float[np.ndarray, "n d"],
    train_target: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "t d"],
    test_target: Target,
    classes: int,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 3,
    lambdas: Float[np.ndarray, " lambdas"] | None = None,
    metric: Metric = accuracy,
    *,
    validation: Float[np.ndarray, "v d"] | None = None,
    validation_target: Target | None = None,
    mesh: Mesh | None = None,
) -> FewShot:
    """Fits classifiers to a few rows of each class, drawn anew for each seed, and tests them.

    All shots, seeds and strengths are fitted at once, each on its own rows, unless that takes more
    than `HELD_BYTES`; then some seeds follow the others. λ is the best on the validation split, for
    each number of shots and seed. The paper does not say how λ is chosen without such a split; here
    it is then `STRENGTH`, so that no test image influences it.

    Args:
      lambdas: the strengths to choose from; None: `linear_probe.grid()` with a validation split,
        else `STRENGTH` alone.

    Raises:
      UserError: as for `logistic.fit`.
      ValueError: there are several strengths and nothing to choose them by.
    """
    splits = [(test, test_target)]
    if validation is not None and validation_target is not None:
        splits.insert(0, (validation, validation_target))
    if lambdas is None:
        lambdas = linear_probe.grid() if len(splits) > 1 else np.array([STRENGTH])
    if len(lambdas) > 1 and len(splits) == 1:
        raise ValueError("several strengths need a validation split to choose from")
    for features, target in ((train, train_target), *splits):
        logistic.check(features, target, classes, "few-shot")

    def measure(fitted: Weights, problem: int, split: int) -> float:
        features, target = splits[split]
        return metric(logistic.scores(features, fitted, problem), target)

    sizes = np.minimum.outer(np.asarray(shots), np.bincount(train_target)).sum(1)
    values = np.zeros((len(shots), seeds))
    bytes_per_seed = 8 * len(shots) * len(lambdas) * classes * train.shape[1]  # twice, see `fit`
    for first in range(0, seeds, step := max(1, HELD_BYTES // bytes_per_seed)):
        seed_range = range(first, min(first + step, seeds))
        rows = np.stack([draw(train_target, max(shots), seed) for seed in seed_range])
        shot, row_set, strength = np.indices((len(shots), len(rows), len(lambdas))).reshape(3, -1)
        sets = (rows, row_set, sizes[shot])
        fitted = logistic.fit(train, train_target, classes, lambdas[strength], *sets, mesh=mesh)
        for i, j in np.ndindex(len(shots), len(rows)):
            problems = np.flatnonzero((shot == i) & (row_set == j))
            if len(lambdas) > 1:
                values_by_lambda = np.array([measure(fitted, int(k), 0) for k in problems])
                problems = problems[::-1][values_by_lambda[::-1].argmax() :]
            values[i, first + j] = measure(fitted, int(problems[0]), -1)
    return FewShot.from_values(shots, values)
