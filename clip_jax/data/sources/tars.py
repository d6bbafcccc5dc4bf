"""Random access to the image–text pairs of WebDataset tars, here or far away."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.data.example import TEXTS, Pair, PairError, parse_texts
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import tar_catalogue
from clip_jax.data.sources.matching import RULES
from clip_jax.data.sources.open_files import Held
from clip_jax.data.sources.protocol import SourceOptions
from clip_jax.data.sources.tar_reader import BLOCK, FAULTS, DamageError, is_header, number
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import expand

MAX_OPEN = 256  # files; a process may open 1,024 on many machines, and a data set have 40,000 tars
MAX_GAP = 1 << 20  # bytes fetched in vain where picture and text come from far away at once

_MOST_PLACES = 1 << 22  # of `layout`: of hundreds of millions all would take a while


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
      image: which pictures of an example are used, see `matching.match`; empty: the plain one.

    Raises:
      UserError: no such file, or a tar that cannot be read.
    """

    def __init__(
        self, pattern: str, index: str = "", max_bad_fraction: float = 0.01, image: str = ""
    ) -> None:
        self.pattern = pattern
        self.paths = expand(pattern)
        states = remote.states(self.paths)
        self.fingerprint = f"{remote.identity(self.paths, states)} {RULES}"
        self.fingerprint += f" {image}" if image else ""
        self._pairs = tar_catalogue.of(self.paths, states, index, image)
        notes = tar_catalogue.check(self._pairs, self.paths, max_bad_fraction)
        self._report = dataclasses.replace(self._pairs.report, notes=tuple(notes))
        self._files = Held(_Open, MAX_OPEN)

    @staticmethod
    def matches(spec: str) -> bool:
        """Always: what no other kind matches is read as tars, which say what is wrong with it."""
        return True

    @classmethod
    def open(cls, spec: str, options: SourceOptions) -> TarSource:
        """Opens the tars that a pattern names."""
        return cls(spec, options.index, options.max_bad_fraction, options.image)

    def __len__(self) -> int:
        return len(self._pairs.ends)

    def opening_report(self) -> OpeningReport:
        """What opening the tars saw, used and left out, and which are damaged."""
        return self._report

    def layout(self) -> Iterator[bytes]:
        """Where the members of pairs stand, and how large they are, in a few million places."""
        for places in (self._pairs.starts, self._pairs.spans, self._pairs.texts):
            yield np.ascontiguousarray(places[:: 1 + len(places) // _MOST_PLACES]).tobytes()

    def __repr__(self) -> str:
        return f"TarSource({self.pattern!r}, {len(self):,} pairs)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": tar_catalogue.shared(self._pairs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pairs=tar_catalogue.received(state["_pairs"]))

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
        path, (at, size, fault, end) = self.paths[tar], (int(n) for n in self._pairs.spans[i])
        name = f"{remote.shown(path)}:{self._pairs.name(i)}"
        if fault:
            raise PairError("unreadable", f"{name}: the picture or its text {FAULTS[fault]}")
        first = int(self._pairs.spans[i - 1, 3]) if i else 0
        texts = self._pairs.texts[first:end].tolist()
        places = [(text_at, text_size) for text_at, text_size, _ in texts]
        try:
            if remote.is_remote(path):
                image, *raw = _from_afar(path, at, size, places)
            else:
                image = self._bytes(path, at, size) if with_image else b""
                raw = [self._bytes(path, *place) for place in places]
        except OSError as error:
            raise PairError("unreadable", f"{name} cannot be read ({error.strerror})") from None
        except UserError as error:
            raise PairError("unreadable", f"{name}: {error}") from None
        ends = [TEXTS[kind] for _, _, kind in texts]
        return Pair(image, parse_texts(zip(raw, ends, strict=True), name), name)

    def _bytes(self, path: str, at: int, size: int) -> bytes:
        file = self._files[path]  # stays open as long as it is held
        found = os.pread(file.number, size, at)
        if len(found) < size:
            raise UserError("it is cut short: the tar changed since the run began")
        return found


def _from_afar(path: str, at: int, size: int, texts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Picture and texts, in one question where they stand together.

    The header before the picture comes too: it tells whether the tar is still the same.
    """
    spans = [(at - BLOCK, BLOCK + size), *texts]
    first, end = min(s for s, _ in spans), max(s + n for s, n in spans)
    if end - first <= sum(n for _, n in spans) + MAX_GAP:
        whole = remote.read(path, first, end - first)
        found = [whole[s - first : s - first + n] for s, n in spans]
    else:
        found = [remote.read(path, s, n) for s, n in spans]
    header, found[0] = found[0][:BLOCK], found[0][BLOCK:]
    try:
        same = is_header(header) and number(header[124:136]) == size
    except DamageError:
        same = False
    if not same:
        raise UserError("the tar changed since the run began")
    return found
