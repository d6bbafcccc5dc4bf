"""Batches for training: a pure function of (seed, step, global batch size), read by grain."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from clip_jax.data.example import REASONS, PairError, described
from clip_jax.data.mixture import Mixture
from clip_jax.data.rows import Prepare, Row
from clip_jax.data.sources import Source, read_pair
from clip_jax.data.stored_features import StoredFeatures
from clip_jax.data.workers import dead_worker_error, end_with_parent
from clip_jax.errors import UserError

_ENDLESS = 1 << 53  # rows
ATTEMPTS = 100  # to fill a row
_MIN_SEEN = 1_000  # pairs, before a share of bad ones means anything


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The rows of the global batch that one process makes, for every step, with random access.

    A whole batch is one element for grain, whose bookkeeping for an element costs half as much as
    making a small image.
    """

    mixture: Mixture
    prepares: tuple[Prepare, ...]  # of each source
    batch_size: int
    seed: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return _ENDLESS // self.batch_size

    def __getitem__(self, step: Any) -> Row:
        first = int(step) * self.batch_size
        prepares = [prepare.for_step(self.seed, int(step)) for prepare in self.prepares]
        rows = [self._row(first + row, prepares) for row in self.rows]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, position: int, prepares: Sequence[Prepare]) -> Row:
        """Returns the row at a position of the endless global order.

        A pair that cannot be used is replaced by a random pair of the same source. The
        replacement depends on the position only.
        """
        part, epoch, i = self.mixture.place(position, self.seed)
        source = self.mixture.parts[part].source
        bad, complaint = np.zeros(len(REASONS), np.int32), ""
        for attempt in range(ATTEMPTS):
            # a counter-based generator: each attempt has 2**96 draws of its own
            # (Philox, Salmon et al. 2011)
            counter = (position << 128) + (attempt << 96)
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
            if attempt:
                i = int(rng.integers(len(source)))
            try:
                pair = read_pair(source, i)
                row = prepares[part](pair, rng, epoch + i, number=i, epoch=epoch)
            except PairError as error:
                bad[REASONS.index(error.reason)] += 1
                complaint = str(error)
            else:
                extra = {"source": part, "bad": bad, "complaint": complaint}
                return row | {key: np.array(value) for key, value in extra.items()}
        raise UserError(
            f"{ATTEMPTS} pairs in a row cannot be used ({described(bad)}), such as: {complaint}"
        )


def pairs_per_picture(source: Source, first: int = 32) -> float:
    """Returns the mean number of pairs per distinct image, among the first `first` pairs.

    Pairs that cannot be used are left out.
    """
    pictures = []
    for i in range(min(first, len(source))):
        with contextlib.suppress(PairError):
            pictures.append(read_pair(source, i).image)
    return len(pictures) / max(1, len(set(pictures)))


def prepares_of(
    mixture: Mixture, prepare: Prepare, stored: Sequence[StoredFeatures] = ()
) -> tuple[Prepare, ...]:
    """Returns `prepare` for each source of a mixture, with the source's own templates if any.

    Args:
      mixture: the sources.
      prepare: the settings that all sources share.
      stored: the image features of each source, to use in place of pixels; empty for pixels.
    """
    prepares = [
        dataclasses.replace(
            prepare,
            templates=part.templates,
            weights=part.weights,
            label=part.label or prepare.label,
        )
        if part.templates
        else prepare
        for part in mixture.parts
    ]
    if not stored:
        return tuple(prepares)
    pairs = zip(prepares, stored, strict=True)
    return tuple(dataclasses.replace(own, features=features) for own, features in pairs)


