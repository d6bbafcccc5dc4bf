"""The official metrics of the paper's test sets, each with a 95 % interval.

A score is `{"value", "low", "high", "n"}`: the share (0…1), its interval, and how many rows it was
counted over; None where it is not defined. Ties count against the model, and what is not a number
is never right; only the ROC curve counts a tie as one half, as its area is defined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import brentq
from scipy.stats import rankdata

from clip_jax.errors import UserError

Score: TypeAlias = dict[str, float | int | None]
Logits = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Ranks = Int[np.ndarray, " n"]

METRICS = ("accuracy", "mean_per_class", "mean_top1_top5", "map_11_point", "roc_auc")
_Z = 1.959963984540054  # the normal distribution's 97.5th percentile
_NEVER = np.iinfo(np.int64).max
_BLOCK = 4_000_000  # logits that are compared at once
_RESAMPLES = 400


def wilson(share: float, n: float | int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was counted over n rows."""
    spread = _Z * np.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    middle, shrink = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    low, high = (middle - spread) / shrink, (middle + spread) / shrink
    return float(min(max(low, 0.0), share)), float(max(min(high, 1.0), share))


def _score(value: float, interval: tuple[float, float], n: int) -> Score:
    low, high = interval
    return {"value": float(value), "low": float(low), "high": float(high), "n": int(n)}


def _undefined(n: int) -> Score:
    return {"value": None, "low": None, "high": None, "n": int(n)}


def share(right: Bool[np.ndarray, " n"]) -> Score:
    """The share of rows that are right, with Wilson's interval."""
    n = len(right)
    value = np.count_nonzero(right) / n if n else 0.0
    return _score(value, wilson(value, n), n) if n else _undefined(0)


