"""Scoring all files of a pool into an annotation folder, file by file."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from clip_jax.curation import storage
from clip_jax.curation.pool import Pool
from clip_jax.curation.scores import feature_tables
from clip_jax.curation.scores.annotations import JOB, Annotations, AnnotationWriter
from clip_jax.curation.scores.parquet_files import exists
from clip_jax.curation.scores.scoring import Scorer, Scores
from clip_jax.data.example import REASONS, described
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost
from clip_jax.errors import UserError, counted

_SHARES = (0.5, 0.3, 0.2, 0.15)  # of pairs, whose least score is printed
_BINS = 20_000  # of scores from -1 to 1


@dataclasses.dataclass
class Totals:
    """What was scored.

    Attributes:
      pairs: the number of pairs that were read.
      files: the number of files that were scored.
      done: the number of files that were scored before.
      unreadable: the number of files that cannot be opened.
      broken: int64 [reasons], the pairs without a CLIP score.
    """

    pairs: int = 0
    files: int = 0
    done: int = 0
    unreadable: int = 0
    broken: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(REASONS), np.int64))

    def line(self) -> str:
        """Returns a sentence for people."""
        before = f" ({counted(self.done, 'file')} before)" if self.done else ""
        if self.unreadable:
            before += f", {counted(self.unreadable, 'file')} cannot be opened"
        without = int(self.broken.sum())
        why = f": {described(self.broken)}" if without else ""
        return (
            f"scored {counted(self.pairs, 'pair')} of {counted(self.files, 'file')}{before}; "
            f"{without:,} without a score{why}"
        )


@dataclasses.dataclass(frozen=True)
class ScoreJob:
    """Scores files of a pool and writes a table for each.

    Attributes:
      scorer: scores pairs.
      pool: the pairs.
      writer: the annotation folder.
      features: whether image features are stored beside.
      limit: the number of pairs of each file that are scored; 0: all.
      say: called with a line about each file where no progress bar is shown.
    """

    scorer: Scorer
    pool: Pool
    writer: AnnotationWriter
    features: bool = False
    limit: int = 0
    say: Callable[[str], None] = multihost.say_first

    def run(self, files: Sequence[str]) -> Totals:
        """Scores the files that have no table yet.

        Raises:
          UserError: more files than `pool.options.max_bad_fraction` of them cannot be opened, or no
            pair of the first file can be scored.
        """
        totals = Totals()
        with tqdm(unit=" pairs", desc="scoring", dynamic_ncols=True, disable=None) as bar:
            for number, (file, source) in enumerate(self.pool.opened(files), 1):
                if isinstance(source, UserError):
                    self._leave_out(file, source, len(files), totals)
                    continue
                if self._is_done(file, source):
                    totals.done += 1
                    continue
                began = time.monotonic()
                known, opened = bar.n + self._count(source), totals.files + 1
                bar.total = known + (len(files) - number) * known // opened
                bar.refresh()
                broken = self._score(file, source, totals, bar.update)
                if bar.disable:
                    rate = self._count(source) / (time.monotonic() - began)
                    without = f", without a score: {described(broken)}" if broken.any() else ""
                    pairs = counted(self._count(source), "pair")
                    self.say(f"{file}: {pairs}, {rate:,.0f} pairs/s{without}")
        return totals

    def _leave_out(self, file: str, error: UserError, files: int, totals: Totals) -> None:
        """Writes empty tables for a file that cannot be opened; the next run tries it again."""
        totals.unreadable += 1
        self.pool.check_unreadable(totals.unreadable, files, error)
        multihost.say_first(f"left out: {error}")
        width = self.scorer.encoder.config.embed_dim
        if self.features:
            with feature_tables.writing(self._feature_table(file), width, {"file": file}):
                pass
        empty = np.zeros(0, np.float32)
        self.writer.write(file, "", dict.fromkeys(self.writer.columns, empty))

    def _count(self, source: Source) -> int:
        return min(len(source), self.limit or len(source))

    def _feature_table(self, file: str) -> str:
        return feature_tables.path_of(self.writer.folder, self.writer.table(file))

    def _is_done(self, file: str, source: Source) -> bool:
        done = self.writer.is_done(file, len(source), source.fingerprint)
        return done and not (self.features and not exists(self._feature_table(file)))

    def _score(
        self, file: str, source: Source, totals: Totals, advance: Callable[[int], object]
    ) -> np.ndarray:
        """Scores a file and writes its tables; returns the pairs without a score by reason."""
        parts: list[Scores] = []
        width = self.scorer.encoder.config.embed_dim
        about = {"file": file, "fingerprint": source.fingerprint}
        count, missing = self._count(source), len(source) - self._count(source)
        with contextlib.ExitStack() as stack:
            write = None
            if self.features:
                table = self._feature_table(file)
                write = stack.enter_context(feature_tables.writing(table, width, about))
            for part in self.scorer.score(source, count, advance):
                if write:
                    write(part.features)
                parts.append(dataclasses.replace(part, features=part.features[:0]))
            if write and missing:
                write(np.full((missing, width), np.nan, np.float32))
            broken = np.sum([part.broken() for part in parts], axis=0)
            if not totals.files and count and broken.sum() == count:
                complaint = next(part.complaint for part in parts)
                raise UserError(
                    f"no pair of {file} can be scored ({described(broken)}), such as: {complaint}"
                )
        rest = np.full(missing, np.nan, np.float32)
        values = {
            name: np.concatenate([*(part.values[name] for part in parts), rest])
            for name in self.writer.columns
        }
        self.writer.write(file, source.fingerprint, values)
        totals.files, totals.pairs = totals.files + 1, totals.pairs + count
        totals.broken = totals.broken + broken
        return np.asarray(broken)


def check_shared(writer: AnnotationWriter) -> None:
    """Checks that this host sees the folder that the first one writes.

    Raises:
      UserError: it does not.
    """
    if not exists(storage.join(writer.folder, JOB)):
        raise UserError(
            f"{writer.folder} is not the same folder on every host: give one on a shared file "
            "system"
        )


def wait_for_all(writer: AnnotationWriter, hosts: int, seconds: float = 2.0) -> bool:
    """Waits for the tables of all hosts, and completes the folder on the first one.

    Args:
      writer: the annotation folder.
      hosts: the number of hosts.
      seconds: between two looks.

    Returns:
      Whether the folder is complete; always so with several hosts.
    """

    def complete() -> bool:
        while not writer.finish():
            if hosts == 1:
                return False
            time.sleep(seconds)
        return True

    return multihost.broadcast_from_first(complete)


def distribution(annotations: Annotations, column: str) -> str:
    """Returns a line about a column: from which value on its largest values are the top shares.

    Args:
      annotations: the folder.
      column: a column whose values are from -1 to 1.
    """
    edges = np.linspace(-1, 1, _BINS + 1)
    counts, total = np.zeros(_BINS, np.int64), 0.0
    for number in range(len(annotations.files)):
        values = annotations.of_file(number)[column]
        values = values[np.isfinite(values)]
        counts += np.histogram(np.clip(values, -1, 1), edges)[0]
        total += float(values.sum(dtype=np.float64))
    pairs = int(counts.sum())
    if not pairs:
        return f"{column}: no pair has a value"
    above = np.cumsum(counts[::-1])[::-1]
    tops = []
    for share in _SHARES:
        least = edges[np.flatnonzero(above >= share * pairs)[-1]]
        tops.append(f"top {share:.0%} from {least:.4f}")
    return f"{column} of {counted(pairs, 'pair')}: mean {total / pairs:.4f}; {', '.join(tops)}"
