"""Random access to the image–text pairs of WebDataset tars, here or far away."""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np

from clip_jax.data import catalogue, storage
from clip_jax.data.headers import BLOCK, FAULTS, DamageError, is_header, number
from clip_jax.data.held import Held
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.pairs import TEXTS, Pair, PairError, parse_text
from clip_jax.data.paths import expand
from clip_jax.errors import UserError

MAX_OPEN = 256  # files; a process may open 1,024 on many machines, and a data set have 40,000 tars
MAX_GAP = 1 << 20  # bytes fetched in vain where picture and text come from far away at once


class _Open:
    """A file open for reading, closed when the last reader has let go of it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False  # others may still read


class TarSource:
    """The pairs of the tars that a pattern names; `source[i]` reads the i-th.

    Args:
      pattern: files (braces and globs), here or far away.
      index: where what stands where is kept: '' the user's cache folder, 'beside' each tar, or a
        folder, here or far away.
      max_bad_fraction: of many tars, those that may be left out because nothing in them can be
        read; `opening_report` says which.

    Raises:
      UserError: no such file, or a tar that cannot be read.
    """

    def __init__(self, pattern: str, index: str = "", max_bad_fraction: float = 0.01) -> None:
        self.pattern = pattern
        self.paths = expand(pattern)
        states = storage.states(self.paths)
        self.fingerprint = storage.identity(self.paths, states)
        self._pairs = catalogue.of(self.paths, states, index)
        self._notes = tuple(catalogue.check(self._pairs, self.paths, max_bad_fraction))
        self._files = Held(_Open, MAX_OPEN)

    def __len__(self) -> int:
        return len(self._pairs.ends)

    def opening_report(self) -> OpeningReport:
        """What opening the tars saw, used and left out, and which are damaged."""
        return all_used(len(self), "members", self._notes)

    def __repr__(self) -> str:
        return f"TarSource({self.pattern!r}, {len(self):,} pairs)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": catalogue.shared(self._pairs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pairs=catalogue.received(state["_pairs"]))

    def __getitem__(self, i: int) -> Pair:
        return self._pair(i, True)

    def text(self, i: int) -> tuple[dict[str, Any], str]:
        """What is written about the i-th picture, and its name: the picture is not read."""
        pair = self._pair(i, False)
        return pair.text, pair.name

    def _pair(self, i: int, with_image: bool) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        tar = int(np.searchsorted(self._pairs.starts, i, side="right")) - 1
        path, (at, size, *span, kind) = self.paths[tar], (int(n) for n in self._pairs.spans[i])
        name = f"{storage.shown(path)}:{self._pairs.name(i)}"
        if fault := kind >> 2:
            raise PairError("unreadable", f"{name}: the picture or its text {FAULTS[fault]}")
        far = storage.is_remote(path)
        try:
            if with_image or far:
                image, text = (_from_afar if far else self._from_here)(path, at, size, *span)
            else:
                image, text = b"", self._bytes(path, *span)
        except OSError as error:
            raise PairError("unreadable", f"{name} cannot be read ({error.strerror})") from None
        except UserError as error:
            raise PairError("unreadable", f"{name}: {error}") from None
        return Pair(image, parse_text(text, name, TEXTS[kind & 3]), name)

    def _from_here(
        self, path: str, at: int, size: int, text_at: int, text_size: int
    ) -> tuple[bytes, bytes]:
        return self._bytes(path, at, size), self._bytes(path, text_at, text_size)

    def _bytes(self, path: str, at: int, size: int) -> bytes:
        file = self._files[path]  # stays open as long as it is held
        found = os.pread(file.number, size, at)
        if len(found) < size:
            raise UserError("it is cut short: the tar changed since the run began")
        return found


def _from_afar(path: str, at: int, size: int, text_at: int, text_size: int) -> tuple[bytes, bytes]:
    """Picture and text, in one question where they stand together.

    The header before the picture comes too: it tells whether the tar is still the same.
    """
    spans = ((at - BLOCK, BLOCK + size), (text_at, text_size))
    first, end = min(s for s, _ in spans), max(s + n for s, n in spans)
    if end - first <= size + text_size + MAX_GAP:
        found = storage.read(path, first, end - first)
        image, text = (found[s - first : s - first + n] for s, n in spans)
    else:
        image, text = (storage.read(path, s, n) for s, n in spans)
    header, image = image[:BLOCK], image[BLOCK:]
    try:
        same = is_header(header) and number(header[124:136]) == size
    except DamageError:
        same = False
    if not same:
        raise UserError("the tar changed since the run began")
    return image, text
