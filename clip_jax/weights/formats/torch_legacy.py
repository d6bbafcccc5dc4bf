"""Reads files that torch wrote before 1.6: pickles one after the other, then the storages.

The pickles are a magic number, a version, facts about the machine, the saved value, and the keys of
the storages in their order. Each storage is its number of elements (int64) and their bytes.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
from typing import Any, BinaryIO

from clip_jax.weights.formats import pickle_reader
from clip_jax.weights.formats.pickle_reader import MAX_OPCODES, Storage
from clip_jax.weights.formats.raw import BadFileError, UnreadableError, size_of
from clip_jax.weights.formats.torch_archive import BROKEN_PICKLE, DTYPES, MAX_PICKLE

# The first pickle, which holds torch's magic number.
MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE")


class LegacyFile:
    """The saved value and the storages of a file that torch wrote before 1.6.

    Raises:
      BadFileError: `file` is no such file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        pickles = io.BytesIO(os.pread(file.fileno(), MAX_PICKLE, 0))
        pickles.seek(len(MAGIC))
        storages: dict[str, Storage] = {}
        try:
            _opcodes(pickles)  # the version
            if any(name == "NEWFALSE" for name, _ in _opcodes(pickles)):
                raise UnreadableError("it was written on a big-endian machine")
            self._value = pickle_reader.parse(pickles, storages)
            keys = [str(key) for name, key in _opcodes(pickles) if name in _STRINGS]
        except BROKEN_PICKLE:
            raise BadFileError("its pickles are broken") from None
        self._spans = self._locate(keys, storages, pickles.tell())

    def _locate(
        self, keys: list[str], storages: dict[str, Storage], start: int
    ) -> dict[str, tuple[int, int]]:
        """Returns the offset and the size in bytes of each storage."""
        spans = {}
        for key in keys:
            if key not in storages or key in spans:
                raise BadFileError(f"its storage {key[:80]!a} is not that of a tensor")
            kind, _, numel = storages[key]
            if kind not in DTYPES:
                raise UnreadableError(f"a tensor is of {kind[:80]!a}, which is not read here")
            count = os.pread(self.file.fileno(), 8, start)
            if len(count) < 8 or struct.unpack("<q", count) != (numel,):
                raise BadFileError(f"its storage {key[:80]!a} has not the size of its tensors")
            size = numel * DTYPES[kind].itemsize
            spans[key] = start + 8, size
            start += 8 + size
            if start > size_of(self.file):
                raise BadFileError("it is cut short")
        return spans

    def storage(self, key: str) -> tuple[int, int]:
        """Returns the offset of a storage in the file, and its size in bytes."""
        if key not in self._spans:
            raise BadFileError(f"it has no storage {key[:80]!a}")
        return self._spans[key]

    def unpickled(self) -> Any:
        """Returns the saved value: plain containers, `TensorView`s, `Object`s and `Opaque`s."""
        return self._value


def _opcodes(file: BinaryIO) -> list[tuple[str, Any]]:
    """Returns the opcodes of the next pickle by their names, with their arguments."""
    opcodes: list[tuple[str, Any]] = []
    for opcode, argument, _ in pickletools.genops(file):
        opcodes.append((opcode.name, argument))
        if len(opcodes) > MAX_OPCODES:
            raise BadFileError("a pickle of it is longer than any model's")
    return opcodes
