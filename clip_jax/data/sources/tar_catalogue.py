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

from clip_jax.data.opening import OpeningReport, Tally
from clip_jax.data.sources import tar_index
from clip_jax.errors import UserError
from clip_jax.io import remote

_VERSION = 4
_READERS = 8  # indices read at once
_TYPES = {
    **{"starts": np.int64, "spans": np.int64, "texts": np.int64},
    **{"names": np.uint8, "ends": np.int64},
}
_WIDTHS = {"spans": 4, "texts": 3}
_FLAWS, _REPORT = "flaws", "report"

Tar = tuple[str, remote.State]


class Catalogue(NamedTuple):
    """The pairs of tars, one tar after the other.

    starts: int64 [tars + 1]: the first pair of each tar, and how many there are.
    spans: int64 [pairs, 4], as in `index.Index`; its texts are counted over all tars.
    texts: int64 [texts, 3], as in `index.Index`.
    names, ends: the pictures' names in UTF-8, uint8 [bytes], and where each ends, int64 [pairs].
    flaws: of tars of which not all can be read: number → why.
    report: the members of all tars that were seen, used and left out.
    """

    starts: np.ndarray
    spans: np.ndarray
    texts: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    flaws: dict[int, str]
    report: OpeningReport

    def name(self, i: int) -> str:
        """The name of the i-th picture."""
        return tar_index.name_at(self.names, self.ends, i)


def _load(folder: Path, tars: int) -> Catalogue | None:
    """What `_write` left in a folder; None where that is not all of it."""
    try:
        found: dict[str, np.ndarray] = {
            field: np.memmap(folder / field, dtype, mode="r") for field, dtype in _TYPES.items()
        }
        for field, width in _WIDTHS.items():
            found[field] = found[field].reshape(-1, width)
        report = OpeningReport.from_dict(json.loads((folder / _REPORT).read_bytes()))
        flaws = {int(tar): str(why) for tar, why in json.loads((folder / _FLAWS).read_bytes())}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    pairs = len(found["spans"])
    good = (
        len(found["starts"]) == tars + 1
        and int(found["starts"][-1]) == pairs == len(found["ends"])
        and int(found["ends"][-1]) == len(found["names"])
        and int(found["spans"][-1, 3]) == len(found["texts"])
    )
    return Catalogue(**found, flaws=flaws, report=report) if good else None


def _write(
    tars: Sequence[Tar], place: str, image: str, into: Mapping[str, IO[bytes]]
) -> tuple[dict[int, str], OpeningReport]:
    """The arrays of a catalogue as plain bytes, one tar at a time; gives flaws and report.

    Raises:
      UserError: no tar holds a pair, or one cannot be read at all.
    """
    counts, flaws = dict.fromkeys(("pairs", "texts", "names", "used"), 0), dict[int, str]()
    tally = Tally()
    into["starts"].write(bytes(8))
    with ThreadPoolExecutor(_READERS) as pool:
        indices = pool.map(lambda tar: tar_index.of(tar[0], place, tar[1], image), tars)
        for i, found in enumerate(indices):
            spans = found.spans + np.array([0, 0, 0, counts["texts"]])
            into["spans"].write(spans.tobytes())
            into["texts"].write(found.texts.tobytes())
            into["names"].write(found.names.tobytes())
            into["ends"].write((found.ends + counts["names"]).tobytes())
            for count, more in (
                *(("pairs", len(found.ends)), ("texts", len(found.texts))),
                *(("names", len(found.names)), ("used", found.report.used)),
            ):
                counts[count] += more
            into["starts"].write(np.int64(counts["pairs"]).tobytes())
            tally.merge(found.report, f"{remote.shown(tars[i][0])}:")
            if found.flaw:
                flaws[i] = found.flaw
    if not counts["pairs"]:
        raise UserError(_nothing(tars[0][0], flaws[0]))
    return flaws, tally.report(counts["used"], "members")


def _nothing(path: str, flaw: str) -> str:
    return f"{remote.shown(path)} cannot be used: {flaw}"


def _keep(tars: Sequence[Tar], place: str, image: str, folder: Path) -> None:
    """Makes the folder of a catalogue, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        with contextlib.ExitStack() as stack:
            into = {f: stack.enter_context(open(made / f, "wb")) for f in _TYPES}
            flaws, report = _write(tars, place, image, into)
        (made / _REPORT).write_text(json.dumps(report.to_dict()))
        (made / _FLAWS).write_text(json.dumps(list(flaws.items())))
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _held(tars: Sequence[Tar], place: str, image: str) -> Catalogue:
    """A catalogue in this process's own memory."""
    into = {field: io.BytesIO() for field in _TYPES}
    flaws, report = _write(tars, place, image, into)
    arrays = {f: np.frombuffer(into[f].getbuffer(), dtype) for f, dtype in _TYPES.items()}
    arrays |= {field: arrays[field].reshape(-1, width) for field, width in _WIDTHS.items()}
    return Catalogue(**arrays, flaws=flaws, report=report)


def of(
    paths: Sequence[str], states: Sequence[remote.State], place: str = "", image: str = ""
) -> Catalogue:
    """The catalogue of tars, kept until one of their states changes.

    It lies where their indices do (`place`, see `index.of`), but always on this machine. `image`
    says which pictures are used, see `matching.match`.

    Raises:
      UserError: a tar cannot be read, or none holds a pair.
    """
    name = remote.identity(paths, states)
    tars = list(zip(paths, states, strict=True))
    local = "" if remote.is_remote(place) else place
    folder = Path(tar_index.home(local)) / f"{name}{tar_index.chosen(image)}-{_VERSION}"
    if kept := _load(folder, len(paths)):
        return kept
    if place:
        _with_others(tars, place, image)
    # one that cannot be kept only costs the next start some time
    with contextlib.suppress(OSError):
        _keep(tars, place, image, folder)
    return _load(folder, len(paths)) or _held(tars, place, image)


def _with_others(tars: Sequence[Tar], place: str, image: str) -> None:
    """Has an index of each tar made where many hosts keep them.

    Each goes through the tars in an order of its own and finds what the others have made.
    """
    order = random.Random().sample(range(len(tars)), len(tars))
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(lambda i: tar_index.of(tars[i][0], place, tars[i][1], image).end, order):
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
        f"{len(tars):,} of {len(paths):,} tars {what}, such as {remote.shown(paths[tars[0]])}: "
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
