"""What stands where in one tar: an index, built once and kept in the cache folder.

A sample is the run of members whose names agree up to the first dot: `0001.jpg`, `0001.txt`.
Each picture of a sample is a pair with the sample's text; `0001.a.png` and `0001.b.png` are two.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_jax import files
from clip_jax.data.pairs import IMAGES, MAX_MEMBER, TEXTS
from clip_jax.errors import UserError

_BLOCK = 512
_VERSION = 2  # of the cached index


class Index(NamedTuple):
    """Where the pairs of one tar stand.

    spans: int64 [pairs, 5]: offset and size of the picture, of its text, and whether that is json.
    names: the pictures' names.
    """

    spans: np.ndarray
    names: np.ndarray


def _pairs(sample: list[tarfile.TarInfo]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    texts = [m for end in TEXTS for m in sample if m.name.lower().endswith(end)]
    if texts:
        yield from ((m, texts[0]) for m in sample if m.name.lower().endswith(IMAGES))


def _members(tar: tarfile.TarFile, length: int) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
            continue
        if member.offset_data + member.size > length:
            raise tarfile.ReadError(f"{member.name} is longer than the file")
        yield member


def _samples(members: Iterable[tarfile.TarInfo]) -> Iterator[list[tarfile.TarInfo]]:
    def key(member: tarfile.TarInfo) -> str:
        folder, slash, base = member.name.rpartition("/")
        return folder + slash + base.split(".", 1)[0]

    yield from (list(run) for _, run in itertools.groupby(members, key))


def scan(path: str) -> Index:
    """Read the headers of a tar.

    Raises:
      UserError: the file is missing, compressed, cut short, or holds no pair.
    """
    spans, names = [], []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for sample in _samples(_members(tar, os.fstat(file.fileno()).st_size)):
                for image, text in _pairs(sample):
                    for member in (image, text):
                        if member.size > MAX_MEMBER or member.issparse():
                            raise UserError(f"{path}: {member.name} is sparse or over 256 MiB")
                    spans.append(
                        (
                            *(image.offset_data, image.size, text.offset_data, text.size),
                            text.name.lower().endswith(".json"),
                        )
                    )
                    names.append(image.name)
            # tarfile ends without a word at a header that it cannot read
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"no end of archive at byte {tar.offset:,}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_hint(path)}") from None
    if not spans:
        raise UserError(
            f"{path} holds no pair: expected members such as 0001.jpg with 0001.txt or 0001.json"
        )
    return Index(np.array(spans, np.int64), np.array(names, np.str_))


def _hint(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return "gunzip it first: a compressed tar has no random access"
    return "it is cut short or not a tar: fetch the file again"


def _load(cached: Path) -> Index | None:
    try:
        with np.load(cached, allow_pickle=False) as file:
            found = Index(file["spans"], file["names"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    good = found.spans.dtype == np.int64 and found.names.dtype.kind == "U"
    return found if good and found.spans.shape == (found.names.size, 5) else None


def state_of(path: str) -> str:
    """What changes when a file does.

    Raises:
      UserError: there is no such file.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    return repr((os.path.abspath(path), stat.st_size, stat.st_mtime_ns))


def of(path: str) -> Index:
    """`scan(path)`, kept in the user's cache folder until the tar changes."""
    name = hashlib.sha256(f"{state_of(path)} {_VERSION}".encode()).hexdigest()[:32]
    cached = files.cache_folder("index") / f"{name}.npz"
    if found := _load(cached):
        return found
    built = scan(path)
    # a cache that cannot be written only costs the next start some seconds
    with contextlib.suppress(OSError), files.whole(cached) as file:
        np.savez(file, spans=built.spans, names=built.names)
    return built
