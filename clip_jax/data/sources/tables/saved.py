"""The pairs of a folder that Hugging Face's `datasets` saved, read where they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clip_jax.data.example import Fields, PairError
from clip_jax.data.opening import Tally, quoted
from clip_jax.data.sources.endings import SAVED
from clip_jax.data.sources.tables import columns
from clip_jax.data.sources.tables.arrow_source import (
    ArrowSource,
    RowLocation,
    real_root,
    row_values,
)
from clip_jax.errors import UserError
from clip_jax.io import files, remote


def _stream_paths(folder: str) -> list[Path]:
    """Returns the Arrow streams that `Dataset.save_to_disk` wrote to a folder."""
    state = files.read_json(Path(folder) / SAVED)
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder}/{SAVED} names no files of a data set") from None
    if wrong := [name for name in names if Path(name).name != name or name == ".."]:
        raise UserError(f"{folder}/{SAVED} names {wrong[0]!r}, which is not in the folder")
    return [Path(folder) / name for name in names]


class SavedSource(ArrowSource):
    """The pairs of a saved data set; `source[i]` reads the i-th row that has an image.

    Args:
      folder: the folder that `Dataset.save_to_disk` wrote.
      image: the column of the images; empty for the one that looks like it.
      root: the folder that paths start at and do not leave; empty for `folder`.
      needed: the columns that captions and filters name. If `caption` is one of them and no column
        has the name, another may be it, see `caption_tables.caption_column`.

    Raises:
      UserError: a file is missing or cannot be read, or the column is missing.
    """

    def __init__(
        self,
        folder: str,
        image: str = "",
        root: str = "",
        *,
        needed: frozenset[str] | None = None,
    ) -> None:
        self.pattern, self._streams = folder, _stream_paths(folder)
        self.root = real_root(root or folder)
        paths = [str(path) for path in self._streams]
        states = remote.states(paths)
        self._sizes = [state.size for state in states]
        self._map_streams()
        self._rows, self._left = int(self._ends[-1]), np.zeros(0, np.int64)
        where = remote.redact(folder)
        schemas = [(where, batch.schema.remove_metadata()) for batch in self._batches]
        names = columns.unified(schemas, None).names
        self.image = image
        if names:
            self._find_image(names, where)
            self._choose_caption(names, needed)
        tally = Tally()
        if len(self._left):
            tally.add("null_picture", f"{where}: row {self._left[0]:,}", len(self._left))
        self._report = tally.report(len(self), "rows", self._caption_note())
        self._check_rows()
        # the same files with another root or image column are other pairs
        self.fingerprint = f"{remote.identity(paths, states)} {self.image} {self.root}"

    def _find_image(self, names: list[str], where: str) -> None:
        """Finds the column of the images, and the rows without one by their null bits."""
        if not self.image:
            self.image = columns.find_images(self._readable_rows(), where, self.root)
        elif self.image not in names:
            raise UserError(
                f"{where} has no column {quoted(self.image)!r} (config.data.image): there are "
                f"{columns.named(names)}"
            )
        is_null = [columns.null_bits(batch, self.image) for batch in self._batches]
        self._left = np.flatnonzero(np.concatenate(is_null))

    def _readable_rows(self) -> Iterator[Fields]:
        for batch in self._batches:
            for i in range(batch.num_rows):
                with contextlib.suppress(PairError):
                    yield row_values(batch, i, self.pattern)

    def _locate(self, i: int) -> RowLocation:
        number = self._row_number(i)
        return RowLocation(number, f"{remote.redact(self.pattern)}: row {number:,}")
