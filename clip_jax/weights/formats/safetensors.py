"""Reads the safetensors format: a JSON header, then the tensors."""

from __future__ import annotations

import functools
import json
import os
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from clip_jax.io.files import JsonObject
from clip_jax.weights.formats.raw import (
    BadFileError,
    Entry,
    check_name,
    check_shape,
    is_count,
    read_into,
    size_of,
)

MAX_HEADER = 4 << 20  # bytes of JSON; a thousand tensors take 0.1 MiB
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


def read_entries(file: BinaryIO) -> dict[str, Entry]:
    """Returns the tensors of an open file by name.

    Raises:
      BadFileError: the file is broken.
    """
    length, header = _header(file)
    return _entries(file, header, 8 + length, size_of(file) - 8 - length)


def read_metadata(file: BinaryIO) -> dict[str, str]:
    """Returns the metadata of an open file.

    Raises:
      BadFileError: the file is broken.
    """
    return _metadata(_header(file)[1])


def _header(file: BinaryIO) -> tuple[int, JsonObject]:
    """Returns the length of the header in bytes, and what it says."""
    number, size = file.fileno(), size_of(file)
    length = int.from_bytes(os.pread(number, 8, 0), "little")
    if length > min(MAX_HEADER, size - 8):
        raise BadFileError("it is cut short or no safetensors file")
    raw = os.pread(number, length, 8)
    if not raw.startswith(b"{"):
        raise BadFileError("it is no safetensors file")
    return length, parse_json(raw)


def _metadata(header: JsonObject) -> dict[str, str]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFileError("its metadata is no text by name")
    return metadata


def parse_json(raw: bytes) -> JsonObject:
    """Parses a JSON object without repeated keys.

    Raises:
      BadFileError: it is broken, or no object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> JsonObject:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a name stands in it twice")
        return values

    try:
        values = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"its json is wrong: {error}") from None
    if not isinstance(values, dict):
        raise BadFileError("its json is no object")
    return values


def _entries(file: BinaryIO, header: JsonObject, start: int, available: int) -> dict[str, Entry]:
    _metadata(header)
    header = {name: about for name, about in header.items() if name != "__metadata__"}
    entries, spans = {}, []
    for name, about in header.items():
        check_name(name)
        if not isinstance(about, dict):
            raise BadFileError(f"{name} is not described")
        code, offsets = about.get("dtype"), about.get("data_offsets")
        dtype = DTYPES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise BadFileError(f"{name} is of dtype {str(code)[:20]!a}, which is not known")
        shape = check_shape(name, about.get("shape"))
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
            raise BadFileError(f"{name} has no place in it")
        begin, end = offsets
        entries[name] = Entry(shape, dtype, functools.partial(read_into, file, start + begin))
        if end - begin != entries[name].nbytes:
            raise BadFileError(f"{name} has not the size of its shape")
        spans.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            raise BadFileError(f"{name} does not begin where the tensor before it ends")
        reached = end
    if reached != available:
        raise BadFileError(f"it holds {available:,} bytes of tensors and names {reached:,}")
    return entries
