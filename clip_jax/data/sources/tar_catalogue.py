"""The indices of many tars as one: arrays in a folder, mapped into memory.

So a data set of a billion pairs opens as quickly as one of ten, and its workers share the memory.
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
from clip_jax.io import files, remote

_VERSION = 5
_READERS = 8  # indices read at the same time
_TYPES = {
    **{"starts": np.int64, "spans": np.int64, "texts": np.int64},
    **{"names": np.uint8, "ends": np.int64},
}
_WIDTHS = {"spans": 4, "texts": 3}
_FLAWS, _REPORT, _DIGESTS = "flaws", "report", "digests"

Tar = tuple[str, remote.State]


class Catalogue(NamedTuple):
    """The pairs of several tars, one tar after the other.

    Attributes:
      starts: int64 [tars + 1]: the first pair of each tar, then the number of pairs.
      spans: int64 [pairs, 4], as in `tar_index.Index`, with the texts of all tars counted together.
      texts: int64 [texts, 3], as in `tar_index.Index`.
      names: uint8 [bytes], the concatenated names of the images in UTF-8.
      ends: int64 [pairs], where each name ends.
      flaws: why a tar cannot be read completely, by its number.
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
        """Returns the name of the i-th image."""
        return tar_index.name_at(self.names, self.ends, i)


def _load(folder: Path, tars: int) -> Catalogue | None:
    """Maps the catalogue in a folder into memory; returns None if it is incomplete or damaged."""
    try:
        if json.loads((folder / _DIGESTS).read_bytes()) != _digests(folder):
            return None
        arrays: dict[str, np.ndarray] = {
            field: np.memmap(folder / field, dtype, mode="r") for field, dtype in _TYPES.items()
        }
        for field, width in _WIDTHS.items():
            arrays[field] = arrays[field].reshape(-1, width)
        report = OpeningReport.from_dict(json.loads((folder / _REPORT).read_bytes()))
        flaws = {int(tar): str(why) for tar, why in json.loads((folder / _FLAWS).read_bytes())}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    pairs = len(arrays["spans"])
    is_complete = (
        len(arrays["starts"]) == tars + 1
        and int(arrays["starts"][-1]) == pairs == len(arrays["ends"])
        and int(arrays["ends"][-1]) == len(arrays["names"])
        and int(arrays["spans"][-1, 3]) == len(arrays["texts"])
    )
    return Catalogue(**arrays, flaws=flaws, report=report) if is_complete else None


def _digests(folder: Path) -> dict[str, str]:
    """Returns the digests of all other files of a catalogue's folder."""
    return {name: files.sampled_digest(folder / name) for name in (*_TYPES, _FLAWS, _REPORT)}


def _write(
    tars: Sequence[Tar], place: str, image: str, into: Mapping[str, IO[bytes]]
) -> tuple[dict[int, str], OpeningReport]:
    """Writes the arrays of a catalogue, one tar at a time; returns flaws and report.

    Raises:
      UserError: no tar holds a pair, or a file is no tar.
    """
    counts, flaws = dict.fromkeys(("pairs", "texts", "names", "used"), 0), dict[int, str]()
    tally = Tally()
    into["starts"].write(bytes(8))
    with ThreadPoolExecutor(_READERS) as pool:
        indices = pool.map(lambda tar: tar_index.open_index(tar[0], place, tar[1], image), tars)
        for i, index in enumerate(indices):
            spans = index.spans + np.array([0, 0, 0, counts["texts"]])
            into["spans"].write(spans.tobytes())
            into["texts"].write(index.texts.tobytes())
            into["names"].write(index.names.tobytes())
            into["ends"].write((index.ends + counts["names"]).tobytes())
            for count, more in (
                *(("pairs", len(index.ends)), ("texts", len(index.texts))),
                *(("names", len(index.names)), ("used", index.report.used)),
            ):
                counts[count] += more
            into["starts"].write(np.int64(counts["pairs"]).tobytes())
            tally.merge(index.report, f"{remote.redact(tars[i][0])}:")
            if index.flaw:
                flaws[i] = index.flaw
    if not counts["pairs"]:
        raise UserError(_unusable(tars[0][0], flaws[0]))
    return flaws, tally.report(counts["used"], "members")


def _unusable(path: str, flaw: str) -> str:
    return f"{remote.redact(path)} cannot be used: {flaw}"


