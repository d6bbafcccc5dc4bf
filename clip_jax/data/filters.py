"""Filtering: the pairs of a source that meet conditions, found once and up front.

So the number of pairs is known before training, and an epoch holds each of them exactly once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clip_jax.data import captions, workers
from clip_jax.data.example import Pair, PairError, only_pair_errors
from clip_jax.data.filter_conditions import Filter
from clip_jax.data.images import decoding
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import BESIDE, Source, layout, read_pair
from clip_jax.errors import UserError
from clip_jax.io import files, remote

_VERSION = 2  # of the files in the cache folder
_CHUNK = 256  # pairs that a thread or a process evaluates at a time
_BLOCK = 1 << 16  # pairs evaluated before their duplicates are looked for
_UNREADABLE, _SELECTED = -1, 0  # codes of a pair; from 1 on, the reason why it is left out
Say = Callable[[str], None]


def _sides(data: bytes) -> tuple[int, int] | None:
    """Returns the shorter and the longer side in an image's header; None if that cannot be read."""
    try:
        with decoding.open_image(data) as image:
            return min(image.size), max(image.size)
    except Exception:  # Pillow's readers fail on damage with errors of every kind
        return None


def _characters(pair: Pair, templates: Sequence[str]) -> int | None:
    """Returns the length of the caption from the first template that the pair fills, or None."""
    for template in templates:
        with contextlib.suppress(PairError):
            return len(captions.fill(template, pair.text, pair.name).strip())
    return None


def _reason(conditions: Filter, pair: Pair, templates: Sequence[str]) -> str:
    """Returns why a pair by itself does not meet the conditions; empty if it meets them."""
    if conditions.min_side or conditions.max_side or conditions.max_aspect:
        shorter, longer = _sides(pair.image) or (0, 0)
        max_side = conditions.max_side or math.inf
        if longer and (shorter < conditions.min_side or longer > max_side):
            return "size"
        if longer > (conditions.max_aspect or math.inf) * shorter:
            return "aspect"
    if conditions.min_characters or conditions.max_characters:
        count = _characters(pair, templates)
        most = conditions.max_characters or math.inf
        if count is not None and not conditions.min_characters <= count <= most:
            return "caption"
    for field in conditions.fields:
        value = captions.field_number(pair.text, field)
        if math.isnan(value):
            return f"{field}/missing"
        least, most = (
            conditions.least.get(field, -math.inf),
            conditions.most.get(field, math.inf),
        )
        if not least <= value <= most:
            return field
    return ""


def _repeated(digests: np.ndarray, at: np.ndarray, window: int) -> np.ndarray:
    """Returns which digests also occur at most `window` places earlier.

    Args:
      digests: uint64 [n, 2].
      at: int64 [n], rising: the place of each digest.
      window: the number of earlier places to compare with.

    Returns:
      bool [n].
    """
    order = np.lexsort((at, digests[:, 1], digests[:, 0]))
    are_equal = (digests[order[1:]] == digests[order[:-1]]).all(1)
    repeated = np.zeros(len(at), bool)
    repeated[order[1:]] = are_equal & (np.diff(at[order]) <= window)
    return repeated


