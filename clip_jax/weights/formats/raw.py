"""Code that all readers of weights share: reads bytes, and checks what a file claims about them."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clip_jax.errors import UserError

MAX_NAME = 256
MAX_RANK = 64  # as numpy has it
_CHUNK = 1 << 28  # macOS reads at most 2 GiB at once


class BadFileError(Exception):
    """A fault inside a file; `open_tensors` adds which file and what to do."""


class UnreadableError(BadFileError):
    """An error about an unsupported part of an intact file: fetching it again changes nothing."""


class Entry(NamedTuple):
    """A tensor in a file, and how an array of its shape and dtype is filled with it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[np.ndarray], None]

    @property
    def nbytes(self) -> int:
        """The size of the tensor in memory, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_plain(path: Path) -> BinaryIO:
    """Opens a file that may hold weights.

    Raises:
      UserError: it is no plain file, or the remains of a failed download.
    """
    # opening a pipe would block
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is no plain file")
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    try:
        head = os.pread(file.fileno(), 512, 0)
        if not head:
            raise UserError(f"{path} is empty: fetch the file again")
        if head.startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path} is a git-lfs pointer: download the file itself (`git lfs pull`)"
            )
        if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise UserError(f"{path} is a web page and no weights: download the file itself")
    except BaseException:
        file.close()
        raise
    return file


def size_of(file: BinaryIO) -> int:
    """Returns the size of a file in bytes."""
    return os.fstat(file.fileno()).st_size


def read_into(file: BinaryIO, offset: int, out: np.ndarray) -> None:
    """Fills the contiguous `out` with the bytes of `file` from `offset`.

    The bytes are read and not mapped: the pages of a mapped file count as memory of the process.

    Raises:
      UserError: the file cannot be read, or changed since it was opened.
    """
    rest = out.reshape(-1).view(np.uint8).data
    try:
        while rest:
            count = os.preadv(file.fileno(), [rest[:_CHUNK]], offset)
            if not count:
                raise UserError(f"{file.name} is cut short: it changed since it was opened")
            rest, offset = rest[count:], offset + count
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror})") from None


def check_name(name: str) -> None:
    """Checks that a tensor's name fits into a line.

    Raises:
      BadFileError: it is too long, or not printable.
    """
    if not name.isprintable() or len(name) > MAX_NAME:
        raise BadFileError(f"{name[:80]!a} is no name of a tensor")


def is_count(n: object) -> bool:
    """Returns whether a value is a whole number from 0 that could be an offset in a file."""
    return type(n) is int and 0 <= n < 1 << 63


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Checks the shape that a file gives for the tensor `name`, and returns it.

    Raises:
      BadFileError: it is no possible shape.
    """
    if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK:
        raise BadFileError(f"{name} has no shape")
    # numpy multiplies all but the zeros, too
    if not all(map(is_count, shape)) or math.prod(n for n in shape if n) >= 1 << 59:
        raise BadFileError(f"{name} has an impossible shape")
    return tuple(shape)
