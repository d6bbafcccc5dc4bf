"""What stands where in one tar: an index, built once and kept.

A sample is the run of members whose names agree up to the first dot: `0001.jpg`, `0001.txt`.
Each picture of a sample is a pair with the sample's text; `0001.a.png` and `0001.b.png` are two.

An index lies where `config.data.index` says: in the user's cache folder (''), 'beside' the tar as
`0001.tar.index`, or in a folder, which may be far away. One that lies beside its tar is used
whatever the config says. An index fits a tar of the same size whose time or version is the same, or
else whose headers are, at eight places and at the end: so it stays right for a copy of both.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_jax import files
from clip_jax.data import storage
from clip_jax.data.headers import BLOCK, DamageError, Member, members
from clip_jax.data.pairs import IMAGES, TEXTS
from clip_jax.errors import UserError

BESIDE = "beside"
_VERSION = 5  # of the kept index
_PLACES = 8  # headers compared
_PACKED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}


class Index(NamedTuple):
    """Where the pairs of one tar stand.

    spans: int64 [pairs, 5]: offset and size of the picture, of its text, and a kind: which of
      `pairs.TEXTS` that is, plus four times the number in `headers.FAULTS` of what makes the pair
      unreadable.
    names, ends: the pictures' names in UTF-8, uint8 [bytes], and where each ends, int64 [pairs].
    flaw: why the rest of the tar cannot be read, or why nothing; empty where nothing is wrong.
    end: the byte where the archive ends, 0 where that was not found.
    """

    spans: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    flaw: str
    end: int

    def name(self, i: int) -> str:
        """The name of the i-th picture."""
        return name_at(self.names, self.ends, i)


def name_at(names: np.ndarray, ends: np.ndarray, i: int) -> str:
    """The i-th of names that stand one after the other as bytes."""
    start = int(ends[i - 1]) if i else 0
    return bytes(names[start : ends[i]]).decode(errors="surrogateescape")


def text_kind(name: str) -> int:
    """Which of `TEXTS` a file's name ends in."""
    return next(i for i, end in enumerate(TEXTS) if name.lower().endswith(end))


def _pairs(sample: list[Member]) -> Iterator[tuple[Member, Member]]:
    texts = [m for end in TEXTS for m in sample if m.name.lower().endswith(end)]
    if texts:
        yield from ((m, texts[0]) for m in sample if m.name.lower().endswith(IMAGES))


def _samples(found: Iterable[Member]) -> Iterator[list[Member]]:
    def key(member: Member) -> str:
        folder, slash, base = member.name.rpartition("/")
        return folder + slash + base.split(".", 1)[0]

    seen = (m for m in found if not m.name.rpartition("/")[2].startswith("."))
    yield from (list(run) for _, run in itertools.groupby(seen, key))


def scan(path: str) -> Index:
    """Reads the headers of a tar, to where it is damaged.

    Raises:
      UserError: the file is missing, cannot be read, or is compressed.
    """
    spans, ends, names, flaws, end = array("q"), array("q"), bytearray(), list[str](), 0

    def found() -> Iterator[Member]:
        nonlocal end
        try:
            end = yield from members(file, file.seek(0, os.SEEK_END))
        except DamageError as damage:
            flaws.append(str(damage))

    try:
        with storage.open_file(path) as file:
            if how := _PACKED.get(file.read(2)):
                raise UserError(
                    f"{storage.shown(path)} is compressed, and so has no random access: {how} it"
                )
            for sample in _samples(found()):
                for image, text in _pairs(sample):
                    kind = text_kind(text.name) + 4 * (image.fault or text.fault)
                    spans.extend((image.at, image.size, text.at, text.size, kind))
                    names += image.name.encode(errors="surrogateescape")
                    ends.append(len(names))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    flaw = f"it is cut short or not a tar ({flaws[0]}): fetch it again" if flaws else ""
    if not ends and not flaws:
        flaw = "it holds no pair: expected members such as 0001.jpg with 0001.txt or 0001.json"
    return Index(*_arrays(spans.tobytes(), ends.tobytes(), bytes(names)), flaw, end)


def _arrays(spans: bytes, ends: bytes, names: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.frombuffer(spans, np.int64).reshape(-1, 5),
        np.frombuffer(names, np.uint8),
        np.frombuffer(ends, np.int64),
    )


