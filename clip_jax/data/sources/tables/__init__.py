"""Pairs in tables: CSV, TSV, JSON lines and Parquet, and what Hugging Face's `datasets` saved.

A column holds the images, as paths or as bytes; captions are made of the others.
"""

from __future__ import annotations

from pathlib import Path

from clip_jax.data.sources.endings import SAVED, TABLES
from clip_jax.data.sources.protocol import Source, SourceOptions
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import resolve, suffix


def _require_pyarrow(spec: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{spec} is a table, and pyarrow, which reads tables, is not installed ({error}): "
            "pip install 'clip_jax[tables]'"
        ) from None


class Tables:
    """The `table` kind of source. It imports pyarrow only to open one."""

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns whether `spec` ends like the name of a table."""
        return suffix(spec) in TABLES

    @staticmethod
    def open(spec: str, options: SourceOptions) -> Source:
        """Opens one or more tables of one kind; see `TableSource`."""
        _require_pyarrow(spec)
        from clip_jax.data.sources.tables.source import TableSource

        return TableSource(
            resolve(spec),
            options.image,
            resolve(options.root) if options.root else "",
            options=options.table,
            needed=options.columns,
            max_bad_fraction=options.max_bad_fraction,
            addresses=options.addresses,
        )


class SavedDatasets:
    """The `saved` kind of source: a folder that `Dataset.save_to_disk` wrote."""

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns whether `spec` is such a folder on this machine."""
        path = resolve(spec)
        return not remote.is_remote(path) and (Path(path) / SAVED).is_file()

    @staticmethod
    def open(spec: str, options: SourceOptions) -> Source:
        """Opens the folder and maps its rows into memory; see `SavedSource`."""
        _require_pyarrow(spec)
        from clip_jax.data.sources.tables.saved import SavedSource

        root = resolve(options.root) if options.root else ""
        return SavedSource(resolve(spec), options.image, root, needed=options.columns)
