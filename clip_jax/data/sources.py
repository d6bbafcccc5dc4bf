"""Where pairs come from: anything with a length and random access."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from clip_jax.data.folders import FolderSource
from clip_jax.data.paths import resolve
from clip_jax.data.tars import Pair, TarSource
from clip_jax.errors import UserError


class Source(Protocol):
    """A sequence of pairs."""

    def __len__(self) -> int:
        """How many pairs there are."""
        ...

    def __getitem__(self, i: int) -> Pair:
        """The i-th pair."""
        ...


def open_source(spec: str) -> Source:
    """The pairs that a config names.

    `spec` is a pattern of tars (`/data/{00000..00099}.tar`, `embedded:emoji/train-*.tar`), a folder
    of pictures (`/data/pictures`), or `tfds:NAME:SPLIT` for a prepared TensorFlow data set with
    `image` and text features.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if spec.startswith("tfds:"):
        from clip_jax.data.tfds import TfdsSource

        return TfdsSource(spec.removeprefix("tfds:"))
    if not spec:
        raise UserError(
            "no data given: set config.data.train to your tars, a folder of pictures or "
            "tfds:NAME:SPLIT"
        )
    if Path(resolve(spec)).is_dir():
        return FolderSource(resolve(spec))
    return TarSource(spec)