class _Evaluation:
    """One pass over a source that evaluates the filter on every pair, in order, and gives codes.

    Images are opened no further than their header, and their bytes are read once.
    """

    def __init__(self, source: Source, conditions: Filter, templates: Sequence[str]) -> None:
        self.source, self.conditions, self.templates = source, conditions, templates
        self.codes = {reason: code for code, reason in enumerate(("", *conditions.reasons))}
        window, length = conditions.duplicates, len(source)
        self.window = length if window < 0 else min(window, length)

    def chunk(self, span: range) -> tuple[np.ndarray, np.ndarray]:
        """Evaluates the filter on some pairs.

        Returns:
          The codes of the pairs, int16 [n], and the image digests of the selected pairs, uint64
          [n, 2], or [0, 2] if duplicates are accepted.
        """
        codes = np.zeros(len(span), np.int16)
        digests = np.zeros((len(span) if self.window else 0, 2), np.uint64)
        for i, number in enumerate(span):
            try:
                pair = read_pair(self.source, number)
                with only_pair_errors("text", pair.name):
                    reason = _reason(self.conditions, pair, self.templates)
            except PairError:  # it stays in, and is counted when it is drawn
                codes[i] = _UNREADABLE
                continue
            codes[i] = self.codes[reason]
            if self.window and codes[i] == _SELECTED:
                digests[i] = np.frombuffer(hashlib.sha256(pair.image).digest()[:16], np.uint64)
        return codes, digests

    def __call__(self, threads: int, processes: int, say: Say) -> Iterator[np.ndarray]:
        """Yields the codes of all pairs, in consecutive arrays."""
        earlier, earlier_at = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
        total, block = len(self.source), max(_BLOCK, self.window)
        with workers.mapping(self.chunk, threads, processes) as map_chunks:
            for start in range(0, total, block):
                chunks = self._chunks(range(start, min(start + block, total)), map_chunks, say)
                codes, digests = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
                if self.window:
                    selected = np.flatnonzero(codes == _SELECTED)
                    seen = np.concatenate([earlier, digests[selected]])
                    at = np.concatenate([earlier_at, start + selected])
                    repeated = _repeated(seen, at, self.window)[len(earlier) :]
                    codes[selected[repeated]] = self.codes["duplicate"]
                    is_near = at >= start + len(codes) - self.window
                    earlier, earlier_at = seen[is_near], at[is_near]
                yield codes

    def _chunks(
        self, span: range, map_chunks: Callable[..., Any], say: Say
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the results of `chunk` over a block in order, and reports progress to `say`."""
        total = len(self.source)
        for part in (span[i : i + _BLOCK] for i in range(0, len(span), _BLOCK)):
            yield from map_chunks(part[i : i + _CHUNK] for i in range(0, len(part), _CHUNK))
            done = part.stop
            if done < total and done // _BLOCK % max(1, total // _BLOCK // 100) == 0:  # 100 lines
                say(f"the filter has seen {done:,} of {total:,} pairs ({done / total:.0%})")


class Selected:
    """The pairs of a source that a filter accepts, in their order.

    Args:
      source: all pairs; its `fingerprint` tells whether they are still the same.
      conditions: the filter.
      templates: the caption templates, for the conditions on characters.
      threads: the number of threads that evaluate the filter if there are no processes.
      processes: the number of processes that evaluate the filter.
      say: receives lines about the progress of a long evaluation.
      cache: `config.data.index`. If it is a folder on this machine, the cache file is there, else
        in the user's cache folder.
      key: the group of config keys, for errors.

    Attributes:
      numbers: the numbers of the selected pairs in the source, cached in a file until the data or
        the filter changes.
      left_out: the counts of the other pairs by reason, see `Filter.reasons`.

    Raises:
      UserError: no pair is left.
    """

    def __init__(
        self,
        source: Source,
        conditions: Filter,
        templates: Sequence[str] = ("{caption}",),
        *,
        threads: int = 2,
        processes: int = 0,
        say: Say = lambda line: None,
        cache: str = "",
        key: str = "config.data",
    ) -> None:
        self.source = source
        self.fingerprint = _fingerprint(source, conditions, templates)
        is_folder = cache not in ("", BESIDE) and not remote.is_remote(cache)
        folder = Path(cache) if is_folder else files.cache_folder("selection")
        self._path = folder / f"{self.fingerprint}.pairs"
        self._type = np.min_scalar_type(len(source))
        evaluation = _Evaluation(source, conditions, templates)
        if not self._load():
            # a cache that cannot be written only costs the next start some time
            with contextlib.suppress(OSError):
                with files.atomic_write(self._path) as file:
                    codes = evaluation(threads, processes, say)
                    left_out = self._write(codes, conditions, file)
                # the counts come last: they tell that the numbers are complete
                head = {"left_out": left_out, "digest": files.sampled_digest(self._path)}
                with files.atomic_write(self._path.with_suffix(".json")) as file:
                    file.write(json.dumps(head).encode())
            if not self._load():
                memory = io.BytesIO()
                codes = evaluation(threads, processes, say)
                self.left_out = self._write(codes, conditions, memory)
                self.numbers = np.frombuffer(memory.getvalue(), self._type)
        if not len(self):
            raise UserError(f"{key}.filter leaves no pair of {source!r} ({described(self)})")

    def _write(
        self, codes: Iterator[np.ndarray], conditions: Filter, file: BinaryIO
    ) -> dict[str, int]:
        """Writes the numbers of the selected pairs, and returns counts of the others by reason."""
        counts, start = np.zeros(len(conditions.reasons) + 1, np.int64), 0
        for part in codes:
            file.write((start + np.flatnonzero(part <= _SELECTED)).astype(self._type).tobytes())
            counts += np.bincount(np.maximum(part, _SELECTED), minlength=len(counts))
            start += len(part)
        return {why: int(n) for why, n in zip(conditions.reasons, counts[1:], strict=True) if n}

    def _load(self) -> bool:
        """Maps the cached numbers into memory; returns False if they are missing or damaged."""
        try:
            head = files.read_json(self._path.with_suffix(".json"))
            left_out = {str(why): int(n) for why, n in head["left_out"].items()}
            count = len(self.source) - sum(left_out.values())
            is_complete = self._path.stat().st_size == count * self._type.itemsize
            if not is_complete or files.sampled_digest(self._path) != head["digest"]:
                return False
            empty = np.zeros(0, self._type)  # an empty file cannot be mapped
            self.numbers = np.memmap(self._path, self._type, mode="r") if count else empty
        except (OSError, UserError, ValueError, TypeError, KeyError, AttributeError):
            return False
        self.left_out = left_out
        return True

    def __getstate__(self) -> dict[str, Any]:
        is_mapped = isinstance(self.numbers, np.memmap)
        return {**self.__dict__, "numbers": None if is_mapped else self.numbers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.numbers is None and not self._load():
            raise UserError(
                f"{self._path} was removed from the cache while it was in use: start again"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"Selected({self.source!r}, {len(self):,} pairs)"

    def opening_report(self) -> OpeningReport:
        """Returns the opening report of the source, without what the filter leaves out."""
        return self.source.opening_report()

    def layout(self) -> Iterator[bytes]:
        """Yields the numbers of the selected pairs as bytes, then the layout of the source."""
        yield np.asarray(self.numbers).tobytes()
        yield from layout(self.source)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        return self.source[int(self.numbers[i])]


def _fingerprint(source: Source, conditions: Filter, templates: Sequence[str]) -> str:
    """Returns a hash that changes when the selected pairs may change."""
    values = dataclasses.asdict(conditions)
    if conditions.min_characters or conditions.max_characters:
        values["templates"] = list(templates)
    state = [_VERSION, source.fingerprint, len(source), values]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]


def described(selected: Selected) -> str:
    """Formats how many pairs a filter left out and why: `300 of 1,000: size 200, duplicate 100`."""
    total = sum(selected.left_out.values())
    reasons = ", ".join(f"{why} {n:,}" for why, n in selected.left_out.items())
    return f"{total:,} of {len(selected) + total:,}" + (f": {reasons}" if reasons else "")
