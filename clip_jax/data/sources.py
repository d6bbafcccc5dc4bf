"""Where pairs come from: anything with a length and random access."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clip_jax.data import storage
from clip_jax.data.folders import FolderSource
from clip_jax.data.opening import OpeningReport
from clip_jax.data.pairs import Pair, only_pair_errors
from clip_jax.data.paths import RECORDS, SAVED, TABLES, resolve, suffix
from clip_jax.data.table_options import TableOptions
from clip_jax.data.tars import TarSource
from clip_jax.errors import UserError


class Source(Protocol):
    """A sequence of pairs."""

    @property
    def fingerprint(self) -> str:
        """What changes when one of them does."""
        ...

    def opening_report(self) -> OpeningReport:
        """What opening it saw, used and left out, and why."""
        ...

    def __len__(self) -> int:
        """How many pairs there are."""
        ...

    def __getitem__(self, i: int) -> Pair:
        """The i-th pair."""
        ...


def read_pair(source: Source, i: int) -> Pair:
    """The i-th pair of a source.

    Raises:
      PairError: it cannot be used, for whatever reason.
    """
    with only_pair_errors("unreadable", f"{source!r}: pair {i:,}"):
        return source[i]


def open_source(
    spec: str,
    image: str = "",
    root: str = "",
    index: str = "",
    max_bad_fraction: float = 0.01,
    *,
    form: TableOptions | None = None,
    wanted: frozenset[str] | None = None,
) -> Source:
    """The pairs that a config names.

    Args:
      spec: a pattern of tars (`/data/{00000..00099}.tar`, `embedded:emoji/train-*.tar`), a folder
        of pictures (`/data/pictures`), a table (`/data/*.parquet`, csv, tsv, jsonl), ArrayRecord
        files (`/data/*.array_record`), a folder that `datasets` saved, or `tfds:NAME:SPLIT` for a
        prepared TensorFlow data set with `image` and text features. Tars, tables and folders of
        pictures may be far away: `gs://bucket/{000..999}.tar`.
      image: of a table or of records, the column of the pictures; empty: the one that looks so.
      root: of a table, the folder that paths in it start at and do not leave; empty: its own.
      index: where indices of tars are kept: empty: the user's cache folder; `beside`: next to each
        tar; or a folder, which may be far away.
      max_bad_fraction: of many tars, those that may be left out because nothing can be read; of
        the rows of tables, those that are damaged.
      form: how CSV and TSV are written; None: as is found.
      wanted: of a table, the columns that are needed beside the pictures; None: all.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if spec.startswith("tfds:"):
        from clip_jax.data.tfds import TfdsSource

        return TfdsSource(spec.removeprefix("tfds:"))
    if not spec:
        raise UserError(
            "no data given: set config.data.train to your tars, a folder of pictures, a table or "
            "tfds:NAME:SPLIT"
        )
    path, end = resolve(spec), suffix(spec)
    far = storage.is_remote(path)
    if end in RECORDS:
        from clip_jax.data.records import RecordSource

        return RecordSource(path, image)
    if end in TABLES or (not far and (Path(path) / SAVED).is_file()):
        from clip_jax.data.tables import TableSource

        return TableSource(
            path,
            image,
            resolve(root) if root else "",
            options=form,
            wanted=wanted,
            max_bad_fraction=max_bad_fraction,
        )
    if storage.is_folder(path) if far and end != ".tar" else Path(path).is_dir():
        return FolderSource(path, image)
    return TarSource(spec, index, max_bad_fraction, image)
