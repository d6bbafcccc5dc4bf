"""Parquet and JSON files of curation, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject, atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

KEY = b"clip_jax"  # in the metadata of a Parquet file: what it says of itself
# With a buffer, pages are read one by one. Damaged ones are found by their checksums.
READING = {"buffer_size": 1 << 20, "page_checksum_verification": True}


def require_pyarrow(what: str) -> None:
    """Checks that pyarrow is installed.

    Args:
      what: what needs it, the start of the error.

    Raises:
      UserError: it is not.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{what} needs pyarrow, which is not installed ({error}): "
            "pip install 'clip_jax[curate]'"
        ) from None


def write_table(path: Path, table: pa.Table, about: Mapping[str, str]) -> None:
    """Writes a Parquet file, whole or not at all.

    Args:
      path: the file.
      table: its columns.
      about: what the file says of itself, in its metadata.
    """
    import pyarrow.parquet

    table = table.replace_schema_metadata({KEY: json.dumps(dict(about))})
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(table, file, compression="zstd", write_page_checksum=True)


def write_json(path: Path, values: JsonObject) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=1).encode())
