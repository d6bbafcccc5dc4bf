"""A finding: what is wrong, how bad it is, and one line that mends it."""

from __future__ import annotations

import dataclasses
import enum


class Level(enum.StrEnum):
    """How bad a finding is, the worst first."""

    BROKEN = "broken"
    SLOW = "slow"
    NOTE = "note"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about a machine that the user can mend.

    Attributes:
      level: how bad it is.
      problem: what is wrong, one line.
      mend: a command or an action that mends it, one line.
    """

    level: Level
    problem: str
    mend: str


def broken(problem: str, mend: str) -> Finding:
    """Returns a finding of something that does not work."""
    return Finding(Level.BROKEN, problem, mend)


def slow(problem: str, mend: str) -> Finding:
    """Returns a finding of something that works slower than it could."""
    return Finding(Level.SLOW, problem, mend)


def note(problem: str, mend: str) -> Finding:
    """Returns a finding that matters to some uses only."""
    return Finding(Level.NOTE, problem, mend)


def gigabytes(size: int) -> str:
    """Formats a number of bytes in GiB, such as `23.4 GiB`."""
    return f"{size / 2**30:.3g} GiB"
