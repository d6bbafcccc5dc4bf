"""The pipeline: one Beam graph from the files of a pool to a selection.

An element is a chunk of some ten thousand pairs with arrays about them, so that Beam's cost for an
element does not matter. What concerns the pool as a whole, such as the texts that many images
share, is found by partitions of hashes, and goes back to the chunks of the pairs concerned.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsList, AsSingleton, PCollection

from clip_jax.curation import ngrams
from clip_jax.curation.engine import results, whole_pool
from clip_jax.curation.engine.job import BINS, Job, Sparse, State, write_frequent
from clip_jax.curation.engine.openings import Openings
from clip_jax.curation.engine.outcome import Outcome, Summary, add_sparse, decide, dense, limits_of
from clip_jax.curation.pool import Chunk
from clip_jax.curation.queries.balance import MAX_COUNT
from clip_jax.io.files import JsonObject


class _Sum(beam.CombineFn):
    """Adds up elements by a function of a list of them."""

    def __init__(self, add: Callable[[list[Any]], Any], zero: Any) -> None:
        self.add, self.zero = add, zero

    def create_accumulator(self) -> Any:
        return self.zero

    def add_input(self, accumulator: Any, element: Any) -> Any:
        return self.add([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        return self.add([self.zero, *accumulators])

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


def _sum_arrays(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.sum(arrays, axis=0)


def _sum_summaries(parts: Sequence[Summary | None]) -> Summary | None:
    present = [part for part in parts if part is not None]
    return Summary.sum(present) if present else None


def _sum_histograms(parts: Sequence[Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for part in parts:
        for count, number in part.items():
            total[count] = total.get(count, 0) + number
    return total


_NONE: Sparse = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def build(pipeline: beam.Pipeline, job: Job, files: Sequence[str]) -> None:
    """Adds a curation to a pipeline; it writes its results into the folder of the job.

    Args:
      pipeline: the pipeline.
      job: the curation.
      files: the files of the pool.
    """
    rules = job.rules
    listed = (
        pipeline
        | "files" >> beam.Create(list(enumerate(files)), reshuffle=False)
        | "spread files" >> beam.Reshuffle()
        | "list" >> beam.FlatMap(job.chunks)
    )
    broken = listed | "broken files" >> beam.Filter(lambda item: isinstance(item, tuple))
    openings = (
        listed
        | "openings" >> beam.Filter(lambda item: isinstance(item, Openings))
        | "sum openings" >> beam.CombineGlobally(_Sum(Openings.sum, Openings()))
    )
    states = (
        listed
        | "chunks" >> beam.Filter(lambda item: isinstance(item, Chunk))
        | "spread chunks" >> beam.Reshuffle()
        | "examine" >> beam.Map(job.examine)
        | "examined" >> beam.Reshuffle()
    )
    if rules.frequent:
        states |= "rare words" >> _RareWords(job)
    marks = []
    if rules.texts_per_image:
        rows = states | "by image" >> _Rows(job, "image")
        many = ("many_texts", rules.texts_per_image)
        marks.append(rows | "many texts" >> beam.FlatMap(whole_pool.with_many_others, *many))
    if rules.images_per_text:
        rows = states | "by text" >> _Rows(job, "text")
        shared = ("shared_text", rules.images_per_text)
        marks.append(rows | "shared text" >> beam.FlatMap(whole_pool.with_many_others, *shared))
    states = _with_marks(job, states, marks, "words of all") | beam.Map(job.examine_further)
    if rules.duplicates:
        rows = states | "same" >> _Rows(job, f"same_{rules.duplicates}")
        found = rows | "repeated" >> beam.FlatMap(whole_pool.repeated, "duplicate")
        states = _with_marks(job, states, [found], "repeated")
    if rules.near >= 0:
        rows = states | "near" >> _Rows(job, "near")
        found = rows | "near ones" >> beam.FlatMap(whole_pool.near, "near_duplicate", rules.near)
        states = _with_marks(job, states, [found], "near")
    states |= "match" >> beam.Map(job.mark_unmatched)
    _decide(pipeline, job, files, states, broken, openings)


def _decide(
    pipeline: beam.Pipeline,
    job: Job,
    files: Sequence[str],
    states: PCollection,
    broken: PCollection,
    openings: PCollection,
) -> None:
    """Balances the pairs, and writes the results."""
    length = int(job.offsets[-1])
    counts = AsSingleton(
        states
        | "count" >> beam.Map(job.count)
        | "sum counts" >> beam.CombineGlobally(_Sum(add_sparse, _NONE))
        | "counts" >> beam.Map(dense, length)
    )
    once = pipeline | "once" >> beam.Create([None])
    found: Any = 0
    if job.rules.pairs:
        zeros = np.zeros(BINS, np.int64)
        coarse = AsSingleton(
            states
            | "coarse" >> beam.Map(job.histogram, counts)
            | "sum coarse" >> beam.CombineGlobally(_Sum(_sum_arrays, zeros))
        )
        outer = once | "bin" >> beam.Map(_outer_bin, coarse, job.rules.pairs)
        fine = AsSingleton(
            states
            | "fine" >> beam.Map(job.histogram, counts, AsSingleton(outer))
            | "sum fine" >> beam.CombineGlobally(_Sum(_sum_arrays, zeros))
        )
        found = AsSingleton(
            once | "limit" >> beam.Map(_limit_for_pairs, coarse, fine, job.rules.pairs)
        )
    limits = AsSingleton(once | "limits" >> beam.Map(_limits, job, counts, found))
    outcomes = states | "decide" >> beam.Map(_decide_chunk, job, counts, limits)
    summary = (
        outcomes
        | "summaries" >> beam.Map(operator.attrgetter("summary"))
        | "sum summaries" >> beam.CombineGlobally(_Sum(_sum_summaries, None))
    )
    entries = (
        outcomes
        | "by file" >> beam.Map(lambda outcome: (outcome.chunk.file, (outcome.chunk, outcome.kept)))
        | "group files" >> beam.GroupByKey()
        | "chunks of files" >> beam.Values()
        | "write files" >> beam.Map(_write_file, job)
    )
    faults = (AsList(broken), AsSingleton(openings))
    sides = (AsSingleton(summary), counts, limits, AsList(entries), *faults)
    _ = once | "write" >> beam.Map(_write, job, list(files), *sides)


class _RareWords(beam.PTransform):
    """Finds the frequent words and pairs of words, and marks the captions with others."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def expand(self, states: PCollection) -> PCollection:
        job = self.job
        parts = (
            states
            | "words" >> beam.FlatMap(job.ngrams)
            | "by word" >> beam.GroupByKey()
            | "counted words" >> beam.Values()
            | "sum words" >> beam.Map(add_sparse)
        )
        least = AsSingleton(
            parts
            | "how often" >> beam.Map(_histogram)
            | "sum" >> beam.CombineGlobally(_Sum(_sum_histograms, {}))
            | "least" >> beam.Map(ngrams.least_count, job.rules.frequent)
        )
        frequent = AsList(parts | "frequent" >> beam.Map(_frequent, least))
        once = states.pipeline | "for words" >> beam.Create([None])
        written = once | "write" >> beam.Map(_write_frequent, job.out, frequent)
        return states | "mark" >> beam.Map(job.mark_rare, AsSingleton(written))


