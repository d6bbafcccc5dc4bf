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


@dataclasses.dataclass(frozen=True)
class Prepare(grain.transforms.RandomMap):
    """A pair to a row of a batch: augmented pixels and the tokens of a sampled caption."""

    tokenizer: Tokenizer
    image_size: int
    templates: Sequence[str]
    augment: images.Augment

    def random_map(self, pair: Any, rng: np.random.Generator) -> Row:
        """`image` uint8 [size, size, 3], `tokens` int32 [context]; over-long captions are cut."""
        picture = images.decode(pair.image, pair.name)
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
        return len(self.rows) // self.process_count

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


def iterator(
    dataset: grain.MapDataset, *, threads: int, workers: int, prefetch: int
) -> grain.DatasetIterator:
    """Reads ahead; its state (the next step) is a small JSON that a checkpoint holds.

    threads: batches made at once in a process. workers: processes, 0 for this one alone.
    prefetch: batches made ahead (per worker).
    """
    reader = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))
    )
    if workers:
        flags.FLAGS.mark_as_parsed()  # grain asks absl's flags, which nobody else here uses
        reader = reader.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
        )
    return iter(reader)
