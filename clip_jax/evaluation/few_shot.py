"""Few-shot classifiers: logistic regression on a few pictures of each class (figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clip_jax.evaluation import linear_probe, logistic
from clip_jax.evaluation.linear_probe import Metric, accuracy
from clip_jax.evaluation.logistic import Target, Weights

STRENGTH = 1 / 0.316  # λ where nothing is left to choose it by: C = 0.316 of CLIP's own example
HELD_BYTES = 2**32  # of the classifiers that are fitted at once


def draw(target: Int[np.ndarray, " n"], shots: int, seed: int) -> Int[np.ndarray, " rows"]:
    """So many rows of each class, or all that it has: round by round one of each class.

    The rows of fewer shots with the same seed are among them.
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
) -> dict[str, Any]:
    """Classifiers from a few rows of each class, drawn anew with each seed.

    All shots, seeds and strengths are fitted at once, each on its own rows; where they are more
    than `HELD_BYTES` hold, some seeds after the others. λ is the best on the validation split,
    for each number of shots and seed. The paper does not say how it is chosen where there is none:
    then it is `STRENGTH`, and no test picture has a say.

    Args:
      lambdas: the strengths to choose from; None: `linear_probe.grid()` with a validation split,
        else `STRENGTH` alone.

    Returns:
      `shots`, `seeds`, `values` (of each number of shots, by seed), their `mean` and `std`.

    Raises:
      UserError: as `logistic.fit`.
      ValueError: several strengths and nothing to choose them by.
    """
    judged = [(test, test_target)]
    if validation is not None and validation_target is not None:
        judged.insert(0, (validation, validation_target))
    if lambdas is None:
        lambdas = linear_probe.grid() if len(judged) > 1 else np.array([STRENGTH])
    if len(lambdas) > 1 and len(judged) == 1:
        raise ValueError("several strengths need a validation split to choose from")
    for features, target in ((train, train_target), *judged):
        logistic.check(features, target, classes, "few-shot")

    def measure(fitted: Weights, problem: int, split: int) -> float:
        features, target = judged[split]
        return metric(logistic.scores(features, fitted, problem), target)

    sizes = np.minimum.outer(np.asarray(shots), np.bincount(train_target)).sum(1)
    values = np.zeros((len(shots), seeds))
    twice = 8 * len(shots) * len(lambdas) * classes * train.shape[1]  # as fitted, and turned back
    for first in range(0, seeds, step := max(1, HELD_BYTES // twice)):
        drawn = range(first, min(first + step, seeds))
        rows = np.stack([draw(train_target, max(shots), seed) for seed in drawn])
        shot, own, strength = np.indices((len(shots), len(rows), len(lambdas))).reshape(3, -1)
        sets = (rows, own, sizes[shot])
        fitted = logistic.fit(train, train_target, classes, lambdas[strength], *sets, mesh=mesh)
        for i, j in np.ndindex(len(shots), len(rows)):
            problems = np.flatnonzero((shot == i) & (own == j))
            if len(lambdas) > 1:
                found = np.array([measure(fitted, int(k), 0) for k in problems])
                problems = problems[::-1][found[::-1].argmax() :]
            values[i, first + j] = measure(fitted, int(problems[0]), -1)
    return {
        "shots": list(shots),
        "seeds": seeds,
        "mean": values.mean(1).tolist(),
        "std": values.std(1).tolist(),
        "values": values.tolist(),
    }
