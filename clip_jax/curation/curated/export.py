"""Copies the pairs of a selection into new shards, in their order.

    FOLDER/00000.tar          the first pairs; or 00000.parquet
    FOLDER/shards/00000.json  how many pairs and bytes it has, and what could not be read
    FOLDER/export.json        the settings, and the sums when all shards are there

A shard is written whole or not at all, and one that is there is not written again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clip_jax.curation.curated import shards
from clip_jax.curation.curated.shards import Row
from clip_jax.curation.pool import Pool
from clip_jax.curation.scores.parquet_files import require_pyarrow
from clip_jax.data.example import PairError
from clip_jax.data.selection import Selection
from clip_jax.data.sources import Members, Source
from clip_jax.data.workers import mapping
from clip_jax.errors import UserError, counted
from clip_jax.evaluation.report import formats
from clip_jax.io import files, remote
from clip_jax.training import workdir_lock

FORMATS = ("tars", "parquet")
PAIRS = 10_000  # of a shard
MANIFEST = "export.json"
_TEMPORARY = (f".{MANIFEST}.*.tmp", ".[0-9]*.tmp", "shards/.[0-9]*.tmp")
_ENDS = {"tars": "tar", "parquet": "parquet"}
_SAMPLE = 256  # pairs that tell the size of all, and the columns of a table
_MARGIN = 1.05  # of the estimated size
_EVERY = 2.0  # seconds between two lines of progress

T = TypeVar("T", Row, Members)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to export, and how.

    Attributes:
      format: one of `FORMATS`.
      images: whether images are written; a table can do without.
      pairs: the pairs of a shard; 0: as many as `mib` holds.
      mib: the size of a shard in MiB, about; 0: decided by `pairs`.
      limit: the most pairs, the first of the selection; 0: all.
    """

    format: str
    images: bool = True
    pairs: int = PAIRS
    mib: int = 0
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that is written.

    Attributes:
      pairs: the number of its pairs.
      size: in bytes.
      left_out: the number of pairs that could not be read.
      fault: what is wrong with the first of them; empty if there is none.
    """

    pairs: int
    size: int
    left_out: int
    fault: str


@dataclasses.dataclass(frozen=True)
class Exporter:
    """Writes shards by their numbers; worker processes receive it by pickle.

    Attributes:
      pool: the pool.
      selection: which pairs are exported.
      folder: where shards are written.
      settings: how.
      total: the number of pairs of all shards.
      pairs: the number of pairs of a shard.
      schema: the columns of a table, serialized; empty for tars.
    """

    pool: Pool
    selection: Selection
    folder: Path
    settings: Settings
    total: int
    pairs: int = PAIRS
    schema: bytes = b""

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.total // self.pairs)

    @functools.cached_property
    def _before(self) -> np.ndarray:
        """The number of selected pairs before each file, int64 [files + 1]."""
        return np.cumsum([0, *(entry.kept for entry in self.selection.files)])

    def pairs_of(self, number: int) -> int:
        """Returns the number of pairs of a shard."""
        return min(self.pairs, self.total - number * self.pairs)

    def path(self, number: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / f"{self._name(number)}.{_ENDS[self.settings.format]}"

    def _name(self, number: int) -> str:
        return f"{number:0{max(5, len(str(self.count - 1)))}}"

    def _facts_path(self, number: int) -> Path:
        return self.folder / "shards" / f"{self._name(number)}.json"

    def written(self, number: int) -> Shard | None:
        """Returns a shard that is there already, or None."""
        try:
            shard = Shard(**files.read_json(self._facts_path(number)))
            return shard if self.path(number).stat().st_size == shard.size else None
        except (OSError, UserError, TypeError):
            return None

    def __call__(self, number: int) -> Shard:
        """Writes a shard."""
        faults: list[str] = []
        start = number * self.pairs
        numbers = range(start, start + self.pairs_of(number))
        with files.atomic_write(self.path(number)) as file:
            if self.settings.format == "tars":
                shards.write_tar(file, self._readable(self.members(numbers), faults))
            else:
                import pyarrow as pa

                schema = pa.ipc.read_schema(pa.py_buffer(self.schema))
                rows = self._readable(self.rows(numbers), faults)
                shards.write_parquet(file, schema, rows, self.settings.images)
        size = self.path(number).stat().st_size
        shard = Shard(len(numbers) - len(faults), size, len(faults), faults[0] if faults else "")
        remote.write(str(self._facts_path(number)), json.dumps(vars(shard)).encode())
        return shard

    def _readable(
        self, pairs: Iterator[tuple[int, T | PairError]], faults: list[str]
    ) -> Iterator[tuple[int, T]]:
        """Yields the pairs that can be read; adds what is wrong with the others to `faults`."""
        for number, pair in pairs:
            if isinstance(pair, PairError):
                faults.append(str(pair))
            else:
                yield number, pair

    def members(self, numbers: Sequence[int]) -> Iterator[tuple[int, Members | PairError]]:
        """Yields the files of pairs by their numbers in the selection, which rise."""
        for number, source, i in self._places(numbers):
            try:
                yield number, shards.read_members(source, i)
            except PairError as error:
                yield number, error

    def rows(self, numbers: Sequence[int]) -> Iterator[tuple[int, Row | PairError]]:
        """Yields pairs as rows by their numbers in the selection, which rise."""
        for number, source, i in self._places(numbers):
            try:
                yield number, shards.read_row(source, i, self.settings.images)
            except PairError as error:
                yield number, error

    def _places(self, numbers: Sequence[int]) -> Iterator[tuple[int, Source, int]]:
        """Yields the source of each pair, and its number there."""
        opened, source, chosen = -1, None, np.zeros(0, np.int64)
        for number in numbers:
            file = int(np.searchsorted(self._before, number, side="right")) - 1
            if file != opened:
                opened, entry = file, self.selection.files[file]
                bits = np.unpackbits(self.selection.bits(entry), count=entry.pairs)
                chosen, source = np.flatnonzero(bits), self.pool.open(entry.file)
                if len(source) != entry.pairs or len(chosen) != entry.kept:
                    raise UserError(
                        f"{entry.file} has {counted(len(source), 'pair')}, and {entry.pairs:,} "
                        "when it was curated: curate the data again"
                    )
            assert source is not None
            yield number, source, int(chosen[number - self._before[file]])


def plan(pool: Pool, selection: Selection, folder: Path, settings: Settings) -> Exporter:
    """Decides on shards: a sample of the pairs tells how large they are.

    The folder must be locked, see `storage.alone`.

    Raises:
      UserError: none of the sampled pairs can be read, images are wanted that the pool has not, or
        a file has another size than when it was curated.
    """
    if settings.format == "parquet":
        require_pyarrow("--format parquet")
    total = sum(entry.kept for entry in selection.files)
    total = min(total, settings.limit or total)
    if not total:
        raise UserError(f"{selection.folder} selects no pair")
    own = [(entry.file, entry.pairs) for entry in selection.files if entry.size >= 0]
    for note in selection.match(own)[1]:
        print(note, file=sys.stderr)
    if settings.images:
        pool = _with_images(pool, selection)
    exporter = Exporter(pool, selection, folder, settings, total)
    numbers = np.unique(np.linspace(0, total - 1, _SAMPLE).astype(np.int64)).tolist()
    sizes, rows, fault = [], [], ""
    pairs: Iterator[tuple[int, Any]]
    pairs = exporter.members(numbers) if settings.format == "tars" else exporter.rows(numbers)
    for _, pair in pairs:
        if isinstance(pair, PairError):
            fault = fault or str(pair)
        elif isinstance(pair, Row):
            rows.append(Row(b"", pair.fields))
            sizes.append(len(pair.image) + len(shards.json_of(pair.fields)))
        else:
            sizes.append(shards.size_in_tar(pair))
    if not sizes:
        raise UserError(f"none of {counted(len(numbers), 'pair')} can be read: {fault}")
    mean = sum(sizes) / len(sizes)
    schema = b""
    if settings.format == "parquet":
        schema = shards.schema_of(rows, settings.images).serialize().to_pybytes()
    per_shard = settings.pairs or max(1, int((settings.mib << 20) / mean))
    planned = dataclasses.replace(exporter, pairs=per_shard, schema=schema)
    _prepare(planned)
    _check_room(planned, mean)
    return planned


def _with_images(pool: Pool, selection: Selection) -> Pool:
    """Returns the pool with images that are read.

    Raises:
      UserError: they are web addresses.
    """
    if not pool.options.addresses:
        return pool
    try:
        pool.with_images().open(next(entry.file for entry in selection.files if entry.kept))
    except UserError as error:
        raise UserError(
            f"{error}; --format parquet --no-images writes the rows that are selected"
        ) from None
    return pool.with_images()


def _prepare(exporter: Exporter) -> None:
    """Checks that a folder is new or has the same export, and writes what it is to hold.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    folder, path = exporter.folder, exporter.folder / MANIFEST
    for pattern in _TEMPORARY:  # of a run that was killed
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)
    wanted = _manifest(exporter)
    if path.exists():
        present = files.read_json(path)
        if any(present.get(key) != value for key, value in wanted.items()):
            raise UserError(
                f"{folder} holds another export, of other settings or of another selection: give "
                "the same flags, or another folder"
            )
        return
    try:
        if any(path.name != workdir_lock.NAME for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty: give a new folder")
        remote.write(str(path), json.dumps(wanted, indent=1).encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None


def _manifest(exporter: Exporter) -> files.JsonObject:
    selection = exporter.selection
    content = [[entry.file, entry.pairs, entry.digest] for entry in selection.files]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    return {
        "version": 1,
        "data": selection.data,
        "selection": digest,
        **dataclasses.asdict(exporter.settings),
        "pairs_per_shard": exporter.pairs,
        "columns": hashlib.sha256(exporter.schema).hexdigest()[:32] if exporter.schema else "",
    }


def _check_room(exporter: Exporter, mean: float) -> None:
    """Raises UserError if the disk has no room for what is left to write."""
    missing = sum(
        exporter.pairs_of(n) for n in range(exporter.count) if exporter.written(n) is None
    )
    need = int(missing * mean * _MARGIN)
    free = shutil.disk_usage(exporter.folder).free
    if need > free:
        raise UserError(
            f"{exporter.folder} needs about {need / 2**30:,.2f} GiB for {missing:,} pairs, and the "
            f"disk has {free / 2**30:,.2f} left: make room, or give --limit"
        )


def run(exporter: Exporter, workers: int = 1) -> Shard:
    """Writes all shards that are not there yet; returns their sum.

    Args:
      exporter: what `plan` returned.
      workers: the number of processes; 1: none but this one.

    Raises:
      UserError: a file cannot be opened, or has changed since it was curated.
    """
    present = {n: exporter.written(n) for n in range(exporter.count)}
    missing = [n for n, shard in present.items() if shard is None]
    processes = min(workers, len(missing)) if workers > 1 else 0
    report = _progress(exporter, sum(map(exporter.pairs_of, missing)))
    with contextlib.ExitStack() as stack:
        own: Iterator[Shard] = map(exporter, missing)
        if processes:
            own = stack.enter_context(mapping(exporter, 1, processes, "--workers"))(missing)
        for n, shard in zip(missing, own, strict=True):
            present[n] = shard
            report(exporter.pairs_of(n))
    done = [shard for shard in present.values() if shard is not None]
    total = Shard(
        sum(shard.pairs for shard in done),
        sum(shard.size for shard in done),
        sum(shard.left_out for shard in done),
        next((shard.fault for shard in done if shard.fault), ""),
    )
    result = {**_manifest(exporter), "shards": exporter.count, "done": vars(total)}
    remote.write(str(exporter.folder / MANIFEST), json.dumps(result, indent=1).encode())
    return total


def _progress(exporter: Exporter, missing: int) -> Callable[[int], None]:
    """Returns a function that is told of written pairs, and prints rate and time left."""
    began, last, done = time.perf_counter(), 0.0, 0

    def report(pairs: int) -> None:
        nonlocal last, done
        done += pairs
        now = time.perf_counter() - began
        if now - last >= _EVERY and done < missing:
            last, rate = now, done / now
            left = formats.duration((missing - done) / rate)
            whole = exporter.total - missing + done
            line = f"{whole:,} of {exporter.total:,} pairs, {rate:,.0f} a second, {left} left"
            print(line, file=sys.stderr, flush=True)

    return report
