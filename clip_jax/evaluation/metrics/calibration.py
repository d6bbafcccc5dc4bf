"""Calibration, and the classes that a model confuses.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks". Everything is for one label a
row; for bool targets [n, classes] it is not defined, and None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Logits = Float[np.ndarray, "n classes"]
Targets = Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]

BINS = 15
_BLOCK = 4_000_000  # logits in float64 at once
_COLDEST, _HOTTEST = 1e-3, 1e3


@dataclasses.dataclass(frozen=True)
class Bin:
    """The rows whose confidence is in (low, high].

    Attributes:
      low: the lower end of the bin.
      high: the upper end of the bin.
      n: the number of rows.
      confidence: the mean confidence; None without rows.
      accuracy: the share of rows that are right; None without rows.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None

    @property
    def gap(self) -> float:
        """The difference between confidence and accuracy, at least 0; 0 without rows."""
        if self.confidence is None or self.accuracy is None:
            return 0.0
        return abs(self.confidence - self.accuracy)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of a model's confidence.

    Attributes:
      ece: the expected calibration error.
      mce: the largest calibration error.
      nll: the log-loss of the rows whose logits are finite; None without any.
      brier: the Brier score of the rows whose logits are finite; None without any.
      temperature: the best temperature for one half of the rows, drawn with a fixed seed; None if
        there is none.
      ece_after: the expected calibration error of the other half at that temperature.
      bins: bins of equal width over the confidence.
    """

    ece: float
    mce: float
    nll: float | None
    brier: float | None
    temperature: float | None
    ece_after: float | None
    bins: list[Bin]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Rows of one class that are classified as another.

    Attributes:
      truth: the true class.
      predicted: the class of the answer.
      count: the number of these rows.
      share: their share of the rows of the true class.
    """

    truth: str
    predicted: str
    count: int
    share: float


def calibration(logits: Logits, target: Targets, bins: int = BINS) -> Calibration | None:
    """Returns the calibration of logits, which include the learned scale.

    A row with a logit that is not finite counts as wrong with confidence 0; it is left out of
    log-loss, Brier score and the fit of the temperature.

    Returns:
      The calibration; None without rows or for several labels per row.
    """
    if target.ndim > 1 or not len(target):
        return None
    confidence, right = _answers(logits, target)
    table = reliability(confidence, right, bins)
    nll, brier = _losses(logits, target)
    halves = np.random.default_rng(0).permutation(len(target))
    fitted, test = np.split(halves, [len(halves) // 2])
    temperature = fit_temperature(logits[fitted], target[fitted])
    after = None
    if temperature is not None:
        after = ece(reliability(*_answers(logits[test], target[test], temperature), bins))
    largest = max(row.gap for row in table if row.n)
    return Calibration(ece(table), largest, nll, brier, temperature, after, table)


def reliability(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS
) -> list[Bin]:
    """Returns bins of equal width over the confidence; a confidence of 0 falls in the first."""
    # of values on an edge the lower bin's, whatever a division would make of them
    edges = np.arange(bins + 1) / bins
    where = np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1)
    rows = np.bincount(where, minlength=bins)
    sure = np.bincount(where, confidence, bins)
    hits = np.bincount(where, right, bins)
    return [
        Bin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            n=int(rows[b]),
            confidence=float(sure[b] / rows[b]) if rows[b] else None,
            accuracy=float(hits[b] / rows[b]) if rows[b] else None,
        )
        for b in range(bins)
    ]


def ece(table: Sequence[Bin]) -> float:
    """Returns the expected calibration error: the bins' mean gap, weighted by their rows.

    Source: Guo et al. 2017, eq. 3.
    """
    total = sum(row.n for row in table)
    return sum(row.n / total * row.gap for row in table if row.n)


def _blocks(logits: Logits, scale: float = 1.0) -> Iterator[tuple[slice, np.ndarray]]:
    """Log-probabilities in float64, block by block; NaN in rows that are not all finite."""
    step = max(1, _BLOCK // logits.shape[1])
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        x = logits[part].astype(np.float64) * scale
        x = np.where(np.isfinite(x).all(axis=1, keepdims=True), x, np.nan)
        x -= x.max(axis=1, keepdims=True)
        yield part, x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def _answers(
    logits: Logits, target: Int[np.ndarray, " n"], temperature: float = 1.0
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns the likeliest class's probability, and whether it is the target; a tie is wrong."""
    confidence, right = np.zeros(len(target)), np.zeros(len(target), bool)
    for part, log in _blocks(logits, 1 / temperature):
        own = np.take_along_axis(log, target[part, None], axis=1)
        confidence[part] = np.nan_to_num(np.exp(log.max(axis=1)))
        right[part] = np.count_nonzero(log >= own, axis=1) == 1
    return confidence, right


def _losses(
    logits: Logits, target: Int[np.ndarray, " n"], scale: float = 1.0
) -> tuple[float | None, float | None]:
    """Returns the log-loss and the Brier score.

    The latter is the sum over classes of squared differences from the one-hot target.
    """
    nll, brier, rows = 0.0, 0.0, 0
    for part, log in _blocks(logits, scale):
        finite = np.isfinite(log[:, 0])
        log, own = log[finite], target[part][finite, None]
        shares = np.exp(log)
        mine = np.take_along_axis(shares, own, axis=1)
        nll -= np.take_along_axis(log, own, axis=1).sum()
        brier += (shares**2).sum() - (mine**2).sum() + ((1 - mine) ** 2).sum()
        rows += int(np.count_nonzero(finite))
    return (float(nll / rows), float(brier / rows)) if rows else (None, None)


def fit_temperature(logits: Logits, target: Int[np.ndarray, " n"]) -> float | None:
    """Returns the temperature whose `softmax(logits / temperature)` has the lowest log-loss.

    It is between 0.001 and 1000; None without a finite row.

    Source: Guo et al. 2017, section 4.2. The loss is convex in the inverse temperature.
    """
    from scipy.optimize import minimize_scalar  # slow to import, as all of scipy is

    def loss(cold: float) -> float:
        nll = _losses(logits, target, float(np.exp(cold)))[0]
        return np.inf if nll is None else nll

    if _losses(logits, target)[0] is None:
        return None
    bounds = (np.log(1 / _HOTTEST), np.log(1 / _COLDEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(-best.x))


def confusions(
    logits: Logits, target: Targets, labels: Sequence[str], n: int = 20
) -> list[Confusion] | None:
    """Returns the pairs of true and answered class with the most rows, worst first.

    The answer is the likeliest class, or another one as likely as the target. Rows that are not all
    finite are left out. None for several labels per row.
    """
    if target.ndim > 1:
        return None
    classes, wrong = len(labels), []
    for part, log in _blocks(logits):
        truth = target[part]
        own = np.take_along_axis(log, truth[:, None], axis=1)[:, 0]
        np.put_along_axis(log, truth[:, None], -np.inf, axis=1)
        missed = log.max(axis=1) >= own
        wrong.append(truth[missed] * classes + log[missed].argmax(axis=1))
    codes, counts = np.unique(np.concatenate([np.empty(0, np.int64), *wrong]), return_counts=True)
    truth, predicted = np.divmod(codes, classes)
    rows = np.bincount(target, minlength=classes)
    order = np.lexsort((codes, -counts / rows[truth], -counts))
    return [
        Confusion(
            truth=labels[truth[i]],
            predicted=labels[predicted[i]],
            count=int(counts[i]),
            share=float(counts[i] / rows[truth[i]]),
        )
        for i in order[:n]
    ]
