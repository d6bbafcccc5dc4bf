"""Random access to the image–text pairs of WebDataset tars, local or remote."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.data.example import TEXTS, Fields, Pair, PairError, parse_texts
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import tar_catalogue
from clip_jax.data.sources.matching import RULES
from clip_jax.data.sources.open_files import OpenFiles
from clip_jax.data.sources.protocol import Members, SourceOptions
from clip_jax.data.sources.tar_reader import BLOCK, FAULTS, DamageError, is_header, number
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import expand

MAX_OPEN = 256  # files; the usual limit of a process is 1,024, and a data set may have 40,000 tars
MAX_GAP = 1 << 20  # unneeded bytes in a range request for an image and its texts

_MAX_PLACES = 1 << 22  # in `layout`: hashing hundreds of millions would take long


class _OpenFile:
    """A file descriptor that is closed when its last reader releases it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False  # other threads may still read


class TarSource:
    """The pairs of the tars that a pattern names; `source[i]` reads the i-th.

    Args:
      pattern: files (braces and globs), local or remote.
      index: where the indices are kept, see `SourceOptions.index`.
      max_bad_fraction: the share of many tars that may be left out because nothing in them can be
        read; `opening_report` names them.
      image: which images of an example are used, see `matching.match`; empty for the plain one.

    Raises:
      UserError: a file is missing, or a tar cannot be read.
    """

    def __init__(
        self, pattern: str, index: str = "", max_bad_fraction: float = 0.01, image: str = ""
    ) -> None:
        self.pattern = pattern
        self.paths = expand(pattern)
        states = remote.states(self.paths)
        self.fingerprint = f"{remote.identity(self.paths, states)} {RULES}"
        self.fingerprint += f" {image}" if image else ""
        self._pairs = tar_catalogue.open_catalogue(self.paths, states, index, image)
        notes = tar_catalogue.check(self._pairs, self.paths, max_bad_fraction)
        self._report = dataclasses.replace(self._pairs.report, notes=tuple(notes))
        self._files = OpenFiles(_OpenFile, MAX_OPEN)

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns True: what no other kind matches is opened as tars, whose errors explain it."""
        return True

    @classmethod
    def open(cls, spec: str, options: SourceOptions) -> TarSource:
        """Opens the tars that a pattern names."""
        return cls(spec, options.index, options.max_bad_fraction, options.image)

    def __len__(self) -> int:
        return len(self._pairs.ends)

    def opening_report(self) -> OpeningReport:
        """Returns what opening the tars saw, used and left out, and which tars are damaged."""
        return self._report

    def files(self) -> list[tuple[str, int]]:
        """Returns the path of each tar and the number of its pairs."""
        counts = np.diff(self._pairs.starts).tolist()
        return list(zip(self.paths, counts, strict=True))

    def layout(self) -> Iterator[bytes]:
        """Yields the offsets and sizes of the members, or of a sample of a few million."""
        for places in (self._pairs.starts, self._pairs.spans, self._pairs.texts):
            yield np.ascontiguousarray(places[:: 1 + len(places) // _MAX_PLACES]).tobytes()

    def __repr__(self) -> str:
        return f"TarSource({self.pattern!r}, {len(self):,} pairs)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": tar_catalogue.to_pickle(self._pairs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pairs=tar_catalogue.from_pickle(state["_pairs"]))

    def __getitem__(self, i: int) -> Pair:
        return self._pair(i, True)

    def text(self, i: int) -> tuple[Fields, str]:
        """Returns the text fields of the i-th pair and its name.

        The image is not read if the tar is on this machine.
        """
        pair = self._pair(i, False)
        return pair.text, pair.name

    def members(self, i: int) -> Members:
        """Returns the files of the i-th pair as they are in the tar."""
        return self._members(i, True)

    def _pair(self, i: int, with_image: bool) -> Pair:
        image, texts, name = self._members(i, with_image)
        return Pair(image, parse_texts(texts, name), name)

    def _members(self, i: int, with_image: bool) -> Members:
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        tar = int(np.searchsorted(self._pairs.starts, i, side="right")) - 1
        path, (at, size, fault, end) = self.paths[tar], (int(n) for n in self._pairs.spans[i])
        name = f"{remote.redact(path)}:{self._pairs.name(i)}"
        if fault:
            raise PairError("unreadable", f"{name}: the image or its text {FAULTS[fault]}")
        first = int(self._pairs.spans[i - 1, 3]) if i else 0
        texts = self._pairs.texts[first:end].tolist()
        places = [(text_at, text_size) for text_at, text_size, _ in texts]
        try:
            if remote.is_remote(path):
                image, *raw = _fetch(path, at, size, places)
            else:
                image = self._read_bytes(path, at, size) if with_image else b""
                raw = [self._read_bytes(path, *place) for place in places]
        except OSError as error:
            raise PairError("unreadable", f"{name} cannot be read ({error.strerror})") from None
        except UserError as error:
            raise PairError("unreadable", f"{name}: {error}") from None
        ends = [TEXTS[kind] for _, _, kind in texts]
        return Members(image, list(zip(raw, ends, strict=True)), name)

    def _read_bytes(self, path: str, at: int, size: int) -> bytes:
        file = self._files[path]  # this reference keeps it open
        content = os.pread(file.number, size, at)
        if len(content) < size:
            raise UserError("it is cut short: the tar changed since the run began")
        return content


def _fetch(path: str, at: int, size: int, texts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Reads an image and its texts from a remote tar, in one range request if they are adjacent.

    The header of the image is read too, as it tells whether the tar is still the same.
    """
    spans = [(at - BLOCK, BLOCK + size), *texts]
    first, end = min(s for s, _ in spans), max(s + n for s, n in spans)
    if end - first <= sum(n for _, n in spans) + MAX_GAP:
        content = remote.read_range(path, first, end - first)
        parts = [content[s - first : s - first + n] for s, n in spans]
    else:
        parts = [remote.read_range(path, s, n) for s, n in spans]
    header, parts[0] = parts[0][:BLOCK], parts[0][BLOCK:]
    try:
        is_same = is_header(header) and number(header[124:136]) == size
    except DamageError:
        is_same = False
    if not is_same:
        raise UserError("the tar changed since the run began")
    return parts