def _write_folder(tars: Sequence[Tar], place: str, image: str, folder: Path) -> None:
    """Writes the folder of a catalogue, completely or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        with contextlib.ExitStack() as stack:
            into = {f: stack.enter_context(open(temporary / f, "wb")) for f in _TYPES}
            flaws, report = _write(tars, place, image, into)
        (temporary / _REPORT).write_text(json.dumps(report.to_dict()))
        (temporary / _FLAWS).write_text(json.dumps(list(flaws.items())))
        (temporary / _DIGESTS).write_text(json.dumps(_digests(temporary)))
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_memory(tars: Sequence[Tar], place: str, image: str) -> Catalogue:
    """Builds a catalogue in the memory of this process."""
    into = {field: io.BytesIO() for field in _TYPES}
    flaws, report = _write(tars, place, image, into)
    arrays = {f: np.frombuffer(into[f].getbuffer(), dtype) for f, dtype in _TYPES.items()}
    arrays |= {field: arrays[field].reshape(-1, width) for field, width in _WIDTHS.items()}
    return Catalogue(**arrays, flaws=flaws, report=report)


def open_catalogue(
    paths: Sequence[str], states: Sequence[remote.State], place: str = "", image: str = ""
) -> Catalogue:
    """Returns the catalogue of tars, cached until the state of one of them changes.

    Args:
      paths: the tars.
      states: the state of each tar.
      place: where their indices are, see `tar_index.open_index`. The catalogue is in the same
        folder if that is on this machine, else in the user's cache folder.
      image: which images are used, see `matching.match`.

    Raises:
      UserError: a file is no tar, or no tar holds a pair.
    """
    name = remote.identity(paths, states)
    tars = list(zip(paths, states, strict=True))
    local = "" if remote.is_remote(place) else place
    folder = (
        Path(tar_index.index_folder(local)) / f"{name}{tar_index.image_suffix(image)}-{_VERSION}"
    )
    if catalogue := _load(folder, len(paths)):
        return catalogue
    if place:
        _share_indexing(tars, place, image)
    # a catalogue that cannot be written only costs the next start some time
    with contextlib.suppress(OSError):
        _write_folder(tars, place, image, folder)
    return _load(folder, len(paths)) or _in_memory(tars, place, image)


def _share_indexing(tars: Sequence[Tar], place: str, image: str) -> None:
    """Indexes the tars together with the other hosts that use the same place.

    Each host goes through the tars in a random order and finds the indices that others have made.
    """
    order = random.Random().sample(range(len(tars)), len(tars))
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(
            lambda i: tar_index.open_index(tars[i][0], place, tars[i][1], image).end, order
        ):
            pass


def check(catalogue: Catalogue, paths: Sequence[str], max_bad_fraction: float) -> list[str]:
    """Returns lines to print about damaged tars.

    Args:
      catalogue: the catalogue of the tars.
      paths: the tars.
      max_bad_fraction: the share of the tars that may hold no usable pair.

    Raises:
      UserError: more tars than that hold no usable pair.
    """
    empty = [int(i) for i in np.flatnonzero(np.diff(catalogue.starts) == 0)]
    if len(empty) > max_bad_fraction * len(paths):
        line = _unusable(paths[empty[0]], catalogue.flaws.get(empty[0], ""))
        if len(paths) > 1:
            line += (
                f"; {len(empty):,} of {len(paths):,} tars are so, more than "
                f"config.data.max_bad_fraction={max_bad_fraction:g}"
            )
        raise UserError(line)
    cut = sorted(set(catalogue.flaws) - set(empty))
    return [
        f"{len(tars):,} of {len(paths):,} tars {what}, such as {remote.redact(paths[tars[0]])}: "
        f"{catalogue.flaws.get(tars[0], '')}"
        for tars, what in ((empty, "are left out"), (cut, "are damaged and used up to the damage"))
        if tars
    ]


def to_pickle(catalogue: Catalogue) -> Any:
    """Returns what a worker process receives in place of a catalogue: its folder, if it has one."""
    name = getattr(catalogue.spans, "filename", None)
    return catalogue if name is None else (Path(name).parent, len(catalogue.starts) - 1)


def from_pickle(value: Any) -> Catalogue:
    """Returns the catalogue for a value that `to_pickle` returned.

    Raises:
      UserError: the folder of the catalogue was removed.
    """
    if isinstance(value, Catalogue):
        return value
    if catalogue := _load(*value):
        return catalogue
    raise UserError(f"{value[0]} was removed while it was in use: start again")
