"""What a curation decides about a chunk, and the summary of all chunks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64

from clip_jax.curation import storage
from clip_jax.curation.engine.job import Job, Sparse, State
from clip_jax.curation.facts import Facts
from clip_jax.curation.hashing import combine
from clip_jax.curation.pool import Chunk
from clip_jax.curation.queries import balance
from clip_jax.curation.rules import KEPT, Reasons, column_values, is_usable, mark

SAMPLES = 12  # pairs of each reason, and of those that are kept
# Values of a limit for which the page shows how many pairs meet it.
SIDES = (32, 64, 100, 128, 150, 200, 224, 256, 300, 336, 400, 512, 640, 768, 1024)
ASPECTS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 8.0, 10.0)
WORDS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100)
_CURVE = 48  # values of t
MISSING = 1 << 40  # the bin of pairs without a value
_COLUMN_SHIFT = 12  # bits of a value that its bin does not tell

Sample = tuple[int, int, int]  # a random number that orders them, the file, the pair


def limits_of_curve(counts: Int64[np.ndarray, " queries"]) -> Int64[np.ndarray, " values"]:
    """Returns the values of t for which the pairs are counted, from 1 to one that keeps all."""
    most = int(counts.max(initial=1)) + 1
    return np.unique(np.geomspace(1, most, _CURVE).round().astype(np.int64))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts over chunks; those of several chunks add up.

    Attributes:
      reasons: int64 [1 + reasons], the number of pairs of each code.
      kept: the number of kept pairs of each query.
      curve: int64 [values], the pairs that each t of `limits_of_curve` keeps.
      sides, aspects, words: int64, the pairs that are not broken and meet each of `SIDES`,
        `ASPECTS` and `WORDS` (at most as many words).
      columns: of each limited column of annotations, the pairs that are not broken by the bin of
        their value, see `column_bins`.
      samples: random pairs of each code.
    """

    reasons: np.ndarray
    kept: Sparse
    curve: np.ndarray
    sides: np.ndarray
    aspects: np.ndarray
    words: np.ndarray
    columns: Mapping[str, Sparse]
    samples: Mapping[int, Sequence[Sample]]

    @classmethod
    def sum(cls, parts: Iterable[Summary]) -> Summary:
        """Adds up summaries."""
        return functools.reduce(_add, parts)


def _add(a: Summary, b: Summary) -> Summary:
    arrays = {
        name: getattr(a, name) + getattr(b, name)
        for name in ("reasons", "curve", "sides", "aspects", "words")
    }
    codes = {*a.samples, *b.samples}
    samples = {
        code: sorted([*a.samples.get(code, ()), *b.samples.get(code, ())])[:SAMPLES]
        for code in codes
    }
    columns = {name: add_sparse([a.columns[name], b.columns[name]]) for name in a.columns}
    kept = add_sparse([a.kept, b.kept])
    return Summary(**arrays, kept=kept, columns=columns, samples=samples)