def batches(
    source: Source | Mixture,
    prepare: Prepare,
    *,
    batch_size: int,
    seed: int,
    rows: Iterable[int] | None = None,
    stored: Sequence[StoredFeatures] = (),
) -> grain.MapDataset:
    """Returns endless batches; element `i` is the global batch of step `i`, or some rows of it.

    Every epoch has a new order. Which pair is in which row of which step, and all randomness of
    the row, depend on seed and global batch size only, not on the process that makes the row.

    Args:
      source: one source or a mixture. A source of a mixture that has its own templates makes its
        captions with them.
      prepare: makes a row from a pair.
      batch_size: the rows of the global batch.
      seed: the seed of the order and of all randomness.
      rows: the rows of the global batch to make; None for all.
      stored: the image features of each source, to use in place of images; empty for images.

    Returns:
      A dataset of batches. Besides the output of `prepare`, a batch contains for each row
        source: int64 [rows], the number of the mixture's part;
        bad: int32 [rows, reasons], how many pairs could not be used and were replaced;
        complaint: text [rows], about the last of them, or empty.
    """
    mixture = Mixture.from_source(source)
    own_rows = tuple(range(batch_size) if rows is None else map(int, rows))
    prepares = prepares_of(mixture, prepare, stored)
    return grain.MapDataset.source(_Steps(mixture, prepares, batch_size, seed, own_rows))


class Batches(grain.DatasetIterator):
    """An iterator over batches in order, prefetched by threads or processes.

    Its state is the number of the next step, which is valid for any number of threads, workers and
    hosts. A UserError is raised once more than `max_bad_fraction` of all pairs are bad.

    Attributes:
      bad: int64 [reasons], the number of pairs that were replaced in the last batch, by
        `example.REASONS`.
      complaint: a description of one of the replaced pairs.
      source: int64 [rows], the part of the mixture of each row of the last batch.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        threads: int,
        workers: int,
        prefetch: int,
        max_bad_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.bad = np.zeros(len(REASONS), np.int64)
        self.source = np.zeros(0, np.int64)
        self.complaint = ""
        self._max_bad_fraction = max_bad_fraction
        self._total_bad, self._total_seen = self.bad, 0
        self._threads, self._workers, self._prefetch = threads, workers, prefetch
        self._step = 0
        self._reader: grain.DatasetIterator | None = None

    def _open(self) -> grain.DatasetIterator:
        ahead = -(-self._prefetch // max(1, self._workers))
        rest = self.dataset.slice(slice(self._step, None)).to_iter_dataset(
            grain.ReadOptions(
                num_threads=self._threads, prefetch_buffer_size=max(ahead, self._threads)
            )
        )
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain's workers ask for absl's flags
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=ahead
                ),
                worker_init_fn=end_with_parent,
            )
        return iter(rest)

    def __next__(self) -> Row:
        if self._reader is None:
            self._reader = self._open()
        try:
            batch = dict(next(self._reader))
        except RuntimeError as error:
            if "terminated unexpectedly" in str(error):  # how grain reports a killed worker
                raise dead_worker_error(self._workers) from None
            raise
        self.source = batch.pop("source")
        self._count(batch.pop("bad"), batch.pop("complaint"))
        self._step += 1
        return batch

    def _count(self, bad: np.ndarray, complaints: np.ndarray) -> None:
        self.bad = bad.sum(0, dtype=np.int64)
        self._total_bad, self._total_seen = self._total_bad + self.bad, self._total_seen + len(bad)
        if not self.bad.any():
            return
        self.complaint = str(complaints[complaints != ""][-1])
        total = int(self._total_bad.sum())
        if total > self._max_bad_fraction * max(self._total_seen, _MIN_SEEN):
            raise UserError(
                f"{total:,} of {self._total_seen + total:,} pairs that were read cannot be used "
                f"({described(self._total_bad)}), more than config.data.max_bad_fraction="
                f"{self._max_bad_fraction:g}: take them out, or raise it; such as: {self.complaint}"
            )

    def get_state(self) -> dict[str, int]:
        """Returns the state, which is the number of the next step."""
        return {"next_index": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues at the step of a state that `get_state` returned."""
        self.close()
        self._step = state["next_index"]

    def close(self) -> None:
        """Stops prefetching."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None


def iterator(
    dataset: grain.MapDataset,
    *,
    threads: int,
    workers: int,
    prefetch: int,
    max_bad_fraction: float = 0.0,
) -> Batches:
    """Returns an iterator over batches with prefetching; its state fits into a checkpoint's JSON.

    Args:
      dataset: as `batches` returns it.
      threads: the number of batches that a process makes at the same time.
      workers: the number of processes that make batches; 0 for threads of this process only.
      prefetch: the number of batches that all workers together make in advance.
      max_bad_fraction: the share of pairs that may be unusable.
    """
    return Batches(dataset, threads, workers, prefetch, max_bad_fraction)
