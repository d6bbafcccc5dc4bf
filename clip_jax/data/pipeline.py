"""Batches for training: a pure function of (seed, step, global batch size), read by grain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from clip_jax.data import captions, images
from clip_jax.data.sources import Source
from clip_jax.tokenizers import Tokenizer

Row = dict[str, np.ndarray]
_ENDLESS = 1 << 53  # rows; grain counts batches in floating point


@dataclasses.dataclass(frozen=True)
class Prepare(grain.transforms.RandomMap):
    """A pair to a row of a batch: augmented pixels and the tokens of a sampled caption."""

    tokenizer: Tokenizer
    image_size: int
    templates: Sequence[str]
    augment: images.Augment
    decode: images.Decoder = dataclasses.field(default_factory=images.Decoder)

    def random_map(self, pair: Any, rng: np.random.Generator) -> Row:
        """`image` uint8 [size, size, 3], `tokens` int32 [context]; over-long captions are cut."""
        picture = self.decode(pair.image, pair.name)
        caption = captions.sample(self.templates, pair.text, pair.name, rng)
        return {
            "image": images.random_view(picture, self.image_size, self.augment, rng),
            "tokens": self.tokenizer(caption, truncate=True)[0],
        }


@dataclasses.dataclass(frozen=True)
class _HostRows:
    """The rows of one process out of the global order: its share of each global batch."""

    rows: grain.MapDataset
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return min(len(self.rows), _ENDLESS) // self.process_count

    def __getitem__(self, i: Any) -> Row:
        share = self.batch_size // self.process_count
        step, row = divmod(int(i), share)
        return self.rows[step * self.batch_size + self.process_index * share + row]


def batches(
    source: Source,
    prepare: Prepare,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Endless batches; element `i` is this process's share of the global batch of step `i`.

    Every epoch is shuffled anew. Which pair stands in which row of which step, and what is
    random about it, depends on seed and global batch size only, not on the number of processes.
    """
    if batch_size % process_count:
        raise ValueError(f"{batch_size=} does not divide over {process_count} processes")
    rows = grain.MapDataset.source(source).seed(seed).shuffle().random_map(prepare).repeat()
    mine = _HostRows(rows, batch_size, process_index, process_count)
    return grain.MapDataset.source(mine).batch(batch_size // process_count)


class Batches(grain.DatasetIterator):
    """Batches in order, made ahead by threads or processes.

    The state is the step that comes next, whoever makes its batch: it holds for any number of
    threads, workers and hosts.
    """

    def __init__(
        self, dataset: grain.MapDataset, threads: int, workers: int, prefetch: int
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._threads, self._workers, self._prefetch = threads, workers, prefetch
        self._step = 0
        self._reader: grain.DatasetIterator | None = None

    def _open(self) -> grain.DatasetIterator:
        rest = self._dataset.slice(slice(self._step, None)).to_iter_dataset(
            grain.ReadOptions(
                num_threads=self._threads, prefetch_buffer_size=max(self._prefetch, self._threads)
            )
        )
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain's workers ask for absl's flags
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=self._prefetch
                )
            )
        return iter(rest)

    def __next__(self) -> Row:
        if self._reader is None:
            self._reader = self._open()
        batch = next(self._reader)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The step of the next batch."""
        return {"next_index": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a step."""
        self.close()
        self._step = state["next_index"]

    def close(self) -> None:
        """Stops reading ahead."""
        if self._reader is not None:
            self._reader.close()
        self._reader = None


def iterator(dataset: grain.MapDataset, *, threads: int, workers: int, prefetch: int) -> Batches:
    """Reads ahead; its state (the next step) is a small JSON that a checkpoint holds.

    threads: batches made at once in a process. workers: processes, 0 for this one alone.
    prefetch: batches made ahead (per worker).
    """
    return Batches(dataset, threads, workers, prefetch)
