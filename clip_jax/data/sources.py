"""Where pairs come from: anything with a length and random access."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clip_jax.data.folders import FolderSource
from clip_jax.data.pairs import Pair
from clip_jax.data.paths import SAVED, TABLES, resolve
from clip_jax.data.tars import TarSource
from clip_jax.errors import UserError


class Source(Protocol):
    """A sequence of pairs."""

    def __len__(self) -> int:
        """How many pairs there are."""
        ...

    def __getitem__(self, i: int) -> Pair:
        """The i-th pair."""
        ...


def open_source(spec: str, image: str = "", root: str = "") -> Source:
    """The pairs that a config names.

    Args:
      spec: a pattern of tars (`/data/{00000..00099}.tar`, `embedded:emoji/train-*.tar`), a folder
        of pictures (`/data/pictures`), a table (`/data/*.parquet`, csv, tsv, jsonl), a folder that
        `datasets` saved, or `tfds:NAME:SPLIT` for a prepared TensorFlow data set with `image` and
        text features.
      image: of a table, the column of the pictures; empty: the one that looks so.
      root: of a table, the folder that paths in it start at and do not leave; empty: its own.

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
    path = Path(resolve(spec))
    if path.suffix.lower() in TABLES or (path / SAVED).is_file():
        from clip_jax.data.tables import TableSource

        return TableSource(str(path), image, resolve(root) if root else "")
    if path.is_dir():
        return FolderSource(str(path))
    return TarSource(spec)
