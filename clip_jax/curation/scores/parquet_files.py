"""Parquet files of curation, on this machine or in a bucket."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from clip_jax.errors import UserError
from clip_jax.io import remote

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

KEY = b"clip_jax"  # in the metadata of a Parquet file: what it says of itself


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


@contextlib.contextmanager
def opened(path: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Opens a Parquet file, local or remote.

    Raises:
      UserError: a remote file cannot be read.
      OSError, pyarrow.ArrowException, ValueError: it is missing or no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet

    with remote.open_file(path) if remote.is_remote(path) else pa.OSFile(path) as file:
        # with a buffer, pages are read one by one; damaged ones are found by their checksums
        yield pa.parquet.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)


def write_table(path: str, table: pa.Table, about: Mapping[str, str]) -> None:
    """Writes a Parquet file, whole or not at all.

    Args:
      path: the file, local or remote.
      table: its columns.
      about: what the file says of itself, in its metadata.
    """
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = table.replace_schema_metadata({KEY: json.dumps(dict(about))})
    pyarrow.parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    remote.write(path, buffer.getvalue())


def exists(path: str) -> bool:
    """Returns whether there is a file, local or remote."""
    if not remote.is_remote(path):
        return os.path.isfile(path)
    try:
        remote.state(path)
    except remote.MissingError:
        return False
    return True
