"""What stands where in one tar: an index, built once and kept.

Members may stand in any order; `matching` says which pictures and texts belong together.

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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_jax.data.example import TEXTS
from clip_jax.data.opening import OpeningReport, Tally, quoted
from clip_jax.data.sources import matching
from clip_jax.data.sources.disguises import disguise, packed
from clip_jax.data.sources.endings import TABLES
from clip_jax.data.sources.protocol import BESIDE
from clip_jax.data.sources.tar_reader import BLOCK, FAULTS, DamageError, Member, is_header, members
from clip_jax.errors import UserError
from clip_jax.io import files, remote
from clip_jax.io.paths import suffix

_VERSION = 7  # of the kept index
_PLACES = 8  # headers compared
_WIDTH = 1 + len(TEXTS)  # members of a pair at most


class Index(NamedTuple):
    """Where the pairs of one tar stand.

    spans: int64 [pairs, 4]: offset and size of the picture, the number in `tar_reader.FAULTS` of
      what makes the pair unreadable, and how many texts this pair and those before it have.
    texts: int64 [texts, 3]: offset, size, and which of `example.TEXTS` it is; a pair's texts stand
      together, in that order.
    names, ends: the pictures' names in UTF-8, uint8 [bytes], and where each ends, int64 [pairs].
    flaw: why the rest of the tar cannot be read, or why nothing; empty where nothing is wrong.
    end: the byte where the archive ends, 0 where that was not found.
    report: the members that were seen, used and left out.
    """

    spans: np.ndarray
    texts: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    flaw: str
    end: int
    report: OpeningReport

    def name(self, i: int) -> str:
        """The name of the i-th picture."""
        return name_at(self.names, self.ends, i)


def name_at(names: np.ndarray, ends: np.ndarray, i: int) -> str:
    """The i-th of names that stand one after the other as bytes."""
    start = int(ends[i - 1]) if i else 0
    return bytes(names[start : ends[i]]).decode(errors="surrogateescape")


class _Members:
    """The members of a tar in little memory: a tar may hold millions."""

    def __init__(self) -> None:
        self._places = array("q")  # offset, size and fault of each
        self._names, self._ends = bytearray(), array("q")
        self._keys = array("q")  # hashes of what pictures and texts that belong together share

    def add(self, member: Member) -> None:
        """Takes the next member."""
        self._places.extend((member.at, member.size, member.fault))
        self._names += member.name.encode(errors="surrogateescape")
        self._ends.append(len(self._names))
        self._keys.append(hash(_key(member.name)))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> Member:
        start = self._ends[i - 1] if i else 0
        name = self._names[start : self._ends[i]].decode(errors="surrogateescape")
        return Member(name, *self._places[3 * i : 3 * i + 3])

    def groups(self) -> Iterator[list[tuple[int, Member]]]:
        """The numbers and members of each key, in their order."""
        keys = np.frombuffer(self._keys, np.int64)
        order = np.argsort(keys, kind="stable")
        ends = [*(np.flatnonzero(np.diff(keys[order])) + 1).tolist(), len(order)]
        for start, end in itertools.pairwise([0, *ends]):
            of_key: dict[tuple[str, str], list[tuple[int, Member]]] = {}
            for i in order[start:end].tolist():  # hashes may collide
                of_key.setdefault(_key((member := self[i]).name), []).append((i, member))
            yield from of_key.values()


def _key(name: str) -> tuple[str, str]:
    """The folder of a member, and what the names of an example's files agree in."""
    folder, _, base = name.rpartition("/")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    root = "/" if name.startswith("/") else ""
    return root + "/".join(parts), matching.short_key(base)