def ranks(logits: Logits, target: Labels) -> Ranks:
    """How many classes come before each row's target: 0 for the likeliest.

    A class as likely as the target, or one that is not a number, comes before it. A target that is
    not a number has a rank beyond any k.
    """
    found = np.empty(len(target), np.int64)
    step = max(1, _BLOCK // max(1, logits.shape[1]))
    for start in range(0, len(target), step):
        part = slice(start, start + step)
        own = np.take_along_axis(logits[part], target[part, None], axis=1)
        before = np.count_nonzero(~(logits[part] < own), axis=1) - 1
        found[part] = np.where(np.isnan(own[:, 0]), _NEVER, before)
    return found


def accuracy(rank: Ranks, k: int = 1) -> Score:
    """The share of rows whose target is among the k likeliest classes."""
    return share(rank < k)


def mean_top1_top5(rank: Ranks) -> Score:
    """The mean of top-1 and top-5 accuracy, Kinetics' metric.

    A row counts 1, ½ or 0. The interval is Wilson's with as many rows as would give a share of
    that value the variance that was found.
    """
    n = len(rank)
    if not n:
        return _undefined(0)
    rows = ((rank < 1).astype(np.float64) + (rank < 5)) / 2
    value, variance = rows.mean(), rows.var()
    return _score(value, wilson(value, n * value * (1 - value) / variance if variance else n), n)


def _by_class(rank: Ranks, target: Labels, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class how many rows there are, and how many are right."""
    return np.bincount(target, minlength=classes), np.bincount(target[rank < 1], minlength=classes)


def mean_per_class(rank: Ranks, target: Labels, classes: int) -> Score:
    """The mean of the classes' accuracies; classes without a row are left out.

    The interval combines the classes' Wilson intervals by their distances from the accuracies
    (MOVER; Zou and Donner 2008), so that it has a width where every row is right.
    """
    rows, right = _by_class(rank, target, classes)
    there = rows > 0
    if not there.any():
        return _undefined(0)
    shares = right[there] / rows[there]
    ends = np.array([wilson(p, n) for p, n in zip(shares, rows[there].tolist(), strict=True)])
    value, reach = shares.mean(), np.linalg.norm(ends - shares[:, None], axis=0) / len(shares)
    return _score(value, (max(0.0, value - reach[0]), min(1.0, value + reach[1])), len(rank))


def per_class(
    rank: Ranks, target: Labels, labels: Sequence[str]
) -> list[dict[str, str | int | float | None]]:
    """`{"label", "n", "accuracy"}` of every class; accuracy is None for one without a row."""
    rows, right = _by_class(rank, target, len(labels))
    return [
        {"label": label, "n": int(n), "accuracy": float(hits / n) if n else None}
        for label, n, hits in zip(labels, rows, right, strict=True)
    ]


def _against(
    values: Shaped[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """What is not a number at the wrong end."""
    worst = np.where(positive, -np.inf, np.inf)
    return np.where(np.isnan(values), worst, values)


def _precision_11(
    positive: Bool[np.ndarray, " n"], weight: Int[np.ndarray, "resamples n"]
) -> Float[np.ndarray, " resamples"]:
    """The mean over recalls 0, 0.1, …, 1 of the best precision at that recall or a higher one.

    Rows stand best first and count `weight` times. NaN where no positive row counts.
    """
    hits = np.cumsum(weight * positive, axis=1)
    precision = hits / np.maximum(np.cumsum(weight, axis=1), 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = hits[:, -1]
    # the first row of that recall, in whole numbers: 10 hits ≥ level × total
    wanted = -(-np.arange(11) * total[:, None] // 10)
    first = np.array([np.searchsorted(h, w) for h, w in zip(hits, wanted, strict=True)])
    found = np.take_along_axis(best, np.minimum(first, len(positive) - 1), axis=1).mean(axis=1)
    return np.where(total > 0, found, np.nan)


def average_precision_11(
    logits: Logits,
    target: Bool[np.ndarray, "n classes"],
    counts: Bool[np.ndarray, "n classes"] | None = None,
    weight: Int[np.ndarray, "resamples n"] | None = None,
) -> Float[np.ndarray, "resamples classes"]:
    """Each class's 11-point interpolated average precision, VOC 2007's metric.

    Source: Everingham et al., "The PASCAL Visual Object Classes Challenge", section 4.2. Among
    equal logits the pictures without the object stand first.

    Args:
      logits: of every picture and class.
      target: whether the picture shows the class.
      counts: False where a picture is left out for a class, as VOC's difficult objects are.
      weight: how often each picture counts; once if it is not given.

    Returns:
      A row for each row of `weight`; NaN for a class that no picture shows.
    """
    weight = np.ones((1, len(logits)), np.int64) if weight is None else weight
    found = np.full((len(weight), logits.shape[1]), np.nan)
    for c in range(logits.shape[1]):
        kept = np.arange(len(logits)) if counts is None else np.flatnonzero(counts[:, c])
        positive = target[kept, c]
        if positive.any():
            order = np.lexsort((positive, -_against(logits[kept, c], positive)))
            found[:, c] = _precision_11(positive[order], weight[:, kept[order]])
    return found


def map_11_point(
    logits: Logits,
    target: Bool[np.ndarray, "n classes"],
    counts: Bool[np.ndarray, "n classes"] | None = None,
) -> Score:
    """The mean over the classes that are shown of `average_precision_11`.

    The interval is that of 400 bootstrap samples of the pictures, always the same ones: the found
    value ± 1.96 times their standard deviation, in 0…1.
    """
    n = len(logits)
    once = average_precision_11(logits, target, counts)[0]
    if not np.isfinite(once).any():
        return _undefined(n)
    value, rng, means = float(np.nanmean(once)), np.random.default_rng(0), []
    step = max(1, _BLOCK // n)
    for start in range(0, _RESAMPLES, step):
        size = (min(step, _RESAMPLES - start), n)
        weight = np.stack([np.bincount(row, minlength=n) for row in rng.integers(0, n, size)])
        drawn = average_precision_11(logits, target, counts, weight)
        means.append(np.nanmean(drawn[np.isfinite(drawn).any(axis=1)], axis=1))
    reach = _Z * float(np.concatenate(means).std())
    return _score(value, (max(0.0, value - reach), min(1.0, value + reach)), n)


def roc_auc(values: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> Score:
    """The share of (positive, negative) pairs whose positive has the higher value; a tie is ½.

    The interval is that of Newcombe (2006, part 2, method 5): Hanley and McNeil's variance at the
    ends of the interval rather than at the value, so that it has a width at 0 and 1. Not defined
    without both kinds.
    """
    n, m = len(values), int(np.count_nonzero(positive))
    pairs = m * (n - m)
    if not pairs:
        return _undefined(n)
    rank_sum = rankdata(_against(values, positive))[positive].sum()
    value = float((rank_sum - m * (m + 1) / 2) / pairs)

    def deviation(end: float) -> float:
        half = n / 2 - 1
        more = 1 + half * ((1 - end) / (2 - end) + end / (1 + end))
        return (end - value) ** 2 - _Z**2 * end * (1 - end) * more / pairs

    # at 0 and 1 the value itself is a root, and not the one that is looked for
    low = brentq(deviation, 0, value * (1 - 1e-9)) if value > 0 else 0.0
    high = brentq(deviation, value + (1 - value) * 1e-9, 1) if value < 1 else 1.0
    return _score(value, (low, high), n)


class Scorer:
    """Counts logits in as many parts as they come; of a part it keeps a number a row.

    Only the metrics of whole rankings, `map_11_point` and `roc_auc`, keep more: logits of all
    classes, or a difference.

    Args:
      metric: one of `METRICS`; `map_11_point` takes bool targets [n, classes], the others numbers.
      classes: how many there are; two for `roc_auc`, whose second is the positive one.

    Raises:
      UserError: an unknown metric, or `roc_auc` with more or fewer classes.
    """

    def __init__(self, metric: str, classes: int) -> None:
        if metric not in METRICS:
            raise UserError(f"metric {metric!r} is none of {', '.join(METRICS)}")
        if metric == "roc_auc" and classes != 2:
            raise UserError(f"metric roc_auc is for two classes, not {classes}")
        self.metric, self.classes = metric, classes
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(
        self,
        logits: Logits,
        target: Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"],
        counts: Bool[np.ndarray, "n classes"] | None = None,
    ) -> None:
        """More rows; `counts` is False where a picture is left out for a class, as in VOC 2007."""
        if self.metric == "map_11_point":
            all_count = np.ones(target.shape, bool) if counts is None else counts
            self._parts.append((np.array(logits), target, all_count))
            return
        margin = logits[:, 1] - logits[:, 0] if self.metric == "roc_auc" else np.empty(0)
        self._parts.append((ranks(logits, target), target, margin))

    def _all(self) -> list[np.ndarray]:
        """What was kept, joined."""
        if len(self._parts) > 1:
            self._parts = [tuple(np.concatenate(kept) for kept in zip(*self._parts, strict=True))]
        if self._parts:
            return list(self._parts[0])
        if self.metric == "map_11_point":
            none = np.empty((0, self.classes), bool)
            return [none.astype(np.float32), none, none]
        return [np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)]

    def result(self) -> Score:
        """The metric of all rows so far."""
        found, target, more = self._all()
        if self.metric == "map_11_point":
            return map_11_point(found, target, more)
        if self.metric == "roc_auc":
            return roc_auc(more, target == 1)
        if self.metric == "mean_per_class":
            return mean_per_class(found, target, self.classes)
        return accuracy(found) if self.metric == "accuracy" else mean_top1_top5(found)

    def metrics(self) -> dict[str, float | None]:
        """Every metric that these rows have, the official one among them, without intervals."""
        found, target, more = self._all()
        if self.metric == "map_11_point":
            once = average_precision_11(found, target, more)[0]
            shown = np.isfinite(once)
            return {"map_11_point": float(once[shown].mean()) if shown.any() else None}
        scores = {
            "top1": accuracy(found),
            "top5": accuracy(found, 5),
            "mean_per_class": mean_per_class(found, target, self.classes),
        }
        if self.metric in ("roc_auc", "mean_top1_top5"):
            scores[self.metric] = self.result()
        return {name: score["value"] for name, score in scores.items()}

    def per_class(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """`per_class`; of a multi-label set `average_precision`, and an accuracy of None."""
        found, target, more = self._all()
        if self.metric != "map_11_point":
            return per_class(found, target, labels)
        once = average_precision_11(found, target, more)[0]
        shown = (target & more).sum(axis=0)
        return [
            {"label": label, "n": int(n), "accuracy": None, "average_precision": p if n else None}
            for label, n, p in zip(labels, shown, once.tolist(), strict=True)
        ]


def score(
    metric: str,
    logits: Logits,
    target: Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"],
    counts: Bool[np.ndarray, "n classes"] | None = None,
) -> Score:
    """A metric by its name, see `Scorer`."""
    scorer = Scorer(metric, logits.shape[1])
    scorer.add(logits, target, counts)
    return scorer.result()
