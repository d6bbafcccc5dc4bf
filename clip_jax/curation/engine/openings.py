"""What opening the files of a pool left out, and lines about them, added up over all files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from clip_jax.data.opening import LeftOut, OpeningReport, meaning, quoted
from clip_jax.io.files import JsonObject

_NOTES = 5  # that are kept


@dataclasses.dataclass(frozen=True)
class Openings:
    """What opening files saw and left out.

    Attributes:
      seen: the number of members, rows or files that were seen.
      unit: what is counted, such as `members`.
      left_out: by reason the number of the first file concerned, and what is left out of all files.
      notes: the first lines about the files, each with the number of its file.
      notes_count: the number of all lines.
    """

    seen: int = 0
    unit: str = ""
    left_out: Mapping[str, tuple[int, LeftOut]] = dataclasses.field(default_factory=dict)
    notes: tuple[tuple[int, str], ...] = ()
    notes_count: int = 0

    @classmethod
    def of_file(cls, number: int, report: OpeningReport) -> Openings:
        """Returns what a file's report says; files have numbers."""
        left_out = {reason: (number, item) for reason, item in report.left_out.items()}
        notes = tuple((number, note) for note in report.notes[:_NOTES])
        return cls(report.seen, report.unit, left_out, notes, len(report.notes))

    @classmethod
    def sum(cls, parts: Sequence[Openings]) -> Openings:
        """Adds up parts; their order does not matter."""
        left_out: dict[str, tuple[int, LeftOut]] = {}
        for part in parts:
            for reason, (file, item) in part.left_out.items():
                if reason in left_out:
                    first, total = min(left_out[reason], (file, item), key=lambda entry: entry[0])
                    count = left_out[reason][1].count + item.count
                    left_out[reason] = first, LeftOut(count, total.example)
                else:
                    left_out[reason] = file, item
        return cls(
            sum(part.seen for part in parts),
            max((part.unit for part in parts), default=""),
            dict(sorted(left_out.items())),
            tuple(sorted(note for part in parts for note in part.notes)[:_NOTES]),
            sum(part.notes_count for part in parts),
        )

    def to_dict(self) -> JsonObject:
        """Returns the values for the report of a curation."""
        return {
            "seen": self.seen,
            "unit": self.unit,
            "left_out": [
                {
                    "reason": reason,
                    "count": item.count,
                    "meaning": meaning(reason),
                    "example": quoted(item.example),
                }
                for reason, (_, item) in self.left_out.items()
            ],
            "notes": [quoted(note) for _, note in self.notes],
            "notes_count": self.notes_count,
        }
