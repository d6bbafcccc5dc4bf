"""Numbers as text for readers; anything that is no number is a dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NONE = "–"
_THIN = "\u202f"  # narrow, and no line breaks at it
_LARGEST = 1e100  # so that no difference of two overflows


def number(value: Any) -> float | None:
    """Returns a value as a finite number, or None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        return None
    return float(value)


def value_of(score: Any) -> float | None:
    """Returns the value of a score, `{"value": …, "low": …, "high": …}`."""
    return number(score.get("value")) if isinstance(score, Mapping) else number(score)


def percent(share: Any, digits: int = 1) -> str:
    """Formats a share as `63.1 %`."""
    finite = number(share)
    return NONE if finite is None else f"{100 * finite:.{digits}f}{_THIN}%"


def points(difference: Any) -> str:
    """Formats a difference of shares in percentage points with its sign, `+3.5`."""
    finite = number(difference)
    return NONE if finite is None else f"{100 * finite:+.1f}".replace("-", "−")


def count(value: Any) -> str:
    """Formats a whole number as `12,800`."""
    finite = number(value)
    return NONE if finite is None else f"{round(finite):,}"


def plain(value: Any, digits: int = 3) -> str:
    """Formats a number of any size; numbers that are not whole get `digits` digits."""
    finite = number(value)
    if finite is None:
        return NONE
    if finite == round(finite) and abs(finite) < 1e6:
        return f"{round(finite):,}".replace("-", "−")
    small = finite != 0 and not 1e-3 <= abs(finite) < 1e6
    text = f"{finite:.{digits - 1}e}" if small else f"{finite:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def duration(seconds: Any) -> str:
    """Formats seconds as `2 h 5 min`, `3 min 4 s` or `5.1 s`."""
    finite = number(seconds)
    if finite is None:
        return NONE
    if finite < 60:
        return f"{finite:.1f} s"
    minutes, rest = divmod(round(finite), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def interval(score: Any) -> str:
    """Formats the 95 % interval of a score as `62.2–64.0 %`; empty without an interval."""
    if not isinstance(score, Mapping):
        return ""
    low, high = number(score.get("low")), number(score.get("high"))
    return "" if low is None or high is None else f"{100 * low:.1f}–{percent(high)}"
