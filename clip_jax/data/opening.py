"""What opening a data source left out, and why: nothing is left out without a word.

Every source gives an `OpeningReport`. It is said once at the start of a run, shown by
`python -m clip_jax inspect`, and written to the metrics as `data/left_out/REASON`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

# Every reason that opening can have, and what it means.
REASONS: Mapping[str, str] = {
    "no_text": "pictures without a text",
    "no_picture": "texts without a picture",
    "extra_picture": "further pictures of an example, such as masks; config.data.image chooses one",
    "null_picture": "rows whose picture is null",
    "repeated": "names that occur again, and folders that another link leads to as well",
    "unknown_ending": "neither pictures nor texts by their endings",
    "hidden": "names that begin with a dot",
    "unreadable": "no plain files, links that lead nowhere, folders or rows that cannot be read",
}
_LONGEST = 200  # characters of an example


def quoted(name: str) -> str:
    """A name from a file or folder as a line can show it: cut in its middle, escaped."""
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """How many were left out for one reason, and the name of one of them."""

    count: int
    example: str


@dataclasses.dataclass(frozen=True)
class OpeningReport:
    """What opening a source saw, used and left out.

    seen: files, members of tars, rows or records, as `unit` says.
    used: how many of these the pairs are made of: seen = used + all that is left out.
    left_out: by reason, one of `REASONS`.
    notes: lines to say, such as a tar that is damaged or an encoding that was guessed.
    """

    seen: int
    used: int
    unit: str = "files"
    left_out: Mapping[str, LeftOut] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.left_out) - set(REASONS):
            raise ValueError(f"unknown reasons {sorted(unknown)}")
        if self.seen != self.used + sum(one.count for one in self.left_out.values()):
            raise ValueError(f"{self} does not account for everything seen")

    def lines(self, source: str) -> Iterator[str]:
        """What to say of a source called `source`; nothing where there is nothing to say."""
        yield from self.notes
        if not self.left_out:
            return
        rest = self.seen - self.used
        yield f"{source}: {rest:,} of {self.seen:,} {self.unit} are left out at opening:"
        for reason, one in self.left_out.items():
            such = f", such as {quoted(one.example)}" if one.example else ""
            yield f"  {reason} {one.count:,}: {REASONS[reason]}{such}"

    def metrics(self, prefix: str = "data/left_out/") -> dict[str, int]:
        """The counts by the names that they have in the metrics."""
        return {f"{prefix}{reason}": one.count for reason, one in self.left_out.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OpeningReport:
        """The report that `to_dict` gave.

        Raises:
          KeyError, TypeError, ValueError: it is none.
        """
        left_out = {
            str(reason): LeftOut(int(one["count"]), str(one["example"]))
            for reason, one in dict(values["left_out"]).items()
        }
        numbers = int(values["seen"]), int(values["used"])
        notes = tuple(str(note) for note in values["notes"])
        return cls(*numbers, str(values["unit"]), left_out, notes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Tally:
    """Counts by reason while a source is opened, with the first example of each."""

    def __init__(self) -> None:
        self._counts: dict[str, LeftOut] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Counts `count` more that are left out for one of `REASONS`."""
        before = self._counts.get(reason)
        if count:
            self._counts[reason] = (
                LeftOut(before.count + count, before.example) if before else LeftOut(count, example)
            )

    def merge(self, report: OpeningReport, where: str) -> None:
        """Adds what another report left out; its examples are in `where`."""
        for reason, one in report.left_out.items():
            self.add(reason, f"{where}{one.example}", one.count)

    def total(self) -> int:
        """All that is left out so far."""
        return sum(one.count for one in self._counts.values())

    def left_out(self) -> dict[str, LeftOut]:
        """The counts in the order of `REASONS`."""
        return {reason: self._counts[reason] for reason in REASONS if reason in self._counts}

    def report(self, used: int, unit: str = "files", notes: tuple[str, ...] = ()) -> OpeningReport:
        """The report where `used` others were seen, and are used."""
        return OpeningReport(used + self.total(), used, unit, self.left_out(), notes)


def all_used(count: int, unit: str, notes: tuple[str, ...] = ()) -> OpeningReport:
    """The report of a source that uses everything it saw."""
    return OpeningReport(count, count, unit, notes=notes)
