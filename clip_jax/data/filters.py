"""The pairs of a source that meet conditions, found once and up front: epochs stay exact."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clip_jax.data import captions, workers
from clip_jax.data.example import Pair, PairError, only_pair_errors
from clip_jax.data.images import decoding
from clip_jax.data.opening import OpeningReport
from clip_jax.data.sources import Source, layout, read_pair
from clip_jax.data.sources.tar_index import BESIDE
from clip_jax.errors import UserError
from clip_jax.io import files, remote

_VERSION = 1  # of what is kept in the cache folder
_STEP = 256  # pairs that a thread or a process judges at a time
_BLOCK = 1 << 16  # pairs judged before their duplicates are looked for
_FIELDS = 50  # in conditions
_UNSEEN, _KEPT = -1, 0  # codes of a pair; from 1 on, why it is left out
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Filter:
    """Conditions on a pair. The defaults, zero or nothing, leave all in.

    min_side: pixels, at least, of the picture's shorter side. max_side: at most, of its longer.
    max_aspect: at most, of the longer side over the shorter.
    min_characters, max_characters: of the caption through the first template that can be filled,
      lists whole.
    least, most: bounds of fields that are numbers, or text that is one: `{"similarity": 0.3}`.
      A pair that lacks the field is left out.
    duplicates: a pair is left out when its picture has the very bytes of that of one of so many
      pairs before it, of those that meet the other conditions; -1: of all before it.

    A pair that is broken stays in, to be counted when it is drawn: one that cannot be read at all
    meets every condition, a picture that cannot be opened those on its size, a pair of which no
    template makes a caption those on its characters.
    """

    min_side: int = 0
    max_side: int = 0
    max_aspect: float = 0.0
    min_characters: int = 0
    max_characters: int = 0
    least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    duplicates: int = 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], key: str = "config.data.filter") -> Filter:
        """From a config's group of keys, which errors call `key`.

        Raises:
          UserError: an unknown key, or a value that is no such bound.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{key}={values!r:.200} must hold conditions such as min_side")
        known, given = [field.name for field in dataclasses.fields(cls)], dict[str, Any]()
        for name, value in values.items():
            if name not in known:
                raise UserError(f"unknown config key {key}.{name}; known: {', '.join(known)}")
            if name in ("least", "most"):
                given[name] = _bounds(f"{key}.{name}", value)
                continue
            whole = name != "max_aspect"
            if not _is_number(value) or (whole and not isinstance(value, int)):
                raise UserError(f"{key}.{name}={value!r} must be a {'whole ' * whole}number")
            lowest = -1 if name == "duplicates" else 0
            if not lowest <= value < math.inf:
                raise UserError(f"{key}.{name}={value!r} must be at least {lowest}")
            given[name] = value if whole else float(value)
        found = cls(**given)
        found._check_ends(key)
        return found

    def _check_ends(self, key: str) -> None:
        if 0 < self.max_aspect < 1:
            raise UserError(
                f"{key}.max_aspect={self.max_aspect} must be at least 1 (a square), or 0: any"
            )
        ends = [
            ("min_side", self.min_side, "max_side", self.max_side or math.inf),
            ("min_characters", self.min_characters, "max_characters", self.max_characters or 1e9),
            *(
                (f"least.{f}", self.least[f], f"most.{f}", self.most[f])
                for f in self.least.keys() & self.most.keys()
            ),
        ]
        for low, least, high, most in ends:
            if least > most:
                raise UserError(f"{key}.{low}={least:g} is above {key}.{high}={most:g}")

    def __bool__(self) -> bool:
        return self != Filter()

    @property
    def fields(self) -> list[str]:
        """Those with bounds."""
        return sorted(self.least.keys() | self.most.keys())

    @property
    def reasons(self) -> list[str]:
        """Why a pair may be left out; the first of them counts."""
        of_fields = [f"{field}{why}" for field in self.fields for why in ("", "/missing")]
        return ["size", "aspect", "caption", *of_fields, "duplicate"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bounds(key: str, bounds: Any) -> dict[str, float]:
    """Of fields."""
    good = isinstance(bounds, Mapping) and all(
        isinstance(field, str) and _is_number(bound) and math.isfinite(bound)
        for field, bound in bounds.items()
    )
    if not good:
        raise UserError(f"{key}={bounds!r:.200} must hold a number for each field it names")
    if len(bounds) > _FIELDS:
        raise UserError(f"{key} has {len(bounds)} fields: at most {_FIELDS}")
    return {field: float(bound) for field, bound in bounds.items()}


def _number(value: Any) -> float:
    """A field as a number; not a number where it is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _size(data: bytes) -> tuple[int, int] | None:
    """Shorter and longer side of a picture by its header; None where that cannot be read."""
    try:
        with decoding.opened(data) as image:
            return min(image.size), max(image.size)
    except Exception:  # Pillow's readers fail on damage with errors of every kind
        return None


def _characters(pair: Pair, templates: Sequence[str]) -> int | None:
    for template in templates:
        with contextlib.suppress(PairError):
            return len(captions.fill(template, pair.text, pair.name).strip())
    return None


def _why(wanted: Filter, pair: Pair, templates: Sequence[str]) -> str:
    """Why a pair does not meet the conditions on it alone; empty if it does."""
    if wanted.min_side or wanted.max_side or wanted.max_aspect:
        shorter, longer = _size(pair.image) or (0, 0)
        if longer and (shorter < wanted.min_side or longer > (wanted.max_side or math.inf)):
            return "size"
        if longer > (wanted.max_aspect or math.inf) * shorter:
            return "aspect"
    if wanted.min_characters or wanted.max_characters:
        count = _characters(pair, templates)
        most = wanted.max_characters or math.inf
        if count is not None and not wanted.min_characters <= count <= most:
            return "caption"
    for field in wanted.fields:
        value = _number(captions.find(pair.text, field))
        if math.isnan(value):
            return f"{field}/missing"
        if not wanted.least.get(field, -math.inf) <= value <= wanted.most.get(field, math.inf):
            return field
    return ""


def _repeated(digests: np.ndarray, at: np.ndarray, window: int) -> np.ndarray:
    """Which of digests, uint64 [n, 2], are there within `window` places before; bool [n].

    at: int64 [n], rising: the place of each.
    """
    order = np.lexsort((at, digests[:, 1], digests[:, 0]))
    alike = (digests[order[1:]] == digests[order[:-1]]).all(1)
    found = np.zeros(len(at), bool)
    found[order[1:]] = alike & (np.diff(at[order]) <= window)
    return found


class _Judge:
    """One pass over a source: the codes of its pairs, in order.

    A picture is opened no further than its header, and its bytes are read once.
    """

    def __init__(self, source: Source, wanted: Filter, templates: Sequence[str]) -> None:
        self.source, self.wanted, self.templates = source, wanted, templates
        self.codes = {why: code for code, why in enumerate(("", *wanted.reasons))}
        whole = len(source)
        self.window = whole if wanted.duplicates < 0 else min(wanted.duplicates, whole)

    def some(self, span: range) -> tuple[np.ndarray, np.ndarray]:
        """Codes of some pairs, int16 [n], and digests of those kept, uint64 [n or 0, 2]."""
        codes = np.zeros(len(span), np.int16)
        digests = np.zeros((len(span) if self.window else 0, 2), np.uint64)
        for i, number in enumerate(span):
            try:
                pair = read_pair(self.source, number)
                with only_pair_errors("text", pair.name):
                    why = _why(self.wanted, pair, self.templates)
            except PairError:  # it stays in, and is counted when it is drawn
                codes[i] = _UNSEEN
                continue
            codes[i] = self.codes[why]
            if self.window and codes[i] == _KEPT:
                digests[i] = np.frombuffer(hashlib.sha256(pair.image).digest()[:16], np.uint64)
        return codes, digests

    def __call__(self, threads: int, processes: int, say: Say) -> Iterator[np.ndarray]:
        """The codes of all pairs, in arrays one after the other."""
        held, held_at = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
        whole, block = len(self.source), max(_BLOCK, self.window)
        with workers.mapping(self.some, threads, processes) as judged:
            for start in range(0, whole, block):
                found = self._parts(range(start, min(start + block, whole)), judged, say)
                codes, digests = (np.concatenate(parts) for parts in zip(*found, strict=True))
                if self.window:
                    kept = np.flatnonzero(codes == _KEPT)
                    seen = np.concatenate([held, digests[kept]])
                    at = np.concatenate([held_at, start + kept])
                    again = _repeated(seen, at, self.window)[len(held) :]
                    codes[kept[again]] = self.codes["duplicate"]
                    near = at >= start + len(codes) - self.window
                    held, held_at = seen[near], at[near]
                yield codes

    def _parts(self, span: range, judged: Callable[..., Any], say: Say) -> Iterator[Any]:
        """What `some` gives for the parts of a block, in order; says how far it is."""
        whole = len(self.source)
        for some in (span[i : i + _BLOCK] for i in range(0, len(span), _BLOCK)):
            yield from judged(some[i : i + _STEP] for i in range(0, len(some), _STEP))
            done = some.stop
            if done < whole and done // _BLOCK % max(1, whole // _BLOCK // 100) == 0:  # 100 lines
                say(f"the filter has seen {done:,} of {whole:,} pairs ({done / whole:.0%})")


class Selected:
    """The pairs of a source that a filter leaves in, in their order.

    `kept` are their numbers in the source, in a file until the data or the filter changes;
    `left_out` counts the others by reason, see `Filter.reasons`.

    Args:
      source: of all pairs; its `fingerprint` tells whether they are still the same.
      wanted: the conditions.
      templates: of captions whose characters are counted.
      threads, processes: that read pairs at once in the pass that finds out; 0 processes: threads
        of this one alone.
      say: takes a line now and then during a long one.
      place: `config.data.index`; where it is a folder on this machine, the file is there, else in
        the user's cache folder.
      key: what an error calls the source's place in the config.

    Raises:
      UserError: no pair is left.
    """

    def __init__(
        self,
        source: Source,
        wanted: Filter,
        templates: Sequence[str] = ("{caption}",),
        *,
        threads: int = 2,
        processes: int = 0,
        say: Say = lambda line: None,
        place: str = "",
        key: str = "config.data",
    ) -> None:
        self.source = source
        self.fingerprint = _fingerprint(source, wanted, templates)
        shared = place not in ("", BESIDE) and not remote.is_remote(place)
        folder = Path(place) if shared else files.cache_folder("selection")
        self._path = folder / f"{self.fingerprint}.pairs"
        self._type = np.min_scalar_type(len(source))
        judge = _Judge(source, wanted, templates)
        if not self._load():
            # a cache that cannot be written only costs the next start some time
            with contextlib.suppress(OSError):
                with files.whole(self._path) as file:
                    left_out = self._write(judge(threads, processes, say), wanted, file)
                with files.whole(self._path.with_suffix(".json")) as file:  # last: now it is whole
                    file.write(json.dumps(left_out).encode())
            if not self._load():
                held = io.BytesIO()
                self.left_out = self._write(judge(threads, processes, say), wanted, held)
                self.kept = np.frombuffer(held.getvalue(), self._type)
        if not len(self):
            raise UserError(f"{key}.filter leaves no pair of {source!r} ({described(self)})")

    def _write(self, codes: Iterator[np.ndarray], wanted: Filter, file: BinaryIO) -> dict[str, int]:
        counts, start = np.zeros(len(wanted.reasons) + 1, np.int64), 0
        for some in codes:
            file.write((start + np.flatnonzero(some <= _KEPT)).astype(self._type).tobytes())
            counts += np.bincount(np.maximum(some, _KEPT), minlength=len(counts))
            start += len(some)
        return {why: int(n) for why, n in zip(wanted.reasons, counts[1:], strict=True) if n}

    def _load(self) -> bool:
        """Maps what `_write` left into memory; False where that is not all of it."""
        try:
            found = files.read_json(self._path.with_suffix(".json"))
            left_out = {str(why): int(n) for why, n in found.items()}
            count = len(self.source) - sum(left_out.values())
            if self._path.stat().st_size != count * self._type.itemsize:
                return False
            empty = np.zeros(0, self._type)  # which cannot be mapped
            self.kept = np.memmap(self._path, self._type, mode="r") if count else empty
        except (OSError, UserError, ValueError, TypeError):
            return False
        self.left_out = left_out
        return True

    def __getstate__(self) -> dict[str, Any]:
        mapped = isinstance(self.kept, np.memmap)
        return {**self.__dict__, "kept": None if mapped else self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.kept is None and not self._load():
            raise UserError(
                f"{self._path} was removed from the cache while it was in use: start again"
            )

    def __len__(self) -> int:
        return len(self.kept)

    def __repr__(self) -> str:
        return f"Selected({self.source!r}, {len(self):,} pairs)"

    def opening_report(self) -> OpeningReport:
        """The source's own; what the filter left out is `left_out`."""
        return self.source.opening_report()

    def layout(self) -> Iterator[bytes]:
        """The source's own, and the pairs that are left in."""
        yield np.asarray(self.kept).tobytes()
        yield from layout(self.source)

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        return self.source[int(self.kept[i])]


def _fingerprint(source: Source, wanted: Filter, templates: Sequence[str]) -> str:
    """What changes when the pairs that are left in may."""
    values = dataclasses.asdict(wanted)
    if wanted.min_characters or wanted.max_characters:
        values["templates"] = list(templates)
    state = [_VERSION, source.fingerprint, len(source), values]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]


def described(selected: Selected) -> str:
    """How many pairs a filter left out, and why: `300 of 1,000: size 200, duplicate 100`."""
    total = sum(selected.left_out.values())
    reasons = ", ".join(f"{why} {n:,}" for why, n in selected.left_out.items())
    return f"{total:,} of {len(selected) + total:,}" + (f": {reasons}" if reasons else "")
