"""Scales of charts: positions of values, and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from clip_jax.evaluation.report import formats

Kind = Literal["linear", "log", "logit"]
_SHARES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_EDGE = 1e-4  # the logit of 0 and 1 is infinite


def log_odds(share: float) -> float:
    """Returns the logit of a share, kept finite near 0 and 1."""
    inside = min(1 - _EDGE, max(_EDGE, share))
    return math.log(inside / (1 - inside))


def share_of(odds: float) -> float:
    """Returns the share that has a logit; the inverse of `log_odds`."""
    return 1 / (1 + math.exp(-min(700.0, max(-700.0, odds))))


@dataclass(frozen=True)
class Scale:
    """A linear, logarithmic or logit scale.

    Attributes:
      low: the value at the start of the scale.
      high: the value at the end of the scale.
      kind: `linear`, `log` or `logit`.
      share: whether values are shares, shown in percent.
    """

    low: float
    high: float
    kind: Kind = "linear"
    share: bool = False

    def _transform(self, value: float) -> float:
        if self.kind == "log":
            return math.log(max(value, 1e-100))
        if self.kind == "logit":
            return log_odds(value)
        return value

    def at(self, value: float) -> float:
        """Returns the position of a value on the scale, from 0 to 1; values outside are clipped."""
        low, high = self._transform(self.low), self._transform(self.high)
        place = (self._transform(value) - low) / (high - low) if high > low else 0.5
        return min(1.0, max(0.0, place))

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Returns tick values with their text."""
        values = {"linear": self._even, "log": self._decades, "logit": self._shares}[self.kind](
            most
        )
        if self.share:
            return [(v, f"{100 * v:.4g}%") for v in values]
        return [(v, formats.plain(v)) for v in values]

    def _even(self, most: int) -> list[float]:
        step = _step((self.high - self.low) / most)
        if not step:
            return [self.low]
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            round(i * step, 12) if abs(i * step) < 1e6 else i * step for i in range(first, last + 1)
        ]

    def _decades(self, most: int) -> list[float]:
        low, high = math.log10(self.low), math.log10(self.high)
        if high - low < 1:  # less than a decade: even steps
            return self._even(most)
        step = math.ceil((high - low) / most)
        return [10.0**i for i in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, step)]

    def _shares(self, most: int) -> list[float]:
        for step in (0, 20, 50, 100):  # fine enough for two ticks
            finer = (i / step for i in range(1, step))
            inside = sorted(v for v in {*_SHARES, *finer} if self.low <= v <= self.high)
            if len(inside) > 1:
                break
        ticks: list[float] = []
        for value in inside:
            if not ticks or self.at(value) - self.at(ticks[-1]) > 0.8 / most:
                ticks.append(value)
        return ticks


def _step(rough: float) -> float:
    """Returns the next larger of 1, 2, 5 or 10 times a power of ten."""
    if not rough > 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))


def scale_around(values: Iterable[float], kind: Kind = "linear", *, share: bool = False) -> Scale:
    """Returns a scale over all values, with a margin."""
    numbers = list(values)
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if kind == "log":
        return Scale(low, high if high > low else 2 * low, "log", share)
    if kind == "logit":
        low, high = max(_EDGE, low), min(1 - _EDGE, high)
        return Scale(low - low / 5, high + (1 - high) / 5, "logit", share)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Scale(low, high, "linear", share)
