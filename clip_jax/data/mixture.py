"""Which pair is at which position of the endless training order, of one source or of a mixture."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import grain

from clip_jax.config import schema
from clip_jax.data import captions, mixture_config
from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.filters import Selected
from clip_jax.data.mixture_config import Entry
from clip_jax.data.selection import SelectedPairs, Selection
from clip_jax.data.sources import Source, SourceOptions, open_source, read_pair
from clip_jax.errors import UserError
from clip_jax.io import remote

_CHECKED = 100  # pairs of a source, one of which must give a caption
# spread epochs and sources over seeds, so that neighbouring seeds share no order
_EPOCH_STRIDE, _PART_STRIDE = 0x9E3779B1, 0x85EBCA6B


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
      name: the name in the config; empty for a single source.
      source: the pairs.
      rows: the number of rows that the source gives in each epoch of the mixture.
      templates, weights: the caption templates and their relative probabilities; if empty, those of
        the pipeline.
      label: the field that tells the class of a pair; if empty, that of the pipeline.
    """

    name: str
    source: Source
    rows: int
    templates: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    label: str = ""


class PairPosition(NamedTuple):
    """The pair at a position of the training order.

    Attributes:
      part: the number of the part in the mixture.
      epoch: the epoch of that part.
      pair: the number of the pair in the part's source.
    """

    part: int
    epoch: int
    pair: int


