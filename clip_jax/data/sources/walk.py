"""Lists the files of a folder and of all folders below it, local or remote.

Links are the user's own, so links to files and folders are followed, as in folders of class links
and in Hugging Face's cache. A folder is entered once, however many links lead to it, so loops end.
Paths inside *files*, such as tables, are untrusted and must not leave the folder of the images.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple

from clip_jax.data.opening import Tally
from clip_jax.data.sources import matching
from clip_jax.errors import UserError
from clip_jax.io import remote


class Folder(NamedTuple):
    """A folder below the root.

    Attributes:
      path: the path from the root, empty or ending in a slash.
      names: the names of the files.
    """

    path: bytes
    names: list[bytes]


class Listing(NamedTuple):
    """All folders below a root, in the order of their paths.

    Attributes:
      root: the path of the root.
      folders: the folders.
      tally: counts what is left out: hidden names, folders that cannot be listed, loops.
      states: the states of remote files, by their paths.
    """

    root: str
    folders: list[Folder]
    tally: Tally
    states: dict[str, remote.State]

    def files(self) -> Iterator[str]:
        """Yields the paths of all files, relative to the root."""
        for path, names in self.folders:
            yield from (os.fsdecode(path + name) for name in names)


def walk(root: str) -> Listing:
    """Lists a folder and all folders below it.

    Raises:
      UserError: the folder cannot be listed.
    """
    tally = Tally()
    if remote.is_remote(root):
        states = remote.list_files(root)
        return Listing(root, list(_remote(states, tally)), tally, states)
    return Listing(root, sorted(_local(os.fsencode(root), tally)), tally, {})


def _local(root: bytes, tally: Tally) -> Iterator[Folder]:
    waiting, links = [b""], list[bytes]()
    entered = set[tuple[int, int]]()
    while waiting or links:  # links last, so that a folder gets its own path if it has one
        inner = waiting.pop() if waiting else links.pop(0)
        path = os.path.join(root, inner)
        try:
            place = os.stat(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            if not inner:
                shown = os.fsdecode(root)
                raise UserError(f"{shown} cannot be read ({error.strerror})") from None
            tally.add("unreadable", os.fsdecode(inner))
            continue
        if (place.st_dev, place.st_ino) in entered:
            tally.add("repeated", os.fsdecode(inner))
            continue
        entered.add((place.st_dev, place.st_ino))
        names = []
        for entry in entries:
            kind = "hidden" if entry.name.startswith(b".") else _kind(entry)
            if kind == "file":
                names.append(entry.name)
            elif kind == "folder":
                (links if entry.is_symlink() else waiting).append(inner + entry.name + b"/")
            else:
                tally.add(kind, os.fsdecode(inner + entry.name))
        yield Folder(inner, names)


def _kind(entry: os.DirEntry[bytes]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "unreadable"
    except OSError:  # a circle of links
        return "unreadable"


def _remote(states: dict[str, remote.State], tally: Tally) -> Iterator[Folder]:
    visible = []
    for path in states:
        if matching.is_hidden(path):
            tally.add("hidden", path)
        else:
            visible.append(os.path.split(os.fsencode(path)))
    for inner, files in itertools.groupby(sorted(visible), key=lambda parts: parts[0]):
        yield Folder(inner + b"/" if inner else inner, [name for _, name in files])
