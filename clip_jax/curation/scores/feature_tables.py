"""Tables of image features beside the tables of an annotation folder: `features/00000.parquet`.

The column `image_features` is a list of fixed length of float16, unit-norm, one row per pair in
order. The features of an image that cannot be read are NaN.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from jaxtyping import Float, Float16

from clip_jax.curation import storage
from clip_jax.curation.scores.parquet_files import KEY, opened, require_pyarrow
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

FOLDER, COLUMN = "features", "image_features"
_MAX_WIDTH = 1 << 16
_ROWS = 1 << 12  # of a batch that is read
_AGAIN = "score again with --features"

Rows = Float16[np.ndarray, "rows width"]


def path_of(folder: str, table: str) -> str:
    """Returns the path of the features beside a table of an annotation folder."""
    return storage.join(storage.join(folder, FOLDER), table)


@contextlib.contextmanager
def writing(
    path: str, width: int, about: Mapping[str, str]
) -> Iterator[Callable[[Float[np.ndarray, "rows width"]], None]]:
    """Opens a table that is written in parts, whole or not at all.

    Args:
      path: the file.
      width: the number of features of an image.
      about: what the file says of itself, in its metadata.

    Yields:
      A function that writes the next rows.
    """
    require_pyarrow("a table of features")
    import pyarrow as pa
    import pyarrow.parquet

    field = pa.field(COLUMN, pa.list_(pa.float16(), width))
    schema = pa.schema([field], {KEY: json.dumps(dict(about))})
    with (
        _whole_file(path) as file,
        pyarrow.parquet.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
            column_encoding={f"{COLUMN}.list.element": "BYTE_STREAM_SPLIT"},
        ) as table,
    ):

        def write(rows: Float[np.ndarray, "rows width"]) -> None:
            values = pa.array(rows.astype(np.float16).ravel())
            lists = pa.FixedSizeListArray.from_arrays(values, width)
            table.write_batch(pa.record_batch([lists], schema=schema))

        yield write


@contextlib.contextmanager
def _whole_file(path: str) -> Iterator[BinaryIO]:
    """Opens a file that is there when the block ends; a remote one is in memory until then."""
    if not remote.is_remote(path):
        with atomic_write(Path(path)) as file:
            yield file
        return
    buffer = io.BytesIO()
    yield buffer
    remote.write(path, buffer.getvalue())


def width_of(path: str) -> int:
    """Returns the number of features of an image in a table.

    Raises:
      UserError: the table is damaged, or of another form.
    """
    with _reading(path) as file:
        return _checked_width(path, file, 0)


def read(path: str, pairs: int, width: int) -> Iterator[Rows]:
    """Yields the rows of a table in batches.

    Args:
      path: the file.
      pairs: the number of rows that it must have.
      width: the number of features of an image that it must have.

    Raises:
      UserError: the table is damaged, or of another form.
    """
    done = 0
    with _reading(path) as file:
        _checked_width(path, file, width)
        for batch in file.iter_batches(_ROWS, columns=[COLUMN]):
            done += len(batch)
            if done > pairs or batch.column(0).null_count:
                break
            yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    if done != pairs:
        raise UserError(f"{path} has not one row for each of {pairs:,} pairs: {_AGAIN}")


@contextlib.contextmanager
def _reading(path: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Opens a table; what is wrong with it is one line."""
    require_pyarrow(path)
    import pyarrow as pa

    try:
        with opened(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}): {_AGAIN}") from None


def _checked_width(path: str, file: pyarrow.parquet.ParquetFile, width: int) -> int:
    found = _width(file.schema_arrow)
    if not found or (width and found != width):
        raise UserError(
            f"{path}: column {COLUMN!r} must be a list of {width or 'a fixed number of'} "
            f"float16: {_AGAIN}"
        )
    return found


def _width(schema: pa.Schema) -> int:
    """Returns the number of features of an image; 0 where the schema is another."""
    import pyarrow as pa

    number = schema.get_field_index(COLUMN)
    if number < 0:
        return 0
    kind = schema.field(number).type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float16():
        return 0
    size = int(kind.list_size)
    return size if size <= _MAX_WIDTH else 0
