"""The values of flags of `curate`, whose faults are told before any work."""

from __future__ import annotations

import argparse
import math
import re


def _number(text: str) -> float:
    """Returns a number; NaN for anything else, which no comparison accepts."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def column(text: str) -> tuple[str, float]:
    """Returns the name and the number of `NAME=NUMBER`."""
    name, _, value = text.rpartition("=")
    if not name or math.isnan(_number(value)):
        raise argparse.ArgumentTypeError(f"{text} must be COLUMN=NUMBER")
    return name, float(value)


def ratio(text: str) -> float:
    """Returns a ratio of sides: above 1, or 0 for no limit."""
    if not (_number(text) == 0 or 1 < _number(text) < math.inf):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 1, or 0 for no limit")
    return float(text)


def part(text: str) -> float:
    """Returns a share that is neither nothing nor all."""
    if not 0 < _number(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number between 0 and 1")
    return float(text)


def pairs(text: str) -> int:
    """Returns a number of pairs, at least one."""
    if not re.fullmatch("[0-9]{1,18}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least 1")
    return int(text)
