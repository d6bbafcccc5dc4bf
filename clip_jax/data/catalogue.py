"""Where the pairs of a data set of tars stand: arrays in the cache folder, mapped into memory.

A set of a billion pairs opens as soon as one of ten, and its workers share the memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from clip_jax import files
from clip_jax.data import index
from clip_jax.errors import UserError

_VERSION = 1
_READERS = 8  # indices read at once
_TYPES = {"starts": np.int64, "spans": np.int64, "names": np.uint8, "ends": np.int64}


class Catalogue(NamedTuple):
    """The pairs of tars, one tar after the other.

    starts: int64 [tars + 1]: the first pair of each tar, and how many there are.
    spans: int64 [pairs, 5], as in `index.Index`.
    names, ends: the pictures' names in UTF-8, uint8 [bytes], and where each ends, int64 [pairs].
    """

    starts: np.ndarray
    spans: np.ndarray
    names: np.ndarray
    ends: np.ndarray

    def name(self, i: int) -> str:
        """The name of the i-th picture."""
        start = int(self.ends[i - 1]) if i else 0
        return bytes(self.names[start : self.ends[i]]).decode(errors="surrogateescape")


def _load(folder: Path, tars: int) -> Catalogue | None:
    """What `_write` left in a folder; None where that is not all of it."""
    try:
        found: dict[str, np.ndarray] = {
            field: np.memmap(folder / field, dtype, mode="r") for field, dtype in _TYPES.items()
        }
        found["spans"] = found["spans"].reshape(-1, 5)
    except (OSError, ValueError):
        return None
    pairs = len(found["spans"])
    good = (
        len(found["starts"]) == tars + 1
        and int(found["starts"][-1]) == pairs == len(found["ends"])
        and int(found["ends"][-1]) == len(found["names"])
    )
    return Catalogue(**found) if good else None


def _write(paths: Sequence[str], into: dict[str, BinaryIO]) -> None:
    """The arrays of a catalogue as plain bytes, one tar at a time."""
    pairs, length = 0, 0
    into["starts"].write(bytes(8))
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(index.of, paths):
            names = [str(name).encode(errors="surrogateescape") for name in found.names]
            ends = length + np.cumsum([len(name) for name in names])
            pairs, length = pairs + len(names), int(ends[-1])
            into["starts"].write(np.int64(pairs).tobytes())
            into["spans"].write(found.spans.tobytes())
            into["names"].write(b"".join(names))
            into["ends"].write(ends.astype(np.int64).tobytes())


def _keep(paths: Sequence[str], folder: Path) -> None:
    """Makes the folder of a catalogue, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        with contextlib.ExitStack() as stack:
            _write(paths, {f: stack.enter_context(open(made / f, "wb")) for f in _TYPES})
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _held(paths: Sequence[str]) -> Catalogue:
    """A catalogue in this process's own memory."""
    into = {field: io.BytesIO() for field in _TYPES}
    _write(paths, {**into})
    arrays = {f: np.frombuffer(into[f].getvalue(), dtype) for f, dtype in _TYPES.items()}
    return Catalogue(**{**arrays, "spans": arrays["spans"].reshape(-1, 5)})


def of(paths: Sequence[str]) -> Catalogue:
    """The catalogue of tars, kept in the cache folder until one of them changes.

    Raises:
      UserError: a tar cannot be read.
    """
    states = [index.state_of(path) for path in paths]
    name = hashlib.sha256(repr((_VERSION, states)).encode()).hexdigest()[:32]
    folder = files.cache_folder("index") / name
    if kept := _load(folder, len(paths)):
        return kept
    # a cache that cannot be written only costs the next start some time
    with contextlib.suppress(OSError):
        _keep(paths, folder)
    return _load(folder, len(paths)) or _held(paths)


def shared(found: Catalogue) -> Any:
    """What a worker process is given in place of a catalogue: its folder, where it has one."""
    name = getattr(found.spans, "filename", None)
    return found if name is None else (Path(name).parent, len(found.starts) - 1)


def received(given: Any) -> Catalogue:
    """The catalogue that `shared` gave away.

    Raises:
      UserError: it is not in the cache folder any more.
    """
    if isinstance(given, Catalogue):
        return given
    if found := _load(*given):
        return found
    raise UserError(f"{given[0]} was removed from the cache while it was in use: start again")