def _index(seen: _Members, image: str, flaw: str, end: int) -> Index:
    """What `scan` gives of the members of a tar."""
    tally, used, rows = Tally(), np.zeros(len(seen), bool), array("q")
    for group in seen.groups():
        shown = [(i, member) for i, member in group if not matching.is_hidden(member.name)]
        if len(shown) < len(group):
            hidden = next(m.name for _, m in group if matching.is_hidden(m.name))
            tally.add("hidden", hidden, len(group) - len(shown))
        bases = [member.name.rpartition("/")[2] for _, member in shown]
        examples, left_out = matching.match(bases, image)
        for i, reason in left_out.items():
            tally.add(reason, shown[i][1].name)
        for example in examples:
            numbers = [shown[i][0] for i in (example.picture, *example.texts)]
            used[numbers] = True
            rows.extend(numbers + [-1] * (_WIDTH - len(numbers)))
    spans, texts, names, ends = array("q"), array("q"), bytearray(), array("q")
    table = np.frombuffer(rows, np.int64).reshape(-1, _WIDTH)
    for row in table[np.argsort(table[:, 0])]:
        member, *beside = (seen[i] for i in row.tolist() if i >= 0)
        for text in beside:
            texts.extend((text.at, text.size, TEXTS.index(_ending(text.name))))
        fault = next(filter(None, (one.fault for one in (member, *beside))), 0)
        spans.extend((member.at, member.size, fault, len(texts) // 3))
        names += member.name.encode(errors="surrogateescape")
        ends.append(len(names))
    report = tally.report(int(used.sum()), "members")
    if not ends and not flaw:
        flaw = _without_pairs(report, image)
    arrays = _arrays(spans.tobytes(), texts.tobytes(), ends.tobytes(), bytes(names))
    return Index(*arrays, flaw, end, report)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _without_pairs(report: OpeningReport, image: str) -> str:
    """Why a tar that can be read holds no pair."""
    why = ", ".join(
        f"{reason} {one.count:,}, such as {quoted(one.example)}"
        for reason, one in report.left_out.items()
    )
    chosen = f" whose picture is called {image!r} (config.data.image)" if image else ""
    return (
        f"it holds no pair{chosen}: expected members such as 0001.jpg with 0001.txt or 0001.json; "
        f"there are: {why or 'none'}"
    )


def scan(path: str, image: str = "") -> Index:
    """Reads the headers of a tar, to where it is damaged.

    image: which pictures are used, see `matching.match`.

    Raises:
      UserError: the file is missing, cannot be read, or is no tar.
    """
    seen, flaw, end = _Members(), "", 0
    try:
        with remote.open_file(path) as file:
            start = file.read(BLOCK)
            if (why := packed(start, suffix(path))) and not _is_tar(start):
                raise UserError(f"{remote.shown(path)} {why}")
            walk = members(file, file.seek(0, os.SEEK_END))
            try:
                while True:
                    seen.add(next(walk))
            except StopIteration as stop:
                end = stop.value
            except DamageError as damage:
                flaw = f"it is cut short or not a tar ({damage}): fetch it again"
                if not len(seen):
                    flaw = _other_kind(start, suffix(path)) or flaw
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    return _index(seen, image, flaw, end)


def _is_tar(start: bytes) -> bool:
    return len(start) == BLOCK and is_header(start)


def _other_kind(start: bytes, end: str) -> str:
    """What a file is in place of a tar, by its first bytes or how its name ends; empty: unknown."""
    if why := disguise(start, end):
        return f"it {why}"
    if end in (".tar", ""):
        return ""
    kinds = ", *".join(TABLES)
    return (
        "by its name it is neither a tar nor a table: give tars (*.tar), tables of one kind "
        f"(*{kinds}) or a folder"
    )


def _arrays(
    spans: bytes, texts: bytes, ends: bytes, names: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.frombuffer(spans, np.int64).reshape(-1, 4),
        np.frombuffer(texts, np.int64).reshape(-1, 3),
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
    if remote.is_remote(path):
        blocks = [remote.read(path, at, BLOCK) for at in places]
    else:
        with open(path, "rb") as file:
            blocks = [os.pread(file.fileno(), BLOCK, at) for at in places]
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def _pack(path: str, image: str, state: remote.State, found: Index) -> bytes:
    head = {
        **dict(version=_VERSION, size=state.size, tag=state.tag, marks=_marks(path, found)),
        **dict(image=image, pairs=len(found.ends), texts=len(found.texts), names=len(found.names)),
        **dict(flaw=found.flaw, end=found.end, report=found.report.to_dict()),
    }
    body = b"".join(part.tobytes() for part in (found.spans, found.texts, found.ends, found.names))
    return json.dumps(head).encode() + b"\n" + zlib.compress(body, 1)


def _unpack(raw: bytes, path: str, image: str, state: remote.State) -> Index | None:
    """The index that `_pack` made, where it is one, of this tar and for these pictures."""
    try:
        line, _, body = raw.partition(b"\n")
        head = json.loads(line)
        if (head["version"], head["size"], head["image"]) != (_VERSION, state.size, image):
            return None
        pairs, flaw, end = int(head["pairs"]), str(head["flaw"]), int(head["end"])
        sizes = (32 * pairs, 24 * int(head["texts"]), 8 * pairs, int(head["names"]))
        report = OpeningReport.from_dict(head["report"])
        if min(sizes) < 0 or sum(sizes) > state.size + BLOCK:  # two headers a pair take more
            return None
        plain = zlib.decompressobj().decompress(body, sum(sizes) + 1)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error, OverflowError):
        return None
    if len(plain) != sum(sizes):
        return None
    parts = np.split(np.frombuffer(plain, np.uint8), np.cumsum(sizes)[:-1])
    found = Index(*_arrays(*(part.tobytes() for part in parts)), flaw, end, report)
    if not _is_sound(found, state.size):
        return None
    if state.tag and head.get("tag") == state.tag:
        return found
    marks = _marks(path, found)
    return found if marks and head.get("marks") == marks else None


def _is_sound(found: Index, size: int) -> bool:
    """Whether all that an index says lies in a tar of that size."""
    if not len(found.ends):
        return not len(found.names) and not len(found.texts)
    places = np.concatenate([found.spans[:, :2], found.texts[:, :2]])
    at, last = places[:, 0], places[:, 0] + places[:, 1]
    inside = (at >= BLOCK).all() and (last >= at).all() and (last <= size).all()
    faults, kinds = found.spans[:, 2], found.texts[:, 2]
    known = (faults >= 0) & (faults < len(FAULTS)), (kinds >= 0) & (kinds < len(TEXTS))
    rising = all((np.diff(part, prepend=0) >= 0).all() for part in (found.ends, found.spans[:, 3]))
    lengths = (found.ends[-1], found.spans[-1, 3]) == (len(found.names), len(found.texts))
    whole = lengths and 0 <= found.end < size
    return bool(inside and known[0].all() and known[1].all() and rising and whole)


def _beside(path: str, image: str) -> str:
    return f"{path}{chosen(image)}.index"


def chosen(image: str) -> str:
    """What the names of indices have more where `config.data.image` is given."""
    return f".{hashlib.sha256(image.encode()).hexdigest()[:8]}" if image else ""


def home(place: str) -> str:
    """The folder where indices are kept: `place`, or the user's cache folder."""
    return place if place not in ("", BESIDE) else str(files.cache_folder("index"))


def _in(folder: str, path: str, image: str) -> str:
    where = path if remote.is_remote(path) else os.path.abspath(path)
    name = hashlib.sha256(os.fsencode(where)).hexdigest()[:32]
    return os.path.join(folder, f"{name}{chosen(image)}.index")


def _load(kept: str, path: str, image: str, state: remote.State) -> Index | None:
    try:
        if not remote.is_remote(kept):
            if os.path.getsize(kept) > state.size + (1 << 20):
                return None
            return _unpack(Path(kept).read_bytes(), path, image, state)
        return _unpack(remote.whole(kept, state.size + (1 << 20)), path, image, state)
    except (OSError, UserError):
        return None


def of(path: str, place: str = "", state: remote.State | None = None, image: str = "") -> Index:
    """`scan(path, image)`, kept until the tar changes.

    Args:
      place: '' the user's cache folder, 'beside' the tar, or a folder, here or far away.
      state: of the tar, where it is known.
      image: which pictures are used, see `matching.match`.

    Raises:
      UserError: as `scan`.
    """
    state = state or remote.state(path)
    beside, own = _beside(path, image), _in(home(""), path, image)
    usual = beside if place == BESIDE else _in(home(place), path, image)
    for kept in dict.fromkeys((usual, beside, own)):
        if found := _load(kept, path, image, state):
            return found
    found = scan(path, image)
    raw = _pack(path, image, state, found)
    for kept in dict.fromkeys((usual, own)):  # the folder of a tar may not be ours to write to
        # an index that cannot be kept only costs the next start some time
        with contextlib.suppress(OSError):
            remote.write(kept, raw)
            break
    return found
