"""Which pair stands where in the endless order: of one source, or of several that are mixed."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import grain

from clip_jax.data import captions, mixture_config
from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.filters import Selected
from clip_jax.data.sources import Source, SourceOptions, open_source, read_pair
from clip_jax.errors import UserError
from clip_jax.io import remote

_FIRST = 100  # pairs of a source, of which one must make a caption
# spread epochs and sources over seeds, so that neighbouring seeds share no order
_ODD, _OTHER = 0x9E3779B1, 0x85EBCA6B


@dataclasses.dataclass(frozen=True)
class Part:
    """A source of a mixture.

    rows: of an epoch of the mixture. templates, weights: of its captions; empty: those of the
    pipeline.
    """

    name: str
    source: Source
    rows: int
    templates: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()


class Place(NamedTuple):
    """A pair in the order: the part's number, that part's own epoch, and the pair in it."""

    part: int
    epoch: int
    pair: int


class Mixture:
    """Sources of which every epoch has so many rows each; `len` is the rows of an epoch.

    An epoch is shuffled as a whole. A source goes on in each where it was in the last: all its
    pairs come once, in an order of their own, before one comes again. Of a single source nothing
    else is shuffled.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(part.rows for part in parts))

    @classmethod
    def of(cls, source: Source | Mixture) -> Mixture:
        """A source alone."""
        return source if isinstance(source, Mixture) else cls([Part("", source, len(source))])

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def pairs(self) -> int:
        """Of all sources together."""
        return sum(len(part.source) for part in self.parts)

    def place(self, position: int, seed: int) -> Place:
        """What stands at a position of the endless order; depends on nothing else."""
        at, count = position, len(self.parts)
        number = 0
        if count > 1:
            epoch, at = divmod(position, len(self))
            at = _shuffled(at, len(self), seed, epoch, count)
            number = bisect.bisect_right(self._ends, at)
            rows = self.parts[number].rows
            at += epoch * rows - (self._ends[number] - rows)
        length = len(self.parts[number].source)
        epoch, at = divmod(at, length)
        return Place(number, epoch, _shuffled(at, length, seed, epoch, number))


def _shuffled(at: int, length: int, seed: int, epoch: int, number: int) -> int:
    """A permutation of range(length), one for each seed, epoch and number."""
    return grain.experimental.index_shuffle(
        at,
        max_index=length - 1,
        seed=(seed + _ODD * epoch + _OTHER * number) % 2**32,
        rounds=4,
    )


def shared(total: int, weights: Sequence[float]) -> list[int]:
    """`total` rows by weights, to the largest remainders what is left over; exactly."""
    exact = [Fraction(weight) for weight in weights]
    quotas = [total * weight / sum(exact) for weight in exact]
    rows = [math.floor(quota) for quota in quotas]
    largest = sorted(range(len(rows)), key=lambda k: rows[k] - quotas[k])
    for k in largest[: total - sum(rows)]:
        rows[k] += 1
    return rows


def opened(
    data: Mapping[str, Any], say: Callable[[str], None] = lambda line: None, report: bool = True
) -> Mixture:
    """The data that a config trains on: opened, filtered, and found to make captions.

    Args:
      data: `config.data`, whose threads or workers also find out what a filter leaves in.
      say: takes lines on the way: how far a filter is, what is odd.
      report: whether what opening left out is said too.

    Raises:
      UserError: a key is wrong, a source cannot be read, or nothing is left of it.
    """
    if not (data["train"] or data.get("mix")):
        raise UserError(
            "no data given: set config.data.train to your tars, a folder of pictures, a table or "
            "tfds:NAME:SPLIT, or config.data.mix to several of them"
        )
    parts = []
    found = mixture_config.of(data)
    for name, entry in found.items():
        kept, most = data.get("index", ""), data.get("max_bad_fraction", 0.01)
        options = SourceOptions(
            entry.image, entry.root, kept, most, entry.table_options, entry.columns
        )
        source = open_source(entry.data, options, kind=entry.source, key=entry.key)
        for line in source.opening_report().lines(remote.shown(entry.data)) if report else ():
            say(line)
        if entry.filter:
            source = Selected(
                source,
                entry.filter,
                entry.captions,
                threads=data.get("threads", 2),
                processes=data.get("workers", 0),
                say=say,
                place=kept,
                key=entry.key,
            )
        for template in _unfilled(source, entry.captions):
            say(f"caption template {template!r}: none of the first {_FIRST} pairs fills it")
        parts.append(Part(name, source, len(source), entry.captions, entry.caption_weights))
    rows = _rows(list(found.values()), [part.rows for part in parts])
    return Mixture([dataclasses.replace(p, rows=n) for p, n in zip(parts, rows, strict=True)])


def _rows(found: Sequence[mixture_config.Entry], lengths: Sequence[int]) -> list[int]:
    """Of each source in an epoch."""
    if found[0].weight is not None:
        rows = shared(sum(lengths), [entry.weight or 0 for entry in found])
    else:
        times = [1 if entry.epochs is None else entry.epochs for entry in found]
        rows = [round(Fraction(n) * length) for n, length in zip(times, lengths, strict=True)]
    for entry, count in zip(found, rows, strict=True):
        if not count:
            what = "epochs" if entry.weight is None else "weight"
            share = getattr(entry, what)
            raise UserError(f"{entry.key}.{what}={share} gives it no row of an epoch: raise it")
    return rows


def _unfilled(source: Source, templates: Sequence[str]) -> list[str]:
    """The templates that none of the first pairs fills.

    Raises:
      PairError: that is all of them, or none of these pairs can be read.
    """
    left, wrong = list(templates), None
    for i in range(min(len(source), _FIRST)):
        try:
            pair = read_pair(source, i)
        except PairError as error:
            wrong = wrong or error
            continue
        for template in list(left):
            try:
                with only_pair_errors("caption", pair.name):
                    captions.fill(template, pair.text, pair.name)
                left.remove(template)
            except PairError as error:
                wrong = wrong or error
        if not left:
            return []
    if wrong and len(left) == len(templates):
        line = str(wrong)
        if "; there are: " in line and not line.endswith(": none"):
            line += ": set config.data.captions to a template over one of them"
        raise PairError(wrong.reason, line)
    return left
