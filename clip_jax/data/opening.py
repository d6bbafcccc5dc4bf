"""What opening a data source left out, and why: nothing is left out silently.

Every source gives an `OpeningReport`. A run prints it once at its start, `python -m clip_jax
inspect` shows it, and the metrics hold its counts as `data/left_out/REASON`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.io.files import JsonObject

# The reasons of the sources that ship with clip_jax, and what they mean.
REASONS: Mapping[str, str] = {
    "no_text": "images without a text",
    "no_picture": "texts without an image",
    "extra_picture": "further images of an example, such as masks; config.data.image chooses one",
    "null_picture": "rows whose image is null",
    "repeated": "names that occur again, and folders that another link leads to as well",
    "unknown_ending": "neither images nor texts by their endings",
    "hidden": "names that begin with a dot",
    "unreadable": "no plain files, links that lead nowhere, folders or rows that cannot be read",
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")  # of a reason: it is part of a metric's name
_MAX_LENGTH = 200  # characters of an example


def quoted(name: str) -> str:
    """Escapes an untrusted name for a message, and cuts a long one in the middle."""
    if len(name) > _MAX_LENGTH:
        name = f"{name[: _MAX_LENGTH // 2]}…{name[-_MAX_LENGTH // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def meaning(reason: str) -> str:
    """Returns what a reason means, in words.

    The name of a reason that a source defined itself is returned with spaces for underscores.
    """
    return REASONS.get(reason) or reason.replace("_", " ")


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """The items that were left out for one reason.

    Attributes:
      count: the number of items.
      example: the name of the first.
    """

    count: int
    example: str


@dataclasses.dataclass(frozen=True)
class OpeningReport:
    """What opening a source saw, used and left out.

    Attributes:
      seen: the number of files, tar members, rows or records.
      used: how many of them the pairs are made of; the rest is left out.
      unit: what is counted, such as `files`.
      left_out: the items left out by reason, one of `REASONS` or a source's own, in lower case with
        underscores.
      notes: lines to print, such as about a damaged tar or a guessed encoding.
    """

    seen: int
    used: int
    unit: str = "files"
    left_out: Mapping[str, LeftOut] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [reason for reason in self.left_out if not _NAME.fullmatch(reason)]:
            raise ValueError(f"{wrong[0]!r} is no reason such as no_text")
        if self.seen != self.used + sum(item.count for item in self.left_out.values()):
            raise ValueError(f"{self} does not account for everything seen")

    def lines(self, source: str) -> Iterator[str]:
        """Yields lines to print about a source called `source`; none if nothing is unusual."""
        yield from self.notes
        if not self.left_out:
            return
        rest = self.seen - self.used
        yield f"{source}: {rest:,} of {self.seen:,} {self.unit} are left out at opening:"
        for reason, item in self.left_out.items():
            such = f", such as {quoted(item.example)}" if item.example else ""
            yield f"  {reason} {item.count:,}: {meaning(reason)}{such}"

    def metrics(self, prefix: str = "data/left_out/") -> dict[str, int]:
        """Returns the counts of left-out items by the names of their metrics."""
        return {f"{prefix}{reason}": item.count for reason, item in self.left_out.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OpeningReport:
        """Restores a report from the values that `to_dict` returned.

        Raises:
          KeyError, TypeError, ValueError: the values are not a report.
        """
        left_out = {
            str(reason): LeftOut(int(item["count"]), str(item["example"]))
            for reason, item in dict(values["left_out"]).items()
        }
        seen, used = int(values["seen"]), int(values["used"])
        notes = tuple(str(note) for note in values["notes"])
        return cls(seen, used, str(values["unit"]), left_out, notes)

    def to_dict(self) -> JsonObject:
        """Returns the report as values for JSON; `from_dict` reads them."""
        return dataclasses.asdict(self)


class Tally:
    """A count of what opening leaves out, by reason, with the first example of each."""

    def __init__(self) -> None:
        self._counts: dict[str, LeftOut] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Counts more items that are left out.

        Args:
          reason: the reason, see `OpeningReport.left_out`.
          example: the name of one of the items.
          count: the number of items; 0 changes nothing.
        """
        before = self._counts.get(reason)
        if count:
            self._counts[reason] = (
                LeftOut(before.count + count, before.example) if before else LeftOut(count, example)
            )

    def merge(self, report: OpeningReport, where: str) -> None:
        """Adds the items that another report left out; their examples get the prefix `where`."""
        for reason, item in report.left_out.items():
            self.add(reason, f"{where}{item.example}", item.count)

    def total(self) -> int:
        """Returns the number of items left out so far."""
        return sum(item.count for item in self._counts.values())

    def left_out(self) -> dict[str, LeftOut]:
        """Returns the counts in the order of `REASONS`, then other reasons as they came."""
        order = [*(r for r in REASONS if r in self._counts), *self._counts]
        return {reason: self._counts[reason] for reason in order}

    def report(self, used: int, unit: str = "files", notes: tuple[str, ...] = ()) -> OpeningReport:
        """Returns the report of a source that left out the counted items and used `used` others."""
        return OpeningReport(used + self.total(), used, unit, self.left_out(), notes)


def all_used(count: int, unit: str, notes: tuple[str, ...] = ()) -> OpeningReport:
    """Returns the report of a source that uses everything it saw."""
    return OpeningReport(count, count, unit, notes=notes)
