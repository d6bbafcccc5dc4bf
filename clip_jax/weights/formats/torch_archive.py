"""Reads archives that torch writes: a zip file of a pickle and of storages."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import ml_dtypes
import numpy as np

from clip_jax.weights.formats import pickle_reader
from clip_jax.weights.formats.pickle_reader import TensorView
from clip_jax.weights.formats.raw import (
    BadFileError,
    Entry,
    UnreadableError,
    check_name,
    read_into,
    size_of,
)

MAX_PICKLE = 4 << 20  # bytes; those of OpenAI have under 1 MiB
_ZIP = b"PK\3\4"
_BROKEN_ZIP = (  # RuntimeError: encrypted, or of a method that Python lacks
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, RuntimeError, EOFError, OverflowError),
)
DTYPES = {
    "torch BoolStorage": np.dtype(np.bool_),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch CharStorage": np.dtype(np.int8),
    "torch ShortStorage": np.dtype(np.int16),
    "torch IntStorage": np.dtype(np.int32),
    "torch LongStorage": np.dtype(np.int64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
}
# What a broken pickle raises where it is parsed.
BROKEN_PICKLE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


class Storages(Protocol):
    """A file of torch with a saved value and the storages of its tensors."""

    @property
    def file(self) -> BinaryIO:
        """The open file."""

    def storage(self, key: str) -> tuple[int, int]:
        """Returns the offset of a storage in the file, and its size in bytes."""

    def unpickled(self) -> Any:
        """Returns the saved value: plain containers, `TensorView`s, `Object`s and `Opaque`s."""


class Archive:
    """The members of an archive that torch wrote, by their names below its one folder.

    Raises:
      BadFileError: `file` is no such archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        if os.pread(file.fileno(), len(_ZIP), 0) != _ZIP:
            raise BadFileError("it is no archive as torch writes them")
        try:
            self._archive = zipfile.ZipFile(file)
        except _BROKEN_ZIP as error:
            raise BadFileError(f"it is a broken archive: {type(error).__name__}") from None
        self.file = file
        infos = self._archive.infolist()
        self._infos = {info.filename.partition("/")[2]: info for info in infos}
        folders = {info.filename.partition("/")[0] for info in infos}
        if len(folders) != 1 or len(self._infos) < len(infos):
            raise BadFileError("it is an archive, and none of torch")
        for name in self:
            check_name(name)
        if "byteorder" in self and self.read("byteorder", 16) != b"little":
            raise UnreadableError("it was written on a big-endian machine")

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def read(self, name: str, limit: int) -> bytes:
        """Reads a small member."""
        info = self._infos.get(name)
        if info is None or info.file_size > limit:
            raise BadFileError(f"it has no {name}, or one of impossible size")
        try:
            return self._archive.read(info)
        except _BROKEN_ZIP:
            raise BadFileError(f"its {name} is broken") from None

    def storage(self, key: str) -> tuple[int, int]:
        """Returns the offset of a storage in the file, and its size in bytes."""
        name = f"data/{key}"
        info = self._infos.get(name)
        if info is None:
            raise BadFileError(f"it has no {name[:80]!a}")
        head = os.pread(self.file.fileno(), 30, info.header_offset)
        if len(head) < 30 or head[:4] != _ZIP:
            raise BadFileError(f"its {name} is not where it should be")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        stored = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
        if not stored or start + info.file_size > size_of(self.file):
            raise BadFileError(f"its {name} is compressed or cut short")
        return start, info.file_size

    def unpickled(self) -> Any:
        """Returns the saved value: plain containers, `TensorView`s, `Object`s and `Opaque`s."""
        info = self._infos.get("data.pkl")
        if info is not None and info.file_size > MAX_PICKLE:
            raise UnreadableError(
                f"its data.pkl has {info.file_size >> 20} MiB, as where arrays of NumPy are saved: "
                "save tensors of torch, or safetensors"
            )
        raw = self.read("data.pkl", MAX_PICKLE)
        try:
            return pickle_reader.parse(raw)
        except BROKEN_PICKLE:
            raise BadFileError("its data.pkl is broken") from None


def tensor_entry(archive: Storages, name: str, tensor: TensorView) -> Entry:
    """Returns the entry of a tensor of a file of torch, which says how an array is filled with it.

    Raises:
      BadFileError: the storage is not there, or too small.
    """
    check_name(name)
    (kind, key, numel), offset, shape, strides = tensor
    if kind not in DTYPES:
        raise UnreadableError(f"{name} is of {kind[:80]!a}, which is not read here")
    dtype = DTYPES[kind]
    start, size = archive.storage(key)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    reach = 1 + last if all(shape) else 0
    if size != numel * dtype.itemsize or offset + reach > numel:
        raise BadFileError(f"{name} has not the size of its shape")
    start += offset * dtype.itemsize
    steps = [
        s * dtype.itemsize if n > 1 and reach else 0 for n, s in zip(shape, strides, strict=True)
    ]

    def fill(out: np.ndarray) -> None:
        storage = np.empty(reach, dtype)
        view = np.lib.stride_tricks.as_strided(storage, shape, steps)
        if view.flags.c_contiguous:
            read_into(archive.file, start, out)
        else:
            read_into(archive.file, start, storage)
            np.copyto(out, view)

    return Entry(shape, dtype, fill)
