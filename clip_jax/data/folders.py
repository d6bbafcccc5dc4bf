"""Pictures in a folder, with captions beside them or in folders named by what they show.

`cats/1.jpg` is described by `cats/1.json` or `cats/1.txt`, and so, as in a tar, is
`cats/1.large.jpg`, unless `cats/1.large.json` or `cats/1.large.txt` is there. Where no picture of
the whole folder has such a file, the name of its own folder says it: `golden_retriever/1.jpg` shows
a golden retriever.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

import numpy as np

from clip_jax.data import storage
from clip_jax.data.opening import OpeningReport, Tally
from clip_jax.data.pairs import IMAGES, MAX_MEMBER, MAX_TEXT, TEXTS, Pair, parse_text, read_bytes
from clip_jax.errors import UserError

_NONE = 2 * len(TEXTS)


def _texts(path: bytes) -> list[bytes]:
    """Where a picture may be described, the first that is there counts."""
    inner, name = os.path.split(path)
    stems = (os.path.splitext(name)[0], name.split(b".", 1)[0])
    return [os.path.join(inner, stem + os.fsencode(end)) for stem in stems for end in TEXTS]


def _files(folder: bytes) -> Iterator[tuple[bytes, set[bytes]]]:
    """Every folder below (relative, ends with a slash or is empty) with the names of its files.

    Links to files elsewhere in the folder are followed; no link to a folder is.
    """
    home = os.path.realpath(folder) + b"/"
    waiting = [b""]
    while waiting:
        inner = waiting.pop()
        found = set()
        with os.scandir(os.path.join(folder, inner)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(inner + entry.name + b"/")
                elif entry.is_file():
                    if entry.is_symlink() and not os.path.realpath(entry.path).startswith(home):
                        raise UserError(f"{os.fsdecode(entry.path)} is a link out of the folder")
                    found.add(entry.name)
        yield inner, found


def _far(paths: Iterable[str]) -> Iterator[tuple[bytes, set[bytes]]]:
    """The same of a folder far away, by all paths in it."""
    seen = sorted(p for p in paths if not any(part.startswith(".") for part in p.split("/")))
    folders = sorted(os.path.split(os.fsencode(path)) for path in seen)
    for inner, found in itertools.groupby(folders, key=lambda parts: parts[0]):
        yield inner + b"/" if inner else inner, {name for _, name in found}


class FolderSource:
    """The pairs of a folder; `source[i]` reads the i-th, in the order of their paths.

    The folder may be far away, where its protocol lists files.

    Raises:
      UserError: the folder cannot be read, or nothing in it is described.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            pictures = sorted(self._pictures())
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} cannot be read ({error.strerror})"
            ) from None
        if not pictures:
            raise UserError(
                f"{folder} holds no picture: expected files such as cats/1.jpg "
                f"({', '.join(IMAGES)})"
            )
        described = [found for found in pictures if found[1] != _NONE]
        if not described and any(b"/" not in path for path, _ in pictures):
            raise UserError(
                f"{folder} holds pictures of which nothing is said: put 1.txt or 1.json beside "
                "1.jpg, or the pictures into folders named by what they show"
            )
        paths, kinds = zip(*(described or pictures), strict=True)
        # one string and where each path ends in it: lists of millions take gigabytes
        self._paths, self._ends = b"".join(paths), np.cumsum([0, *map(len, paths)])
        self._kinds = np.array(kinds, np.int8)
        tally = Tally()
        undescribed = [os.fsdecode(path) for path, kind in pictures if kind == _NONE]
        if described and undescribed:
            tally.add("no_text", undescribed[0], len(undescribed))
        self._report = tally.report(len(paths))

    def _pictures(self) -> Iterator[tuple[bytes, int]]:
        """Paths of pictures, and which of `_texts` is there."""
        found = _files(os.fsencode(self.folder))
        if storage.is_remote(self.folder):
            there = storage.below(self.folder)
            self.fingerprint = storage.identity([self.folder, *there], [*there.values()])
            found = _far(there)
        for inner, names in found:
            for name in names:
                if os.fsdecode(os.path.splitext(name)[1]).lower() in IMAGES:
                    beside = [text in names for text in _texts(name)]
                    yield inner + name, beside.index(True) if any(beside) else _NONE

    def __len__(self) -> int:
        return len(self._kinds)

    def opening_report(self) -> OpeningReport:
        """What opening the folder saw, used and left out, and why."""
        return self._report

    def __repr__(self) -> str:
        return f"FolderSource({self.folder!r}, {len(self):,} pairs)"

    def __getitem__(self, i: int) -> Pair:
        name = self._whole(self._path(i))
        return Pair(read_bytes(name, MAX_MEMBER), *self.text(i))

    def text(self, i: int) -> tuple[dict[str, Any], str]:
        """What is said of the i-th picture, and its name: the picture is not read."""
        path, kind = self._path(i), int(self._kinds[i])
        name = self._whole(path)
        if kind == _NONE:
            label = PurePath(name).parent.name
            return {"caption": label.replace("_", " "), "label": label}, name
        beside = self._whole(_texts(path)[kind])
        end = TEXTS[kind % len(TEXTS)]
        return parse_text(read_bytes(beside, MAX_TEXT), beside, end), name

    def _path(self, i: int) -> bytes:
        return self._paths[self._ends[i] : self._ends[i + 1]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """What changes when one of the files does: all are looked at, the first time."""
        places = zip(self._ends[:-1], self._ends[1:], self._kinds, strict=True)
        paths = []
        for start, end, kind in places:
            path = self._paths[start:end]
            paths += [path] if kind == _NONE else [path, _texts(path)[kind]]
        names = [self._whole(path) for path in paths]
        return storage.identity(names, storage.states(names))

    def _whole(self, path: bytes) -> str:
        return os.path.join(self.folder, os.fsdecode(path))
