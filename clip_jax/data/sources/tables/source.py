"""The pairs of CSV, TSV, JSON lines and Parquet files, through a cached Arrow stream."""

from __future__ import annotations

import os

import numpy as np

from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.data.sources.tables import cached
from clip_jax.data.sources.tables.arrow_source import ArrowSource, RowLocation, real_root
from clip_jax.errors import UserError, is_disk_full
from clip_jax.io import remote
from clip_jax.io.paths import expand


class TableSource(ArrowSource):
    """The pairs of one or more tables; `source[i]` reads the i-th row that has an image.

    Args:
      pattern: files (braces and globs) that end in one of `endings.TABLES`.
      image: the column of the images; empty for the one that looks like it.
      root: the folder that paths start at and do not leave; empty for the first file's own.
      options: how text tables are written.
      needed: the columns that are needed beside the images; None for all. If `caption` is one of
        them and no column has the name, another may be it, see `caption_tables.caption_column`.
      max_bad_fraction: the share of rows that may be damaged; they are left out.
      addresses: whether images may be web addresses, see `SourceOptions.addresses`.

    Raises:
      UserError: a file is missing or cannot be read, or the column is missing.
    """

    def __init__(
        self,
        pattern: str,
        image: str = "",
        root: str = "",
        *,
        options: TableOptions | None = None,
        needed: frozenset[str] | None = None,
        max_bad_fraction: float = 0.01,
        addresses: bool = False,
    ) -> None:
        self.pattern, options = pattern, options or TableOptions()
        self.paths = expand(pattern)
        self.root = real_root(root or os.path.dirname(self.paths[0]))
        states = remote.states(self.paths)
        self._sizes = [state.size for state in states]
        try:
            table = cached.table(
                self.paths, image, self.root, options, needed, max_bad_fraction, addresses
            )
        except OSError as error:
            room = ": make room, or set XDG_CACHE_HOME" if is_disk_full(error) else ""
            what = error.filename or pattern
            raise UserError(f"{what} cannot be read or cached ({error.strerror}){room}") from None
        self._has_addresses = addresses
        self.image, self._is_json, self._streams = table.image, table.is_json, [table.stream]
        self._starts, self._left = table.starts, table.left
        self._rows = int(self._starts[-1])
        self._choose_caption(table.names, needed)
        self._map_streams()
        notes = table.notes + self._caption_note()
        self._report = OpeningReport(
            self._rows, self._rows - len(self._left), "rows", table.left_out, notes
        )
        self._check_rows()
        # the same files with another root or image column are other pairs
        self.fingerprint = f"{remote.identity(self.paths, states)} {self.image} {self.root}"
        if options != TableOptions():
            self.fingerprint += f" {options.separator!r} {options.quoting} {options.encoding}"

    def files(self) -> list[tuple[str, int]]:
        """Returns the path of each table and the number of its pairs."""
        left = np.searchsorted(self._left, self._starts)
        counts = np.diff(self._starts - left).tolist()
        return list(zip(self.paths, counts, strict=True))

    def _locate(self, i: int) -> RowLocation:
        number = self._row_number(i)
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        name = f"{remote.redact(self.paths[file])}: row {number - int(self._starts[file]):,}"
        return RowLocation(i, name)  # rows that are left out are not in the stream
