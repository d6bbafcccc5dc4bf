"""Where the pairs of a data set of tars stand: arrays in a folder, mapped into memory.

A set of a billion pairs opens as soon as one of ten, and its workers share the memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from clip_jax.data import index, storage
from clip_jax.errors import UserError

_VERSION = 3
_READERS = 8  # indices read at once
_TYPES = {"starts": np.int64, "spans": np.int64, "names": np.uint8, "ends": np.int64}
_FLAWS = "flaws"


class Catalogue(NamedTuple):
    """The pairs of tars, one tar after the other.

    starts: int64 [tars + 1]: the first pair of each tar, and how many there are.
    spans: int64 [pairs, 5], as in `index.Index`.
    names, ends: the pictures' names in UTF-8, uint8 [bytes], and where each ends, int64 [pairs].
    flaws: of tars of which not all can be read: number → why.
    """

    starts: np.ndarray
    spans: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    flaws: dict[int, str]

    def name(self, i: int) -> str:
        """The name of the i-th picture."""
        return index.name_at(self.names, self.ends, i)


def _load(folder: Path, tars: int) -> Catalogue | None:
    """What `_write` left in a folder; None where that is not all of it."""
    try:
        found: dict[str, np.ndarray] = {
            field: np.memmap(folder / field, dtype, mode="r") for field, dtype in _TYPES.items()
        }
        found["spans"] = found["spans"].reshape(-1, 5)
        flaws = {int(tar): str(why) for tar, why in json.loads((folder / _FLAWS).read_bytes())}
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    pairs = len(found["spans"])
    good = (
        len(found["starts"]) == tars + 1
        and int(found["starts"][-1]) == pairs == len(found["ends"])
        and int(found["ends"][-1]) == len(found["names"])
    )
    return Catalogue(**found, flaws=flaws) if good else None


def _write(
    tars: Sequence[tuple[str, storage.State]], place: str, into: Mapping[str, IO[bytes]]
) -> dict[int, str]:
    """The arrays of a catalogue as plain bytes, one tar at a time; gives what is wrong with some.

    Raises:
      UserError: no tar holds a pair, or one cannot be read at all.
    """
    pairs, length, flaws = 0, 0, dict[int, str]()
    into["starts"].write(bytes(8))
    with ThreadPoolExecutor(_READERS) as pool:
        for i, found in enumerate(pool.map(lambda tar: index.of(tar[0], place, tar[1]), tars)):
            into["spans"].write(found.spans.tobytes())
            into["names"].write(found.names.tobytes())
            into["ends"].write((found.ends + length).tobytes())
            pairs, length = pairs + len(found.ends), length + len(found.names)
            into["starts"].write(np.int64(pairs).tobytes())
            if found.flaw:
                flaws[i] = found.flaw
    if not pairs:
        raise UserError(_nothing(tars[0][0], flaws[0]))
    return flaws


def _nothing(path: str, flaw: str) -> str:
    return f"{storage.shown(path)} cannot be used: {flaw}"


def _keep(tars: Sequence[tuple[str, storage.State]], place: str, folder: Path) -> None:
    """Makes the folder of a catalogue, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        with contextlib.ExitStack() as stack:
            into = {f: stack.enter_context(open(made / f, "wb")) for f in _TYPES}
            flaws = _write(tars, place, into)
        (made / _FLAWS).write_text(json.dumps(list(flaws.items())))
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _held(tars: Sequence[tuple[str, storage.State]], place: str) -> Catalogue:
    """A catalogue in this process's own memory."""
    into = {field: io.BytesIO() for field in _TYPES}
    flaws = _write(tars, place, into)
    arrays = {f: np.frombuffer(into[f].getbuffer(), dtype) for f, dtype in _TYPES.items()}
    return Catalogue(**{**arrays, "spans": arrays["spans"].reshape(-1, 5)}, flaws=flaws)


def of(paths: Sequence[str], states: Sequence[storage.State], place: str = "") -> Catalogue:
    """The catalogue of tars, kept until one of their states changes.

    It lies where their indices do (`place`, see `index.of`), but always on this machine.

    Raises:
      UserError: a tar cannot be read, or none holds a pair.
    """
    name = storage.identity(paths, states)
    tars = list(zip(paths, states, strict=True))
    local = "" if storage.is_remote(place) else place
    folder = Path(index.home(local)) / f"{name}-{_VERSION}"
    if kept := _load(folder, len(paths)):
        return kept
    if place:
        _with_others(tars, place)
    # one that cannot be kept only costs the next start some time
    with contextlib.suppress(OSError):
        _keep(tars, place, folder)
    return _load(folder, len(paths)) or _held(tars, place)


def _with_others(tars: Sequence[tuple[str, storage.State]], place: str) -> None:
    """Has an index of each tar made where many hosts keep them.

    Each goes through the tars in an order of its own and finds what the others have made.
    """
    order = random.Random().sample(range(len(tars)), len(tars))
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(lambda i: index.of(tars[i][0], place, tars[i][1]).end, order):
            pass


def check(found: Catalogue, paths: Sequence[str], max_bad_fraction: float) -> list[str]:
    """Lines about the tars that are damaged.

    Raises:
      UserError: of more than that fraction of them nothing can be used.
    """
    empty = [int(i) for i in np.flatnonzero(np.diff(found.starts) == 0)]
    if len(empty) > max_bad_fraction * len(paths):
        line = _nothing(paths[empty[0]], found.flaws.get(empty[0], ""))
        if len(paths) > 1:
            line += (
                f"; {len(empty):,} of {len(paths):,} tars are so, more than "
                f"config.data.max_bad_fraction={max_bad_fraction:g}"
            )
        raise UserError(line)
    cut = sorted(set(found.flaws) - set(empty))
    return [
        f"{len(tars):,} of {len(paths):,} tars {what}, such as {storage.shown(paths[tars[0]])}: "
        f"{found.flaws.get(tars[0], '')}"
        for tars, what in ((empty, "are left out"), (cut, "are used only up to a damage"))
        if tars
    ]


def shared(found: Catalogue) -> Any:
    """What a worker process is given in place of a catalogue: its folder, where it has one."""
    name = getattr(found.spans, "filename", None)
    return found if name is None else (Path(name).parent, len(found.starts) - 1)


def received(given: Any) -> Catalogue:
    """The catalogue that `shared` gave away.

    Raises:
      UserError: it is not in its folder any more.
    """
    if isinstance(given, Catalogue):
        return given
    if found := _load(*given):
        return found
    raise UserError(f"{given[0]} was removed while it was in use: start again")