class _Rows(beam.PTransform):
    """Groups pairs by hashes: each element is the rows of one partition."""

    def __init__(self, job: Job, key: str) -> None:
        super().__init__()
        self.job, self.key = job, key

    def expand(self, states: PCollection) -> PCollection:
        rows = states | beam.FlatMap(self.job.rows, self.key)
        return rows | beam.GroupByKey() | beam.Values()


def _with_marks(
    job: Job, states: PCollection, marks: Sequence[PCollection], label: str
) -> PCollection:
    """Gives the reasons that were found for the whole pool to the chunks they concern."""
    if not marks:
        return states
    found = tuple(marks) | f"{label}: all" >> beam.Flatten()
    keyed = states | f"{label}: by chunk" >> beam.Map(lambda state: (state.id, state))
    joined = {"states": keyed, "marks": found} | f"{label}: join" >> beam.CoGroupByKey()
    return (
        joined
        | f"{label}: joined" >> beam.Values()
        | f"{label}: mark" >> beam.Map(_mark_joined, job)
    )


def _mark_joined(joined: Mapping[str, Iterable[Any]], job: Job) -> State:
    (state,) = joined["states"]
    return job.with_marks(state, list(joined["marks"]))


def _histogram(counted: Sparse) -> dict[int, int]:
    counts, numbers = np.unique(counted[1], return_counts=True)
    return dict(zip(counts.tolist(), numbers.tolist(), strict=True))


def _frequent(counted: Sparse, least: int) -> np.ndarray:
    return counted[0][counted[1] >= least]


def _write_frequent(_: None, folder: str, parts: Sequence[np.ndarray]) -> tuple[str, int]:
    return write_frequent(folder, np.concatenate([np.zeros(0, np.uint64), *parts]))


def _outer_bin(_: None, coarse: np.ndarray, pairs: int) -> int:
    """Returns the bin of the largest t - 1 that keeps at most a number of pairs."""
    return min(int(np.searchsorted(np.cumsum(coarse), pairs, side="right")), BINS - 1)


def _limit_for_pairs(_: None, coarse: np.ndarray, fine: np.ndarray, pairs: int) -> int:
    """Returns the largest t that keeps at most a number of pairs, at least 1."""
    outer = _outer_bin(None, coarse, pairs)
    before = int(coarse[:outer].sum())
    inner = int(np.searchsorted(np.cumsum(fine), pairs - before, side="right"))
    return min(max(1, outer * BINS + inner), MAX_COUNT)


def _limits(_: None, job: Job, counts: np.ndarray, found: int) -> np.ndarray:
    return limits_of(job, counts, found)


def _decide_chunk(state: State, job: Job, counts: np.ndarray, limits: np.ndarray) -> Outcome:
    return decide(job, state, counts, limits)


def _write_file(chunks: Iterable[tuple[Chunk, np.ndarray]], job: Job) -> tuple[int, JsonObject]:
    return results.write_file(job, chunks)


def _write(_: None, job: Job, files: Sequence[str], *sides: Any) -> None:
    results.write(job, files, *sides)
