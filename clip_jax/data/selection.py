"""Selections: which pairs of each file are used, as one bit a pair.

    FOLDER/selection.json        the files, how many pairs each has and how many are selected
    FOLDER/selection/00000.bits  a file's bits, the first pair's is the highest of the first byte

`python -m clip_jax curate` writes such a folder, and `config.data.selection` reads it. Nothing is
copied: training reads the selected pairs where they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clip_jax.data.example import Fields, Pair
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import KnowsFiles, Source, layout, read_text
from clip_jax.errors import UserError, counted
from clip_jax.io import files, paths, remote

VERSION = 1
MANIFEST = "selection.json"
_MAX_JSON = 1 << 28  # bytes: a million files
_MAX_BITS = 1 << 28  # bytes of a file's bits
_BITS = re.compile(r"selection/[0-9]{1,12}\.bits")
_BLOCK = 512  # pairs, whose selected ones are counted together


@dataclasses.dataclass(frozen=True)
class SelectedFile:
    """The selection of a file's pairs.

    Attributes:
      file: the path of the file when it was curated.
      pairs: the number of its pairs.
      kept: how many of them are selected.
      bits: the name of the file of the bits in the folder; empty for a file without pairs.
      digest: the SHA-256 of the bits.
      fingerprint: that of its source when it was curated; empty: not known.
      size: its bytes when it was curated; -1: not known.
    """

    file: str
    pairs: int
    kept: int
    bits: str
    digest: str
    fingerprint: str = ""
    size: int = -1


@dataclasses.dataclass(frozen=True)
class Selection:
    """A folder that says which pairs are used.

    Attributes:
      folder: the folder, local or remote.
      data: the spec of the data that was curated.
      files: its files in order.
    """

    folder: str
    data: str
    files: tuple[SelectedFile, ...]

    @classmethod
    def open(cls, folder: str) -> Selection:
        """Reads `selection.json`.

        Raises:
          UserError: the folder is no selection.
        """
        folder = paths.resolve(folder).rstrip("/")
        path = f"{folder}/{MANIFEST}"
        if remote.is_remote(folder):
            values = files.parse_json(remote.read_whole(path, _MAX_JSON), path)
        elif not Path(path).exists():
            raise UserError(
                f"{folder} is no selection: it has no {MANIFEST}, which `python -m clip_jax curate "
                f"… --out {folder}` writes when it is done"
            )
        else:
            values = files.read_json(Path(path), _MAX_JSON, "selection")
        if (version := values.get("version")) != VERSION:
            raise UserError(f"{path} has version {version!r:.40}: this clip_jax reads {VERSION}")
        data, entries = values.get("data"), values.get("files")
        if not isinstance(data, str) or not isinstance(entries, list) or not entries:
            raise UserError(f'{path} must hold "data", a text, and "files", a list of files')
        parsed = tuple(_parse(path, n, e) for n, e in enumerate(entries))
        if len({entry.file for entry in parsed}) < len(parsed):
            raise UserError(f'{path}: "files" names a file twice')
        return cls(folder, data, parsed)

    def bits(self, entry: SelectedFile) -> UInt8[np.ndarray, " bytes"]:
        """Reads the bits of a file.

        Raises:
          UserError: they are missing or damaged.
        """
        if not entry.bits:
            return np.zeros(0, np.uint8)
        path = f"{self.folder}/{entry.bits}"
        if remote.is_remote(path):
            content = remote.read_whole(path, _MAX_BITS)
        else:
            content = files.read_small(Path(path), _MAX_BITS, "selection")
        if hashlib.sha256(content).hexdigest() != entry.digest:
            raise UserError(f"{path} is damaged: curate the data again, what is done is reused")
        return np.frombuffer(content, np.uint8)

    def match(self, own: Sequence[tuple[str, int]]) -> tuple[list[SelectedFile], list[str]]:
        """Returns the entry of each file of a source, and what may be wrong with them.

        Args:
          own: the path of each file of the source, and the number of its pairs.

        Raises:
          UserError: as `of_files`.
        """
        states = _states([path for path, _ in own])
        entries = self.of_files(own, [-1 if state is None else state.size for state in states])
        rewritten = [
            remote.redact(path)
            for (path, _), state, entry in zip(own, states, entries, strict=True)
            if state is not None and _is_rewritten(path, state, entry)
        ]
        return entries, _notes(rewritten, self)

    def of_files(self, own: Sequence[tuple[str, int]], sizes: Sequence[int]) -> list[SelectedFile]:
        """Returns the entry of each file of a source.

        A folder may have moved, and a source may have some of the files only, in any order: files
        are recognized by the ends of their paths.

        Args:
          own: the path of each file of the source, and the number of its pairs.
          sizes: the bytes of each; -1: not known.

        Raises:
          UserError: a file is not in the selection, has another number of pairs or of bytes, or
            cannot be told from another one by its name.
        """
        depth = _depth(entry.file for entry in self.files)
        by_end = {_end(entry.file, depth): entry for entry in self.files}
        users: dict[str, str] = {}
        found = []
        for (path, pairs), size in zip(own, sizes, strict=True):
            shown, entry = remote.redact(path), by_end.get(_end(path, depth))
            if entry is None:
                raise UserError(
                    f"{self.folder} does not tell which pairs of {shown} to use: it is about "
                    f"{len(self.files):,} files of {self.data}; curate this file, too"
                )
            if (first := users.setdefault(entry.file, path)) != path:
                raise UserError(
                    f"{self.folder} has one file with the name of {remote.redact(first)} and of "
                    f"{shown}: curate the data again, with both files"
                )
            if entry.pairs != pairs:
                raise UserError(
                    f"{shown} has {counted(pairs, 'pair')}, and {entry.pairs:,} when {self.folder} "
                    "was made: curate the data again"
                )
            if size != entry.size and min(size, entry.size) >= 0:
                raise UserError(
                    f"{shown} has {size:,} bytes, and {entry.size:,} when {self.folder} was made: "
                    "curate the data again"
                )
            found.append(entry)
        return found


def _parse(path: str, number: int, entry: Any) -> SelectedFile:
    where = f'{path}: entry {number} of "files"'
    if not isinstance(entry, dict):
        raise UserError(f"{where} must be an object")
    texts = {key: entry.get(key) for key in ("file", "bits", "digest")}
    counts = {key: entry.get(key) for key in ("pairs", "kept")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: {key!r} must be a text")
    for key, count in counts.items():
        if type(count) is not int or not 0 <= count <= 8 * _MAX_BITS:
            raise UserError(f"{where}: {key!r} must be a number of pairs")
    counts["size"] = size = entry.get("size", -1)
    texts["fingerprint"] = fingerprint = entry.get("fingerprint", "")
    if type(size) is not int or not isinstance(fingerprint, str):
        raise UserError(f"{where}: 'size' must be a number of bytes, and 'fingerprint' a text")
    if texts["bits"] and not _BITS.fullmatch(str(texts["bits"])):
        raise UserError(f"{where}: 'bits' must be a name such as selection/00000.bits")
    return SelectedFile(**texts, **counts)  # type: ignore[arg-type]  # checked above


def _end(path: str, depth: int) -> tuple[str, ...]:
    """Returns the last parts of a path."""
    return PurePosixPath(remote.redact(path)).parts[-depth:]


def _depth(names: Iterator[str] | Sequence[str]) -> int:
    """Returns how many parts of paths from their end tell them apart."""
    parts = [PurePosixPath(remote.redact(name)).parts for name in names]
    longest = max(map(len, parts))
    return next(
        (d for d in range(1, longest) if len({p[-d:] for p in parts}) == len(parts)), longest
    )


def _states(own: Sequence[str]) -> list[remote.State | None]:
    """Returns the state of each file; None on web servers, which take a request for each."""
    asked = [path for path in own if not remote.is_http(path)]
    known = dict(zip(asked, remote.states(asked), strict=True))
    return [known.get(path) for path in own]


def _is_rewritten(path: str, state: remote.State, entry: SelectedFile) -> bool:
    """Returns whether a file at the same place has another state than when it was curated."""
    is_there = path == entry.file or os.path.abspath(path) == os.path.abspath(entry.file)
    # the fingerprint of a source of one file begins with the identity of the file
    then = entry.fingerprint.partition(" ")[0]
    return bool(is_there and then and then != remote.identity([path], [state]))


def _notes(other: Sequence[str], selection: Selection) -> list[str]:
    if not other:
        return []
    more = f" and {counted(len(other) - 1, 'other file')}" if len(other) > 1 else ""
    return [
        f"{other[0]}{more} changed since {selection.folder} was made, though not in size: curate "
        "the data again unless they are copies of the same pairs"
    ]


class SelectedPairs:
    """The pairs of a source that a selection names, in their order.

    Memory: one bit and an eighth for each pair of the source.

    Args:
      source: all pairs.
      selection: the selection.

    Attributes:
      left_out: the number of pairs that are not selected.
      notes: what may be wrong with the selection, to be said.

    Raises:
      UserError: the selection is of other files, or selects no pair.
    """

    def __init__(self, source: Source, selection: Selection) -> None:
        self.source = source
        own = source.files() if isinstance(source, KnowsFiles) else None
        if own is None:
            (*others, entry) = selection.files
            if others or entry.pairs != len(source):
                raise UserError(
                    f"{selection.folder} is about {sum(e.pairs for e in selection.files):,} pairs "
                    f"of {selection.data}, and {source!r} has {len(source):,}: curate it again"
                )
            entries = [entry]
            is_other = entry.fingerprint not in ("", source.fingerprint)
            self.notes = _notes([f"{source!r}"] if is_other else [], selection)
        else:
            entries, self.notes = selection.match(own)
        flags = [np.unpackbits(selection.bits(e), count=e.pairs).astype(bool) for e in entries]
        selected = np.concatenate([np.zeros(0, bool), *flags])
        if not selected.any():
            raise UserError(f"{selection.folder} selects no pair of {source!r}")
        padded = np.concatenate([selected, np.zeros(-len(selected) % _BLOCK, bool)])
        self._bits = np.packbits(padded)
        counts = padded.reshape(-1, _BLOCK).sum(axis=1)
        self._before = np.concatenate([[0], np.cumsum(counts)])
        self.left_out = len(source) - len(self)
        digest = hashlib.sha256(self._bits.tobytes()).hexdigest()[:32]
        self.fingerprint = f"{source.fingerprint} selection {digest}"

    def __len__(self) -> int:
        return int(self._before[-1])

    def __repr__(self) -> str:
        return f"SelectedPairs({self.source!r}, {len(self):,} pairs)"

    def opening_report(self) -> OpeningReport:
        """Returns the opening report of the source, without what is not selected."""
        return self.source.opening_report()

    def layout(self) -> Iterator[bytes]:
        """Yields the bits, then the layout of the source."""
        yield self._bits.tobytes()
        yield from layout(self.source)

    def _number(self, i: int) -> int:
        """Returns the number in the source of the i-th selected pair."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        block = int(np.searchsorted(self._before, i, side="right")) - 1
        bits = np.unpackbits(self._bits[block * _BLOCK // 8 : (block + 1) * _BLOCK // 8])
        return block * _BLOCK + int(np.flatnonzero(bits)[i - int(self._before[block])])

    def __getitem__(self, i: int) -> Pair:
        return self.source[self._number(i)]

    def text(self, i: int) -> tuple[Fields, str]:
        """Returns the text fields of the i-th pair and its name, without the image if possible."""
        return read_text(self.source, self._number(i))