def add_sparse(parts: Iterable[Sparse]) -> Sparse:
    """Adds up sparse arrays."""
    places, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    distinct, inverse = np.unique(places, return_inverse=True)
    total = np.zeros(len(distinct), np.int64)
    np.add.at(total, inverse, values)
    return distinct, total


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is decided about a chunk.

    Attributes:
      chunk: the chunk.
      kept: uint8 [n / 8], one bit a pair, as `numpy.packbits` packs them.
      summary: the counts.
    """

    chunk: Chunk
    kept: UInt8[np.ndarray, " bytes"]
    summary: Summary


def decisions_path(folder: str, chunk: Chunk) -> str:
    """Returns the path of the decisions about a chunk in the folder of a curation."""
    return storage.join(folder, f"decisions/{chunk.file:05}-{chunk.start:010}.npz")


def decide(
    job: Job,
    state: State,
    counts: Int64[np.ndarray, " queries"],
    limits: Int64[np.ndarray, " languages"],
) -> Outcome:
    """Balances the pairs of a chunk, and writes why each is kept or left out.

    Args:
      job: the curation.
      state: the chunk, with the reasons of all other rules.
      counts: the number of pairs of each query in the pool.
      limits: t of each language.
    """
    facts, reasons = job.facts(state.chunk), state.reasons.copy()
    thresholds = np.zeros(0, np.uint64)
    if job.extraction.queries and job.rules.balance:
        thresholds = job.thresholds(state, counts)
        is_kept = balance.is_kept(thresholds, job.limit_of_pairs(state, limits))
        mark(reasons, ~is_kept, job.rules.code("balance"))
    storage.write_arrays(
        decisions_path(job.out, state.chunk),
        {"reasons": reasons, "thresholds": thresholds, "key": np.array(job.key, np.uint64)},
    )
    curve = _curve(thresholds, limits_of_curve(counts))
    summary = Summary(
        reasons=np.bincount(reasons, minlength=1 + len(job.rules.reasons)),
        kept=job.count(State(state.chunk, reasons)),
        curve=curve,
        columns=_columns(job, state.chunk, reasons),
        samples=_samples(job, state.chunk, facts, reasons),
        **_yields(facts, reasons),
    )
    return Outcome(state.chunk, np.packbits(reasons == KEPT), summary)


def _curve(
    thresholds: UInt64[np.ndarray, " n"], limits: Int64[np.ndarray, " values"]
) -> Int64[np.ndarray, " values"]:
    own = np.sort(thresholds[thresholds != balance.NEVER])
    scaled = limits.astype(np.uint64) << np.uint64(balance.SCALE)
    return np.searchsorted(own, scaled, side="left").astype(np.int64)


def _yields(facts: Facts, reasons: Reasons) -> dict[str, np.ndarray]:
    usable = is_usable(reasons)
    shorter, longer = np.sort(facts.sides[usable], axis=1).T
    ratio = longer / np.maximum(shorter, 1)
    words = facts.words[usable]
    return {
        "sides": np.array([np.count_nonzero(shorter >= value) for value in SIDES]),
        "aspects": np.array([np.count_nonzero(ratio < value) for value in ASPECTS]),
        "words": np.array([np.count_nonzero(words <= value) for value in WORDS]),
    }


def _columns(job: Job, chunk: Chunk, reasons: Reasons) -> dict[str, Sparse]:
    """Counts the pairs that are not broken by the value of each limited column."""
    usable, folders = is_usable(reasons), job.columns.folders
    columns = {}
    for name, _, _ in job.columns.limits:
        bins = column_bins(column_values(folders, name, chunk)[usable])
        distinct, counts = np.unique(bins, return_counts=True)
        columns[name] = distinct, counts.astype(np.int64)
    return columns


def column_bins(values: Float32[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Returns a bin for each value: bins are in the order of values, `MISSING` stands for NaN.

    A bin holds the values that share their leading 20 bits, so that 11 bits of a value and more are
    known of each, and bins are the same whatever the range of a column is.
    """
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)  # no negative zero
    order = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return np.where(np.isnan(values), MISSING, order >> _COLUMN_SHIFT)


def bin_values(bins: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """Returns the least value of each bin; the inverse of `column_bins`."""
    order = bins << _COLUMN_SHIFT
    magnitude = np.abs(order).astype(np.uint32)
    bits = np.where(order < 0, magnitude | np.uint32(1 << 31), magnitude).astype(np.uint32)
    return bits.view(np.float32)


def _samples(job: Job, chunk: Chunk, facts: Facts, reasons: Reasons) -> dict[int, list[Sample]]:
    """Returns the pairs of each code with the least random numbers, which their content gives."""
    numbers = combine(facts.keys, np.uint64(job.seed % (1 << 64)))
    samples = {}
    for code in np.unique(reasons):
        own = np.flatnonzero(reasons == code)
        chosen = own[np.argsort(numbers[own], kind="stable")[:SAMPLES]]
        samples[int(code)] = [(int(numbers[i]), chunk.file, chunk.start + int(i)) for i in chosen]
    return samples


def dense(sparse: Sparse, length: int) -> Int64[np.ndarray, " length"]:
    """Returns a sparse array in full."""
    places, values = sparse
    result = np.zeros(length, np.int64)
    result[places] = values
    return result


def limits_of(
    job: Job, counts: Int64[np.ndarray, " queries"], found: int = 0
) -> Int64[np.ndarray, " languages"]:
    """Returns t of each language.

    Of several languages, the first has the limit of the rules; the share of matches that it leaves
    in the tail decides on the limits of the others (MetaCLIP 2, Chuang et al. 2025).

    Args:
      job: the curation.
      counts: the number of pairs of each query.
      found: the limit that keeps the wanted number of pairs; 0 if none is wanted.
    """
    languages = max(1, len(job.extraction.queries))
    parts = [counts[job.offsets[i] : job.offsets[i + 1]] for i in range(len(job.offsets) - 1)]
    if found or (len(parts) < 2 and not job.rules.tail_share):
        return np.full(languages, found or job.rules.limit, np.int64)
    share = job.rules.tail_share or balance.tail_share(parts[0], job.rules.limit)
    if not 0 < share < 1:
        return np.full(languages, job.rules.limit, np.int64)
    limits = [balance.limit_for_tail(part, share) for part in parts]
    if not job.rules.tail_share:
        limits[0] = job.rules.limit
    return np.array(limits, np.int64)
