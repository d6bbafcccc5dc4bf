"""Columns of tables: which one holds the images, and what several files have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_jax.data.example import IMAGES, Fields
from clip_jax.data.opening import quoted
from clip_jax.errors import UserError
from clip_jax.io import remote

RAW = "row"  # the column that holds rows of JSON lines as they are written
_ROWS = 10  # that tell which column holds the images
_MAX_ROWS = 20_000  # that are read while none has an image
_MAX_NAMED = 20  # columns in a message


def named(names: Sequence[str]) -> str:
    """Formats names of columns for a message."""
    return ", ".join(map(quoted, names[:_MAX_NAMED])) + (", …" if len(names) > _MAX_NAMED else "")


def is_null(value: Any) -> bool:
    """Returns whether a cell has no image: null, empty text, or neither bytes nor path."""
    if isinstance(value, dict):
        return not (value.get("bytes") or value.get("path"))
    return value is None or value == ""


def null_pictures(column: pa.Array) -> np.ndarray:
    """Returns which values of a column are null or empty, bool [rows]; see `is_null`.

    Empty bytes count as null.
    """
    if pa.types.is_struct(column.type):
        is_null_ = np.asarray(column.is_null())
        inner = [column.type.field(i).name for i in range(column.type.num_fields)]
        parts = [column.field(name) for name in ("bytes", "path") if name in inner]
        empty = [null_pictures(part) for part in parts] or [~is_null_]
        return is_null_ | np.logical_and.reduce(empty)
    is_null_ = np.asarray(column.is_null())
    kinds = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
    if column.type in kinds:
        is_null_ |= np.asarray(pc.fill_null(pc.equal(pc.binary_length(column), 0), False))
    return is_null_


def null_bits(batch: pa.RecordBatch, image: str) -> np.ndarray:
    """Returns which rows have no image, by the null bits of a column alone, bool [rows].

    The other buffers of an untrusted file must be validated before they are read.
    """
    at = batch.schema.get_field_index(image)
    if at < 0:
        return np.ones(batch.num_rows, bool)
    column = batch.column(at)
    is_null_ = np.asarray(column.is_null())
    if pa.types.is_struct(column.type) and column.type.num_fields:
        inner = [column.field(i).is_null() for i in range(column.type.num_fields)]
        is_null_ = is_null_ | np.logical_and.reduce([np.asarray(part) for part in inner])
    return is_null_


def is_address(value: Any, root: str) -> bool:
    """Returns whether a cell is a web address outside `root`."""
    return isinstance(value, str) and remote.is_remote(value) and not value.startswith(f"{root}/")


def find_images(rows: Iterable[Fields], where: str, root: str, addresses: bool = False) -> str:
    """Returns the column whose first values are images or their paths, ignoring nulls.

    The result is empty if there are no rows.

    Args:
      rows: the rows of the table, read lazily.
      where: the table, for errors.
      root: the folder of the images, see `is_address`.
      addresses: whether a column of web addresses may be it, if no other is.

    Raises:
      UserError: no column holds images, or several do.
    """
    pictures, others, names, address = dict[str, int](), set[str](), dict[str, None](), ""
    for count, row in enumerate(rows, 1):
        names |= dict.fromkeys(row)
        for name, value in row.items():
            if is_address(value, root):
                address = address or name
            if _is_image(value, root):
                pictures[name] = pictures.get(name, 0) + 1
            elif not is_null(value):
                others.add(name)
        if count >= _MAX_ROWS or (count >= _ROWS and pictures.keys() - others):
            break
    candidates = [name for name in pictures if name not in others]
    if len(candidates) == 1 or not names:
        return candidates[0] if candidates else ""
    if not candidates and address:
        if addresses:
            return address
        raise _addresses(address, where)
    what = f"{named(candidates)} all look like images" if candidates else "no column holds images"
    raise UserError(f"{where}: {what}, of {named([*names])}: say which by config.data.image")


def check_addresses(rows: Iterable[Fields], image: str, where: str, root: str) -> None:
    """Checks that the first image that a column names is not a web address.

    Args:
      rows: the rows of the table, read lazily.
      image: the column of the images.
      where: the table, for errors.
      root: the folder of the images, see `is_address`.

    Raises:
      UserError: it is a web address outside `root`.
    """
    values = (row.get(image) for row in itertools.islice(rows, _MAX_ROWS))
    value = next((value for value in values if not is_null(value)), None)
    if is_address(value, root):
        raise _addresses(image, where)


def _addresses(name: str, where: str) -> UserError:
    return UserError(
        f"{where}: {quoted(name)!r} holds web addresses, which are not downloaded in training: "
        "download the images first, for example with img2dataset; `curate --no-images` chooses "
        "among them before that"
    )


def _is_image(value: Any, root: str) -> bool:
    if isinstance(value, dict):
        return value.keys() <= {"bytes", "path"} and not is_null(value)
    if isinstance(value, bytes):
        return True
    is_name = isinstance(value, str) and value.rstrip().lower().endswith(IMAGES)
    return is_name and not is_address(value, root)


def python_rows(batch: pa.RecordBatch) -> list[Fields]:
    """Converts the rows of a batch to Python values.

    Times that Python's types cannot represent, such as nanoseconds, become integers in their unit.

    Raises:
      pa.ArrowException, ValueError, ArithmeticError: a value cannot be converted.
    """
    values = []
    for column in batch.columns:
        try:
            values.append(column.to_pylist())
        except (ValueError, ArithmeticError):
            if (kind := _with_integer_times(column.type)) == column.type:
                raise
            values.append(column.cast(kind).to_pylist())
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _with_integer_times(kind: pa.DataType) -> pa.DataType:
    """Returns a type with integers in place of times, also inside lists and structs."""
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([field.with_type(_with_integer_times(field.type)) for field in fields])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_integer_times(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_integer_times(kind.value_type)))
    return kind


def unified(schemas: Sequence[tuple[str, pa.Schema]], needed: frozenset[str] | None) -> pa.Schema:
    """Unifies the columns of several files into those of one table.

    Their order may differ. A column that some files lack is null there. Integers take the widest
    type, text and bytes the larger one.

    Args:
      schemas: the name of each file, for errors, and its schema.
      needed: the columns that are needed; None for all.

    Raises:
      UserError: a column has types that have nothing in common, or two columns share a name.
    """
    unified_schema, first = pa.schema([]), ""
    for path, schema in schemas:
        fields = [f for f in schema if needed is None or f.name in needed]
        if len({f.name for f in fields}) < len(fields):
            names = [f.name for f in fields]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path} has two columns called {quoted(twice)!r}: rename one")
        plain = pa.schema([pa.field(f.name, _plain(f.type)) for f in fields])
        try:
            unified_schema = pa.unify_schemas([unified_schema, plain], promote_options="permissive")
        except pa.ArrowException as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{path} has columns of other types than {first} ({why})") from None
        first = first or path
    return unified_schema


def _plain(kind: pa.DataType) -> pa.DataType:
    """Returns a type without dictionaries, whose text and bytes can be of any length."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns a batch with the columns of `schema`: cast, and null where the batch lacks them.

    Raises:
      pa.ArrowException: a value does not fit.
    """
    arrays = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            arrays.append(batch.column(index).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