class Mixture:
    """Sources that each give a fixed number of rows to every epoch; `len` is the rows of an epoch.

    An epoch is shuffled as a whole. Each source continues where the previous epoch ended: all its
    pairs come once, in an order of their own, before one comes again. The pairs of a single source
    are shuffled only once.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(part.rows for part in parts))

    @classmethod
    def from_source(cls, source: Source | Mixture) -> Mixture:
        """Returns a mixture of one source; a mixture is returned unchanged."""
        return source if isinstance(source, Mixture) else cls([Part("", source, len(source))])

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def pairs(self) -> int:
        """The number of pairs of all sources together."""
        return sum(len(part.source) for part in self.parts)

    def place(self, position: int, seed: int) -> PairPosition:
        """Returns which pair is at a position of the endless order.

        This is a pure function of its arguments and of the number of pairs and rows of each part.

        Args:
          position: the number of the row, counted from the start of training.
          seed: the seed of the shuffles.
        """
        at, count = position, len(self.parts)
        number = 0
        if count > 1:
            epoch, at = divmod(position, len(self))
            at = _shuffle(at, len(self), seed, epoch, count)
            number = bisect.bisect_right(self._ends, at)
            rows = self.parts[number].rows
            at += epoch * rows - (self._ends[number] - rows)
        length = len(self.parts[number].source)
        epoch, at = divmod(at, length)
        return PairPosition(number, epoch, _shuffle(at, length, seed, epoch, number))


def _shuffle(at: int, length: int, seed: int, epoch: int, number: int) -> int:
    """Applies a permutation of range(length); each seed, epoch and number has its own."""
    return grain.experimental.index_shuffle(
        at,
        max_index=length - 1,
        seed=(seed + _EPOCH_STRIDE * epoch + _PART_STRIDE * number) % 2**32,
        rounds=4,
    )


def split_rows(total: int, weights: Sequence[float]) -> list[int]:
    """Divides `total` rows in proportion to the weights; the largest remainders round up.

    The returned numbers sum to `total` exactly.
    """
    exact = [Fraction(weight) for weight in weights]
    quotas = [total * weight / sum(exact) for weight in exact]
    rows = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(rows)), key=lambda k: rows[k] - quotas[k])
    for k in by_remainder[: total - sum(rows)]:
        rows[k] += 1
    return rows


def open_mixture(
    data: Mapping[str, Any], say: Callable[[str], None] = lambda line: None, report: bool = True
) -> Mixture:
    """Opens and filters the training data of a config, and checks that it gives captions.

    Args:
      data: `config.data`; missing keys have their defaults. Its threads or workers also evaluate
        the filter.
      say: receives lines about the progress of a filter and about anything unusual.
      report: whether `say` also receives what opening left out.

    Raises:
      UserError: a key is wrong, a source cannot be read, or no pair is left.
    """
    data = schema.Data.with_defaults(data)
    if not (data["train"] or data["mix"]):
        raise UserError(
            "no data given: set config.data.train to your tars, a folder of images, a table or "
            "tfds:NAME:SPLIT, or config.data.mix to several of them"
        )
    entries = mixture_config.entries(data)
    parts = [_open_part(name, entry, data, say, report) for name, entry in entries.items()]
    rows = _rows_of_epoch(list(entries.values()), [part.rows for part in parts])
    return Mixture([dataclasses.replace(p, rows=n) for p, n in zip(parts, rows, strict=True)])


def _open_part(
    name: str, entry: Entry, data: Mapping[str, Any], say: Callable[[str], None], report: bool
) -> Part:
    """Opens one source, with as many rows as it has pairs; see `open_mixture`."""
    options = SourceOptions(
        *(entry.image, entry.root, data["index"], data["max_bad_fraction"]),
        *(entry.table_options, entry.columns),
    )
    source: Source = open_source(entry.data, options, kind=entry.source, key=entry.key)
    for line in source.opening_report().lines(remote.redact(entry.data)) if report else ():
        say(line)
    if entry.selection:
        source = SelectedPairs(source, Selection.open(entry.selection))
        for line in source.notes:
            say(line)
        if report:
            share = len(source) / (len(source) + source.left_out)
            say(f"{entry.selection} selects {len(source):,} pairs ({share:.1%})")
    if entry.filter:
        source = Selected(
            source,
            entry.filter,
            entry.captions,
            threads=data["threads"],
            processes=data["workers"],
            say=say,
            cache=data["index"],
            key=entry.key,
        )
    for template in _unfilled_templates(source, entry.captions):
        say(f"caption template {template!r}: none of the first {_CHECKED} pairs fills it")
    return Part(name, source, len(source), entry.captions, entry.caption_weights, entry.label)


def _rows_of_epoch(entries: Sequence[Entry], lengths: Sequence[int]) -> list[int]:
    """Returns how many rows each source gives in an epoch."""
    if entries[0].weight is not None:
        rows = split_rows(sum(lengths), [entry.weight or 0 for entry in entries])
    else:
        times = [1 if entry.epochs is None else entry.epochs for entry in entries]
        rows = [round(Fraction(n) * length) for n, length in zip(times, lengths, strict=True)]
    for entry, count in zip(entries, rows, strict=True):
        if not count:
            what = "epochs" if entry.weight is None else "weight"
            share = getattr(entry, what)
            raise UserError(f"{entry.key}.{what}={share} gives it no row of an epoch: raise it")
    return rows


def _unfilled_templates(source: Source, templates: Sequence[str]) -> list[str]:
    """Returns the templates that none of the first pairs fills.

    Raises:
      PairError: no template is filled, or none of these pairs can be read.
    """
    unfilled = list(templates)
    first_error: PairError | None = None
    for i in range(min(len(source), _CHECKED)):
        try:
            pair = read_pair(source, i)
        except PairError as error:
            first_error = first_error or error
            continue
        for template in list(unfilled):
            try:
                with only_pair_errors("caption", pair.name):
                    captions.fill(template, pair.text, pair.name)
                unfilled.remove(template)
            except PairError as error:
                first_error = first_error or error
        if not unfilled:
            return []
    if first_error and len(unfilled) == len(templates):
        line = str(first_error)
        if isinstance(first_error, captions.MissingFieldError) and first_error.fields:
            line += ": set config.data.captions to a template over one of them"
        raise PairError(first_error.reason, line)
    return unfilled
