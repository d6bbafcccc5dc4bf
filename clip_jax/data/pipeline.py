"""Batches for training: a pure function of (seed, step, global batch size), read by grain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from clip_jax.data import captions
from clip_jax.data.example import REASONS, Pair, PairError, described, only_pair_errors
from clip_jax.data.images import augmentation, decoding
from clip_jax.data.mixture import Mixture
from clip_jax.data.sources import Source, read_pair
from clip_jax.data.workers import died, end_with_parent
from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer, packing

Row = dict[str, np.ndarray]
_ENDLESS = 1 << 53  # rows
ATTEMPTS = 100  # at a row
_FEW = 1_000  # pairs, of which a share says little


@dataclasses.dataclass(frozen=True)
class Prepare:
    """A pair to a row of a batch: augmented pixels and the tokens of a sampled caption.

    weights: how often each template is drawn, relative to the others; empty: all alike.
    """

    tokenizer: Tokenizer
    image_size: int
    templates: Sequence[str]
    augment: augmentation.Augment
    decode: decoding.Decoder = dataclasses.field(default_factory=decoding.Decoder)
    token_dropout: float = 0.0
    weights: Sequence[float] = ()

    @classmethod
    def of(cls, data: Mapping[str, Any], tokenizer: Tokenizer, image_size: int) -> Prepare:
        """As `config.data` says."""
        augment = augmentation.Augment.from_dict(data["augment"])
        return cls(
            tokenizer,
            image_size,
            tuple(data["captions"]),
            augment,
            decoding.Decoder(
                data["cache_mib"], augment.least_side(image_size) if data["fast_decode"] else 0
            ),
            data["token_dropout"],
            tuple(data.get("caption_weights", ())),
        )

    def __call__(self, pair: Pair, rng: np.random.Generator, turn: int = 0) -> Row:
        """`image` uint8 [size, size, 3], `tokens` int32 [context]; over-long captions are cut.

        turn: which of several captions `{captions:each}` is, counted round.

        Raises:
          PairError: the pair cannot be used, for whatever reason.
        """
        with only_pair_errors("picture", pair.name):
            picture = self.decode(pair.image, pair.name)
        with only_pair_errors("caption", pair.name):
            caption = captions.sample(self.templates, pair.text, pair.name, rng, self.weights, turn)
        with only_pair_errors("picture", pair.name):
            image = augmentation.random_view(picture, self.image_size, self.augment, rng)
        with only_pair_errors("caption", pair.name):
            tokens = self.tokenizer(caption, truncate=True)[0]
        if self.token_dropout:
            marked = self.tokenizer.sot_id is not None
            tokens = packing.drop(tokens, self.token_dropout, self.tokenizer.pad_id, rng, marked)
        return {"image": image, "tokens": tokens}


@dataclasses.dataclass(frozen=True)
class _Steps:
    """A process's rows of the global batch of every step, as a source of random access.

    A whole batch is one element: grain's bookkeeping for an element costs half of what making
    a small picture does.
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
        rows = [self._row(first + row) for row in self.rows]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _row(self, position: int) -> Row:
        """The row at a position of the endless global order.

        In place of a pair that cannot be used stands another of its source, drawn by the
        position's own chance.
        """
        part, epoch, i = self.mixture.place(position, self.seed)
        source = self.mixture.parts[part].source
        bad, complaint = np.zeros(len(REASONS), np.int32), ""
        for attempt in range(ATTEMPTS):
            # Philox counts: each attempt has 2**96 draws of its own (Salmon et al. 2011)
            counter = (position << 128) + (attempt << 96)
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
            if attempt:
                i = int(rng.integers(len(source)))
            try:
                row = self.prepares[part](read_pair(source, i), rng, epoch + i)
            except PairError as error:
                bad[REASONS.index(error.reason)] += 1
                complaint = str(error)
            else:
                beside = {"source": part, "bad": bad, "complaint": complaint}
                return row | {key: np.array(value) for key, value in beside.items()}
        raise UserError(
            f"{ATTEMPTS} pairs in a row cannot be used ({described(bad)}), such as: {complaint}"
        )


def of_parts(mixture: Mixture, prepare: Prepare) -> tuple[Prepare, ...]:
    """`prepare` for each source of a mixture, with the templates that are its own."""
    return tuple(
        dataclasses.replace(prepare, templates=part.templates, weights=part.weights)
        if part.templates
        else prepare
        for part in mixture.parts
    )


def batches(
    source: Source | Mixture,
    prepare: Prepare,
    *,
    batch_size: int,
    seed: int,
    rows: Iterable[int] | None = None,
) -> grain.MapDataset:
    """Endless batches; element `i` is the global batch of step `i`, or the `rows` of it.

    Every epoch is shuffled anew. Which pair stands in which row of which step, and what is
    random about it, depends on seed and global batch size only, not on who makes which rows.
    Where a source of a mixture has templates of its own, its captions are made by these.

    Beside what `prepare` makes a batch has, of each row, `source`, int64 [rows]: the number of the
    mixture's part that it is of; `bad`, int32 [rows, reasons]: the pairs that could not be used,
    for which others stand in; and `complaint`, text [rows]: of the last of them, or empty.
    """
    mixture = Mixture.of(source)
    chosen = tuple(range(batch_size) if rows is None else map(int, rows))
    prepares = of_parts(mixture, prepare)
    return grain.MapDataset.source(_Steps(mixture, prepares, batch_size, seed, chosen))


class Batches(grain.DatasetIterator):
    """Batches in order, made ahead by threads or processes.

    The state is the step that comes next, whoever makes its batch: it holds for any number of
    threads, workers and hosts. `bad` counts, by `pairs.REASONS`, the pairs that the newest batch
    lacks; where more than `max_bad_fraction` of all are bad, the next batch is a UserError.
    `source` says of each row of the newest batch which part of the mixture it is of.
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
        self.complaint = ""  # of the last of them
        self._max_bad_fraction = max_bad_fraction
        self._bad, self._seen = self.bad, 0  # of all batches
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
            if "terminated unexpectedly" in str(error):  # grain's words
                raise died(self._workers) from None
            raise
        self.source = batch.pop("source")
        self._count(batch.pop("bad"), batch.pop("complaint"))
        self._step += 1
        return batch

    def _count(self, bad: np.ndarray, complaints: np.ndarray) -> None:
        self.bad = bad.sum(0, dtype=np.int64)
        self._bad, self._seen = self._bad + self.bad, self._seen + len(bad)
        if not self.bad.any():
            return
        self.complaint = str(complaints[complaints != ""][-1])
        total = int(self._bad.sum())
        if total > self._max_bad_fraction * max(self._seen, _FEW):
            raise UserError(
                f"{total:,} of {self._seen + total:,} pairs cannot be used "
                f"({described(self._bad)}), more than config.data.max_bad_fraction="
                f"{self._max_bad_fraction:g}; such as: {self.complaint}"
            )

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


def iterator(
    dataset: grain.MapDataset,
    *,
    threads: int,
    workers: int,
    prefetch: int,
    max_bad_fraction: float = 0.0,
) -> Batches:
    """Reads ahead; its state (the next step) is a small JSON that a checkpoint holds.

    threads: batches made at once in a process. workers: processes, 0 for this one alone.
    prefetch: batches made ahead, by all workers together.
    max_bad_fraction: of pairs that may be unusable.
    """
    return Batches(dataset, threads, workers, prefetch, max_bad_fraction)
