"""Numeric fields of pairs, such as scores that a data set comes with, as annotations."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from clip_jax.curation.pool import Pool
from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter
from clip_jax.data import captions
from clip_jax.data.example import PairError
from clip_jax.data.sources import Source, read_text
from clip_jax.errors import UserError, counted

_CHECKED = 100  # pairs of the first file, of which one has each field
_NAMED = 20  # fields in an error


def check_fields(source: Source, file: str, fields: Sequence[str]) -> None:
    """Checks that each field is a number in one of the first pairs of a file.

    Raises:
      UserError: one is not; the error names those that are.
    """
    known: dict[str, None] = {}
    missing = dict.fromkeys(fields)
    for i in range(min(len(source), _CHECKED)):
        try:
            text, _ = read_text(source, i)
        except PairError:
            continue
        numbers = (name for name in text if not np.isnan(captions.field_number(text, name)))
        known |= dict.fromkeys(numbers)
        for field in list(missing):
            if not np.isnan(captions.field_number(text, field)):
                del missing[field]
        if not missing:
            return
    shown = ", ".join([*known][:_NAMED]) + (", …" if len(known) > _NAMED else "")
    raise UserError(
        f"{file}: the field {next(iter(missing))!r:.80} is a number in none of the first "
        f"{_CHECKED} pairs; numbers are: {shown or 'none'}"
    )


@dataclasses.dataclass(frozen=True)
class FieldJob:
    """Writes the fields of all pairs, file by file; files that are done are not read again.

    Attributes:
      pool: the pairs.
      writer: the annotation folder; its columns are the fields.
    """

    pool: Pool
    writer: AnnotationWriter

    def run(self, files: Sequence[str]) -> None:
        """Writes the tables that are missing.

        Raises:
          UserError: too many files cannot be opened.
        """
        unreadable = 0
        with tqdm(unit=" pairs", desc="reading", dynamic_ncols=True, disable=None) as bar:
            for file, source in self.pool.opened(files):
                if isinstance(source, UserError):
                    unreadable += 1
                    self.pool.check_unreadable(unreadable, len(files), source)
                    print(f"left out: {source}", file=sys.stderr)
                    empty = np.zeros(0, np.float32)
                    self.writer.write(file, "", dict.fromkeys(self.writer.columns, empty))
                elif not self.writer.is_done(file, len(source), source.fingerprint):
                    values = _values(source, list(self.writer.columns), bar)
                    self.writer.write(file, source.fingerprint, values)
        self.writer.finish()


def value_range(annotations: Annotations, column: str) -> str:
    """Returns a line about a column: how many pairs have a value, the least and the greatest."""
    count, total, low, high = 0, 0, np.inf, -np.inf
    for number in range(len(annotations.files)):
        values = annotations.of_file(number)[column]
        total += len(values)
        values = values[~np.isnan(values)]
        count += len(values)
        low, high = min(low, values.min(initial=np.inf)), max(high, values.max(initial=-np.inf))
    if not count:
        return f"{column}: none of {counted(total, 'pair')} has a value"
    return f"{column}: {count:,} of {counted(total, 'pair')} have a value, {low:g} to {high:g}"


def _values(
    source: Source, fields: Sequence[str], bar: tqdm
) -> dict[str, Float32[np.ndarray, " pairs"]]:
    values = {field: np.full(len(source), np.nan, np.float32) for field in fields}
    for i in range(len(source)):
        bar.update()
        try:
            text, _ = read_text(source, i)
        except PairError:
            continue
        for field, own in values.items():
            own[i] = captions.field_number(text, field)
    return values
