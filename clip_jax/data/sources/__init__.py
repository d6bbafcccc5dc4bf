"""Where pairs come from: anything with a length and random access."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from clip_jax.data.example import Pair, only_pair_errors
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import captioned, folder_layouts
from clip_jax.data.sources.folders import FolderSource
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.data.sources.tars import TarSource
from clip_jax.data.sources.walk import walk
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import CAPTIONS, RECORDS, SAVED, TABLES, expand, resolve, suffix


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


@runtime_checkable
class KnowsLayout(Protocol):
    """A source that can tell other data from moved data without reading it."""

    def layout(self) -> Iterator[bytes]:
        """What is known of its files but their place and time, such as sizes and names."""
        ...


def layout(source: Source) -> Iterator[bytes]:
    """`KnowsLayout.layout` of a source, nothing where it knows none."""
    if isinstance(source, KnowsLayout):
        yield from source.layout()


def read_pair(source: Source, i: int) -> Pair:
    """The i-th pair of a source.

    Raises:
      PairError: it cannot be used, for whatever reason.
    """
    with only_pair_errors("unreadable", lambda: f"{source!r}: pair {i:,}"):
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
    classes: bool = False,
) -> Source:
    """The pairs that a config names.

    Args:
      spec: a pattern of tars (`/data/{00000..00099}.tar`, `embedded:emoji/train-*.tar`), a folder
        of pictures (`/data/pictures`), also with a common table of captions in it or given by
        itself (`/coco/annotations/captions_train2017.json`), a table (`/data/*.parquet`, csv, tsv,
        jsonl), ArrayRecord files (`/data/*.array_record`), a folder that `datasets` saved, or
        `tfds:NAME:SPLIT` for a prepared TensorFlow data set with `image` and text features. Tars,
        tables and folders of pictures may be far away: `gs://bucket/{000..999}.tar`.
      image: of a table or of records, the column of the pictures; empty: the one that looks so. Of
        tars and folders, which pictures of an example are used, by what follows the stem
        (`seg.png`); empty: the plain one.
      root: of a table, the folder that paths in it start at and do not leave; empty: its own,
        or of `annotations/` the one above.
      index: where indices of tars are kept: empty: the user's cache folder; `beside`: next to each
        tar; or a folder, which may be far away.
      max_bad_fraction: of many tars, those that may be left out because nothing can be read; of
        the rows of tables, those that are damaged.
      form: how CSV and TSV are written; None: as is found.
      wanted: of a table, the columns that are needed beside the pictures; None: all.
      classes: whether names of folders are classes, as in a test set: then any name is one.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if spec.startswith("tfds:"):
        from clip_jax.data.sources.tfds import TfdsSource

        return TfdsSource(spec.removeprefix("tfds:"))
    if not spec:
        raise UserError(
            "no data given: set config.data.train to your tars, a folder of pictures, a table or "
            "tfds:NAME:SPLIT"
        )
    path, end = resolve(spec), suffix(spec)
    far = remote.is_remote(path)

    def table() -> Source:
        from clip_jax.data.sources.tables import TableSource

        return TableSource(
            path,
            image,
            resolve(root) if root else "",
            options=form,
            wanted=wanted,
            max_bad_fraction=max_bad_fraction,
        )

    if not far and (Path(path) / SAVED).is_file():
        return table()
    if not far and Path(path).is_dir():
        return _folder(path, image, classes)
    if end in RECORDS:
        from clip_jax.data.sources.records import RecordSource

        return RecordSource(path, image)
    if end in TABLES:
        return table()
    if end in CAPTIONS:
        files = expand(spec)
        if len(files) > 1:
            raise UserError(
                f"{spec} are {len(files):,} tables of captions: give one of them, or several by "
                "config.data.mix"
            )
        return captioned.opened(files[0], resolve(root) if root else "")
    if far and end != ".tar" and remote.is_folder(path):
        return _folder(path, image, classes)
    return TarSource(spec, index, max_bad_fraction, image)


def _folder(path: str, image: str, classes: bool) -> Source:
    """The pictures of a folder: by the table of captions in it, or by texts and folders."""
    listing = walk(path)
    if classes and folder_layouts.has_classes(listing):
        return FolderSource(path, image, listing, classes)
    table = captioned.find(listing)
    if not table:
        return FolderSource(path, image, listing, classes)
    try:
        return captioned.CaptionedSource(os.path.join(path, table), listing)
    except UserError as error:
        with contextlib.suppress(UserError):
            if (source := FolderSource(path, image, listing)).has_texts:
                return source
        raise error