def _marks(path: str, found: Index) -> str:
    """A hash of some of a tar's headers, which say how long all between them is, and of its end.

    Empty where only a look at all of the tar would tell that it is the same.
    """
    if found.flaw or not len(found.ends):
        return ""
    chosen = np.linspace(0, len(found.ends) - 1, _PLACES).astype(int)
    places = [*sorted({int(found.spans[i, 0]) - BLOCK for i in chosen}), found.end]
    if storage.is_remote(path):
        blocks = [storage.read(path, at, BLOCK) for at in places]
    else:
        with open(path, "rb") as file:
            blocks = [os.pread(file.fileno(), BLOCK, at) for at in places]
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def _pack(path: str, state: storage.State, found: Index) -> bytes:
    head = {
        **dict(version=_VERSION, size=state.size, tag=state.tag, marks=_marks(path, found)),
        **dict(pairs=len(found.ends), names=len(found.names), flaw=found.flaw, end=found.end),
    }
    body = found.spans.tobytes() + found.ends.tobytes() + found.names.tobytes()
    return json.dumps(head).encode() + b"\n" + zlib.compress(body, 1)


def _unpack(raw: bytes, path: str, state: storage.State) -> Index | None:
    """The index that `_pack` made, where it is one, and of this tar."""
    try:
        line, _, body = raw.partition(b"\n")
        head = json.loads(line)
        if (head["version"], head["size"]) != (_VERSION, state.size):
            return None
        pairs, flaw, end = int(head["pairs"]), str(head["flaw"]), int(head["end"])
        sizes = (40 * pairs, 8 * pairs, int(head["names"]))
        if min(sizes) < 0 or sum(sizes) > state.size + BLOCK:  # two headers a pair take more
            return None
        plain = zlib.decompressobj().decompress(body, sum(sizes) + 1)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error, OverflowError):
        return None
    if len(plain) != sum(sizes):
        return None
    parts = np.split(np.frombuffer(plain, np.uint8), np.cumsum(sizes)[:-1])
    spans, names, ends = _arrays(parts[0].tobytes(), parts[1].tobytes(), parts[2].tobytes())
    found = Index(spans, names, ends, flaw, end)
    if not _is_sound(found, state.size):
        return None
    if state.tag and head.get("tag") == state.tag:
        return found
    marks = _marks(path, found)
    return found if marks and head.get("marks") == marks else None


def _is_sound(found: Index, size: int) -> bool:
    """Whether all that an index says lies in a tar of that size."""
    if not len(found.ends):
        return not len(found.names)
    at, last = found.spans[:, (0, 2)], found.spans[:, (0, 2)] + found.spans[:, (1, 3)]
    inside = (at >= BLOCK).all() and (last >= at).all() and (last <= size).all()
    rising = found.ends[0] >= 0 and (np.diff(found.ends) >= 0).all()
    whole = found.ends[-1] == len(found.names) and 0 <= found.end < size
    return bool(inside and rising and whole)


def _beside(path: str) -> str:
    return f"{path}.index"


def home(place: str) -> str:
    """The folder where indices are kept: `place`, or the user's cache folder."""
    return place if place not in ("", BESIDE) else str(files.cache_folder("index"))


def _in(folder: str, path: str) -> str:
    where = path if storage.is_remote(path) else os.path.abspath(path)
    return os.path.join(folder, f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}.index")


def _load(kept: str, path: str, state: storage.State) -> Index | None:
    try:
        if not storage.is_remote(kept):
            if os.path.getsize(kept) > state.size + (1 << 20):
                return None
            return _unpack(Path(kept).read_bytes(), path, state)
        return _unpack(storage.whole(kept, state.size + (1 << 20)), path, state)
    except (OSError, UserError):
        return None


def of(path: str, place: str = "", state: storage.State | None = None) -> Index:
    """`scan(path)`, kept until the tar changes.

    Args:
      place: '' the user's cache folder, 'beside' the tar, or a folder, here or far away.
      state: of the tar, where it is known.

    Raises:
      UserError: as `scan`.
    """
    state = state or storage.state(path)
    usual = _beside(path) if place == BESIDE else _in(home(place), path)
    places = dict.fromkeys((usual, _beside(path), _in(home(""), path)))
    for kept in places:
        if found := _load(kept, path, state):
            return found
    found = scan(path)
    raw = _pack(path, state, found)
    for kept in dict.fromkeys(
        (usual, _in(home(""), path))
    ):  # the folder of a tar may not be ours to write to
        # an index that cannot be kept only costs the next start some time
        with contextlib.suppress(OSError):
            storage.write(kept, raw)
            break
    return found
