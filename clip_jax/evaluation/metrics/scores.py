"""The official metrics of the paper's test sets, each with a 95 % interval.

Ties count against the model, and NaN is never right. Only the area under the ROC curve counts a tie
as one half, by its definition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from clip_jax.errors import UserError

Logits = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Ranks = Int[np.ndarray, " n"]

METRICS = ("accuracy", "mean_per_class", "mean_top1_top5", "map_11_point", "roc_auc")
_Z = 1.959963984540054  # the normal distribution's 97.5th percentile
_NEVER = np.iinfo(np.int64).max
_BLOCK = 4_000_000  # logits compared at once
_RESAMPLES = 400


@dataclasses.dataclass(frozen=True)
class Score:
    """A share of rows with its 95 % interval.

    Attributes:
      value: the share, 0 … 1; None where it is not defined.
      low: the lower end of the interval; None where the value is.
      high: the upper end of the interval; None where the value is.
      n: the number of rows.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """The number of rows of a class and the share of them that is right; None without rows."""

    label: str
    n: int
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class ClassPrecision(ClassAccuracy):
    """A class of a multi-label dataset: its average precision, and an accuracy of None."""

    average_precision: float | None


ByClass = list[ClassAccuracy] | list[ClassPrecision]


def wilson(share: float, n: float | int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share of n rows."""
    spread = _Z * np.sqrt(share * (1 - share) / n + (_Z / (2 * n)) ** 2)
    middle, shrink = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    low, high = (middle - spread) / shrink, (middle + spread) / shrink
    return float(min(max(low, 0.0), share)), float(max(min(high, 1.0), share))


def _score(value: float, interval: tuple[float, float], n: int) -> Score:
    low, high = interval
    return Score(float(value), float(low), float(high), int(n))


def _undefined(n: int) -> Score:
    return Score(None, None, None, int(n))


def share(right: Bool[np.ndarray, " n"]) -> Score:
    """Returns the share of rows that are right, with Wilson's interval."""
    n = len(right)
    value = np.count_nonzero(right) / n if n else 0.0
    return _score(value, wilson(value, n), n) if n else _undefined(0)


def ranks(logits: Logits, target: Labels) -> Ranks:
    """Returns the number of classes that come before each row's target: 0 for the likeliest.

    A class as likely as the target, or NaN, comes before it. A target that is NaN has a rank beyond
    any k.
    """
    rank = np.empty(len(target), np.int64)
    step = max(1, _BLOCK // max(1, logits.shape[1]))
    for start in range(0, len(target), step):
        part = slice(start, start + step)
        own = np.take_along_axis(logits[part], target[part, None], axis=1)
        before = np.count_nonzero(~(logits[part] < own), axis=1) - 1
        rank[part] = np.where(np.isnan(own[:, 0]), _NEVER, before)
    return rank


def accuracy(rank: Ranks, k: int = 1) -> Score:
    """Returns the share of rows whose target is among the k likeliest classes."""
    return share(rank < k)


def mean_top1_top5(rank: Ranks) -> Score:
    """Returns the mean of top-1 and top-5 accuracy, Kinetics' metric.

    A row counts 1, ½ or 0. The interval is Wilson's for the number of rows with which a share of
    this value has the observed variance.
    """
    n = len(rank)
    if not n:
        return _undefined(0)
    rows = ((rank < 1).astype(np.float64) + (rank < 5)) / 2
    value, variance = rows.mean(), rows.var()
    return _score(value, wilson(value, n * value * (1 - value) / variance if variance else n), n)


def _by_class(rank: Ranks, target: Labels, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of rows of each class, and of those that are right."""
    return np.bincount(target, minlength=classes), np.bincount(target[rank < 1], minlength=classes)


def mean_per_class(rank: Ranks, target: Labels, classes: int) -> Score:
    """Returns the mean of the classes' accuracies; classes without a row are left out.

    The interval combines the classes' Wilson intervals by their distances from the accuracies
    (MOVER; Zou and Donner 2008), so that it has a width even if every row is right.
    """
    rows, right = _by_class(rank, target, classes)
    has_rows = rows > 0
    if not has_rows.any():
        return _undefined(0)
    shares = right[has_rows] / rows[has_rows]
    ends = np.array([wilson(p, n) for p, n in zip(shares, rows[has_rows].tolist(), strict=True)])
    value, reach = shares.mean(), np.linalg.norm(ends - shares[:, None], axis=0) / len(shares)
    return _score(value, (max(0.0, value - reach[0]), min(1.0, value + reach[1])), len(rank))


def per_class(rank: Ranks, target: Labels, labels: Sequence[str]) -> list[ClassAccuracy]:
    """Returns the accuracy of every class."""
    rows, right = _by_class(rank, target, len(labels))
    return [
        ClassAccuracy(label, int(n), float(hits / n) if n else None)
        for label, n, hits in zip(labels, rows, right, strict=True)
    ]


def _against(
    values: Shaped[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns the values with NaN replaced by the worst value."""
    worst = np.where(positive, -np.inf, np.inf)
    return np.where(np.isnan(values), worst, values)


def _precision_11(
    positive: Bool[np.ndarray, " n"], weight: Int[np.ndarray, "resamples n"]
) -> Float[np.ndarray, " resamples"]:
    """The mean over recalls 0, 0.1, …, 1 of the best precision at that recall or a higher one.

    Rows are ordered best first and count `weight` times. NaN if no positive row counts.
    """
    hits = np.cumsum(weight * positive, axis=1)
    precision = hits / np.maximum(np.cumsum(weight, axis=1), 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = hits[:, -1]
    # the first row of that recall, in whole numbers: 10 hits ≥ level × total
    needed_hits = -(-np.arange(11) * total[:, None] // 10)
    first = np.array([np.searchsorted(h, w) for h, w in zip(hits, needed_hits, strict=True)])
    precisions = np.take_along_axis(best, np.minimum(first, len(positive) - 1), axis=1).mean(axis=1)
    return np.where(total > 0, precisions, np.nan)


def average_precision_11(
    logits: Logits,
    target: Bool[np.ndarray, "n classes"],
    counts: Bool[np.ndarray, "n classes"] | None = None,
    weight: Int[np.ndarray, "resamples n"] | None = None,
) -> Float[np.ndarray, "resamples classes"]:
    """Returns each class's 11-point interpolated average precision, VOC 2007's metric.

    Source: Everingham et al., "The PASCAL Visual Object Classes Challenge", section 4.2. Among
    equal logits the images without the object come first.

    Args:
      logits: the logit of every image and class.
      target: whether the image shows the class.
      counts: False where an image is left out for a class, as VOC's difficult objects are.
      weight: how often each image counts; None: once.

    Returns:
      A row for each row of `weight`; NaN for a class that no image shows.
    """
    weight = np.ones((1, len(logits)), np.int64) if weight is None else weight
    precisions = np.full((len(weight), logits.shape[1]), np.nan)
    for c in range(logits.shape[1]):
        counted = np.arange(len(logits)) if counts is None else np.flatnonzero(counts[:, c])
        positive = target[counted, c]
        if positive.any():
            order = np.lexsort((positive, -_against(logits[counted, c], positive)))
            precisions[:, c] = _precision_11(positive[order], weight[:, counted[order]])
    return precisions


def map_11_point(
    logits: Logits,
    target: Bool[np.ndarray, "n classes"],
    counts: Bool[np.ndarray, "n classes"] | None = None,
) -> Score:
    """Returns the mean of `average_precision_11` over the classes that an image shows.

    The interval comes from 400 bootstrap samples of the images, with a fixed seed: the value ± 1.96
    times their standard deviation, within 0…1.
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
    """Returns the share of (positive, negative) pairs whose positive has the higher value.

    A tie counts ½. The interval is that of Newcombe (2006, part 2, method 5): Hanley and McNeil's
    variance at the ends of the interval rather than at the value, so that it has a width at 0 and
    1. The share is not defined without both kinds.
    """
    from scipy.optimize import brentq  # scipy takes a second to import, and few test sets need it
    from scipy.stats import rankdata

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

    # at 0 and 1 the value itself is a root, but not the end of the interval
    low = brentq(deviation, 0, value * (1 - 1e-9)) if value > 0 else 0.0
    high = brentq(deviation, value + (1 - value) * 1e-9, 1) if value < 1 else 1.0
    return _score(value, (low, high), n)


class Scorer:
    """An accumulator that computes a metric of logits that come in parts.

    It stores one number per row. The ranking metrics store more: `map_11_point` all logits,
    `roc_auc` a difference.

    Args:
      metric: one of `METRICS`; `map_11_point` takes bool targets [n, classes], the others numbers.
      classes: the number of classes; two for `roc_auc`, the second of which is the positive one.

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
        """Adds rows.

        Args:
          logits: the logits of the rows.
          target: the class of each row, or for `map_11_point` whether it shows each class.
          counts: False where an image is left out for a class, as in VOC 2007; None: all count.
        """
        if self.metric == "map_11_point":
            all_count = np.ones(target.shape, bool) if counts is None else counts
            self._parts.append((np.array(logits), target, all_count))
            return
        margin = logits[:, 1] - logits[:, 0] if self.metric == "roc_auc" else np.empty(0)
        self._parts.append((ranks(logits, target), target, margin))

    def _all(self) -> list[np.ndarray]:
        """Returns all parts, concatenated."""
        if len(self._parts) > 1:
            self._parts = [tuple(np.concatenate(parts) for parts in zip(*self._parts, strict=True))]
        if self._parts:
            return list(self._parts[0])
        if self.metric == "map_11_point":
            none = np.empty((0, self.classes), bool)
            return [none.astype(np.float32), none, none]
        return [np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)]

    def result(self) -> Score:
        """Returns the metric of all rows so far."""
        values, target, extra = self._all()
        if self.metric == "map_11_point":
            return map_11_point(values, target, extra)
        if self.metric == "roc_auc":
            return roc_auc(extra, target == 1)
        if self.metric == "mean_per_class":
            return mean_per_class(values, target, self.classes)
        return accuracy(values) if self.metric == "accuracy" else mean_top1_top5(values)

    def metrics(self) -> dict[str, float | None]:
        """Returns all metrics of these rows, including the official one, without intervals."""
        values, target, extra = self._all()
        if self.metric == "map_11_point":
            precisions = average_precision_11(values, target, extra)[0]
            shown = np.isfinite(precisions)
            return {"map_11_point": float(precisions[shown].mean()) if shown.any() else None}
        scores = {
            "top1": accuracy(values),
            "top5": accuracy(values, 5),
            "mean_per_class": mean_per_class(values, target, self.classes),
        }
        if self.metric in ("roc_auc", "mean_top1_top5"):
            scores[self.metric] = self.result()
        return {name: score.value for name, score in scores.items()}

    def per_class(self, labels: Sequence[str]) -> ByClass:
        """Returns the accuracy of every class; for multi-label datasets its average precision."""
        values, target, extra = self._all()
        if self.metric != "map_11_point":
            return per_class(values, target, labels)
        precisions = average_precision_11(values, target, extra)[0]
        shown = (target & extra).sum(axis=0)
        return [
            ClassPrecision(label, int(n), None, p if n else None)
            for label, n, p in zip(labels, shown, precisions.tolist(), strict=True)
        ]


def score(
    metric: str,
    logits: Logits,
    target: Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"],
    counts: Bool[np.ndarray, "n classes"] | None = None,
) -> Score:
    """Returns a metric by its name, see `Scorer`."""
    scorer = Scorer(metric, logits.shape[1])
    scorer.add(logits, target, counts)
    return scorer.result()
