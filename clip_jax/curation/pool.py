"""The pool: the files of a source, opened one at a time, and the chunks that workers read."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from clip_jax.data.sources import SOURCES, Source, SourceOptions, open_source
from clip_jax.errors import UserError, counted
from clip_jax.io.paths import expand

CHUNK = 1 << 16  # pairs that a worker reads at a time
_SPLIT = ("tars", "table")  # kinds whose patterns name files that can be opened one at a time


@dataclasses.dataclass(frozen=True)
class Pool:
    """The pairs to choose from.

    Attributes:
      data: the spec of the source, as `config.data.train` takes it.
      kind: the kind of source, see `sources.open_source`; empty: by what the data look like.
      options: see `sources.SourceOptions`.
    """

    data: str
    kind: str = ""
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)

    def files(self) -> list[str]:
        """Returns the specs of the files of the pool, in order.

        Tars and tables are opened one at a time; any other source is one file.

        Raises:
          UserError: a file is missing, or is named twice.
        """
        if not self.data:
            raise UserError("no data given: name your tars, a table or a folder of images")
        kind = self.kind or next(n for n in SOURCES.names if SOURCES.get(n).matches(self.data))
        files = expand(self.data) if kind in _SPLIT else [self.data]
        if twice := [file for file, count in Counter(files).items() if count > 1]:
            raise UserError(f"{self.data} names {twice[0]} more than once: name each file once")
        return files

    def with_images(self) -> Pool:
        """Returns the pool with images that are read, of one that was curated without."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, addresses=False))

    def open(self, file: str) -> Source:
        """Opens a file of the pool; a process keeps the last one open."""
        return _open(self, file)

    def check_unreadable(self, count: int, files: int, fault: UserError) -> None:
        """Checks that not too many files cannot be opened.

        Args:
          count: how many cannot.
          files: of how many.
          fault: why one of them cannot.

        Raises:
          UserError: more than `options.max_bad_fraction` of them cannot.
        """
        most = self.options.max_bad_fraction
        if count > most * files:
            raise UserError(
                f"{count:,} of {counted(files, 'file')} cannot be opened, more than "
                f"--max-bad-fraction={most:g}: {fault}"
            )

    def opened(self, files: Sequence[str]) -> Iterator[tuple[str, Source | UserError]]:
        """Yields files with their sources, or with why they cannot be opened.

        The next one is opened while one is used.
        """

        def source_of(file: str) -> Source | UserError:
            try:
                return self.open(file)
            except UserError as error:
                return error

        with ThreadPoolExecutor(1) as thread:
            following = [thread.submit(source_of, file) for file in files[:1]]
            for file, after in itertools.zip_longest(files, files[1:]):
                source = following.pop().result()
                if after is not None:
                    following.append(thread.submit(source_of, after))
                yield file, source


@functools.lru_cache(maxsize=2)
def _open(pool: Pool, file: str) -> Source:
    return open_source(file, pool.options, kind=pool.kind, key="--data")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of a file.

    Attributes:
      file: the number of the file in the pool.
      spec: the file.
      start: the number of the first pair in the file.
      stop: the number after the last.
      fingerprint: that of the file's source.
    """

    file: int
    spec: str
    start: int
    stop: int
    fingerprint: str

    @property
    def id(self) -> tuple[int, int]:
        """The place of the chunk in the pool: chunks are in the order of these."""
        return self.file, self.start

    def __len__(self) -> int:
        return self.stop - self.start


def chunks(pool: Pool, file: int, spec: str, size: int = CHUNK) -> Sequence[Chunk]:
    """Returns the chunks of a file of the pool."""
    source = pool.open(spec)
    starts = range(0, len(source), size)
    return [
        Chunk(file, spec, start, min(start + size, len(source)), source.fingerprint)
        for start in starts
    ]
