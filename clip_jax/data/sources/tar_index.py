"""The index of one tar: where its pairs are. Built once and cached.

Members can be in any order; `matching` decides which images and texts belong together.

`config.data.index` says where an index is: in the user's cache folder (empty), `beside` the tar as
`0001.tar.index`, or in a folder, which may be remote. An index beside its tar is always used. An
index is valid for a tar of the same size whose time or version is the same, or else whose headers
are the same at eight places and at the end. So it stays valid for a copy of both files.
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

_VERSION = 7  # of the cached index
_COMPARED = 8  # headers
_WIDTH = 1 + len(TEXTS)  # members of a pair at most


class Index(NamedTuple):
    """Where the pairs of one tar are.

    Attributes:
      spans: int64 [pairs, 4]: offset and size of the image, the index in `tar_reader.FAULTS` of
        what makes the pair unreadable, and the number of texts of this pair and all before it.
      texts: int64 [texts, 3]: offset, size, and the index in `example.TEXTS`; the texts of a pair
        are adjacent, in that order.
      names: uint8 [bytes], the concatenated names of the images in UTF-8.
      ends: int64 [pairs], where each name ends.
      flaw: why the tar, or the rest of it, cannot be read; empty if nothing is wrong.
      end: the byte where the archive ends; 0 if unknown.
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
        """Returns the name of the i-th image."""
        return name_at(self.names, self.ends, i)


def name_at(names: np.ndarray, ends: np.ndarray, i: int) -> str:
    """Returns the i-th of several concatenated names.

    Args:
      names: uint8 [bytes], the names in UTF-8.
      ends: int64 [n], where each name ends.
      i: the number of the name.
    """
    start = int(ends[i - 1]) if i else 0
    return bytes(names[start : ends[i]]).decode(errors="surrogateescape")


class _Members:
    """The members of a tar, of which there may be millions, in little memory."""

    def __init__(self) -> None:
        self._places = array("q")  # offset, size and fault of each
        self._names, self._ends = bytearray(), array("q")
        self._keys = array("q")  # hashes of `_key`

    def add(self, member: Member) -> None:
        """Adds the next member."""
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
        """Yields the members of each key with their numbers, in order."""
        keys = np.frombuffer(self._keys, np.int64)
        order = np.argsort(keys, kind="stable")
        ends = [*(np.flatnonzero(np.diff(keys[order])) + 1).tolist(), len(order)]
        for start, end in itertools.pairwise([0, *ends]):
            by_key: dict[tuple[str, str], list[tuple[int, Member]]] = {}
            for i in order[start:end].tolist():  # hashes can collide
                by_key.setdefault(_key((member := self[i]).name), []).append((i, member))
            yield from by_key.values()


def _key(name: str) -> tuple[str, str]:
    """Returns the folder of a member and the start of its name that an example's files share."""
    folder, _, base = name.rpartition("/")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    root = "/" if name.startswith("/") else ""
    return root + "/".join(parts), matching.short_key(base)


def _build(members: _Members, image: str, flaw: str, end: int) -> Index:
    """Builds the index of a tar from its members; see `scan`."""
    tally, used = Tally(), np.zeros(len(members), bool)
    table = _match(members, image, tally, used)
    spans, texts, names, ends = array("q"), array("q"), bytearray(), array("q")
    for row in table[np.argsort(table[:, 0])]:
        member, *text_members = (members[i] for i in row.tolist() if i >= 0)
        for text in text_members:
            texts.extend((text.at, text.size, TEXTS.index(_ending(text.name))))
        fault = next(filter(None, (item.fault for item in (member, *text_members))), 0)
        spans.extend((member.at, member.size, fault, len(texts) // 3))
        names += member.name.encode(errors="surrogateescape")
        ends.append(len(names))
    report = tally.report(int(used.sum()), "members")
    if not ends and not flaw:
        flaw = _no_pair(report, image)
    arrays = _arrays(spans.tobytes(), texts.tobytes(), ends.tobytes(), bytes(names))
    return Index(*arrays, flaw, end, report)


def _match(members: _Members, image: str, tally: Tally, used: np.ndarray) -> np.ndarray:
    """Matches the members of a tar into pairs.

    Counts what is left out in `tally`, and marks the members that are `used`.

    Returns:
      The numbers of the members of each pair, image first, then -1: int64 [pairs, _WIDTH].
    """
    rows = array("q")
    for group in members.groups():
        shown = [(i, member) for i, member in group if not matching.is_hidden(member.name)]
        if len(shown) < len(group):
            hidden = next(m.name for _, m in group if matching.is_hidden(m.name))
            tally.add("hidden", hidden, len(group) - len(shown))
        bases = [member.name.rpartition("/")[2] for _, member in shown]
        examples, left_out = matching.match(bases, image)
        for i, reason in left_out.items():
            tally.add(reason, shown[i][1].name)
        for example in examples:
            numbers = [shown[i][0] for i in (example.image, *example.texts)]
            used[numbers] = True
            rows.extend(numbers + [-1] * (_WIDTH - len(numbers)))
    return np.frombuffer(rows, np.int64).reshape(-1, _WIDTH)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _no_pair(report: OpeningReport, image: str) -> str:
    """Returns why a readable tar contains no pair."""
    why = ", ".join(
        f"{reason} {item.count:,}, such as {quoted(item.example)}"
        for reason, item in report.left_out.items()
    )
    chosen = f" whose image is called {image!r} (config.data.image)" if image else ""
    return (
        f"it holds no pair{chosen}: expected members such as 0001.jpg with 0001.txt or 0001.json; "
        f"there are: {why or 'none'}"
    )


def scan(path: str, image: str = "") -> Index:
    """Indexes a tar by reading its headers, as far as it is undamaged.

    Args:
      path: the tar, local or remote.
      image: which images are used, see `matching.match`.

    Raises:
      UserError: the file is missing, cannot be read, or must be unpacked first.
    """
    tar_members, flaw, end = _Members(), "", 0
    try:
        with remote.open_file(path) as file:
            start = file.read(BLOCK)
            if (why := packed(start, suffix(path))) and not _is_tar(start):
                raise UserError(f"{remote.redact(path)} {why}")
            walk = members(file, file.seek(0, os.SEEK_END))
            try:
                while True:
                    tar_members.add(next(walk))
            except StopIteration as stop:
                end = stop.value
            except DamageError as damage:
                flaw = f"it is cut short or not a tar ({damage}): fetch it again"
                if not len(tar_members):
                    flaw = _other_kind(start, suffix(path)) or flaw
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    return _build(tar_members, image, flaw, end)


def _is_tar(start: bytes) -> bool:
    return len(start) == BLOCK and is_header(start)


def _other_kind(start: bytes, end: str) -> str:
    """Returns what a file is instead of a tar, by its first bytes or its name; empty if unknown."""
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


def _header_hash(path: str, index: Index) -> str:
    """Returns a hash of some of a tar's headers, which contain sizes and names, and of its end.

    It is empty if only reading the whole tar could tell whether it is the same.
    """
    if index.flaw or not len(index.ends):
        return ""
    samples = np.linspace(0, len(index.ends) - 1, _COMPARED).astype(int)
    places = [*sorted({int(index.spans[i, 0]) - BLOCK for i in samples}), index.end]
    if remote.is_remote(path):
        blocks = [remote.read_range(path, at, BLOCK) for at in places]
    else:
        with open(path, "rb") as file:
            blocks = [os.pread(file.fileno(), BLOCK, at) for at in places]
    return hashlib.sha256(b"".join(blocks)).hexdigest()


def _pack(path: str, image: str, state: remote.State, index: Index) -> bytes:
    head = {
        **dict(version=_VERSION, size=state.size, tag=state.tag, marks=_header_hash(path, index)),
        **dict(image=image, pairs=len(index.ends), texts=len(index.texts), names=len(index.names)),
        **dict(flaw=index.flaw, end=index.end, report=index.report.to_dict()),
    }
    body = b"".join(part.tobytes() for part in (index.spans, index.texts, index.ends, index.names))
    return json.dumps(head).encode() + b"\n" + zlib.compress(body, 1)


def _unpack(raw: bytes, path: str, image: str, state: remote.State) -> Index | None:
    """Returns the index in the bytes of `_pack`, or None if it is damaged or of other data."""
    try:
        line, _, body = raw.partition(b"\n")
        head = json.loads(line)
        if (head["version"], head["size"], head["image"]) != (_VERSION, state.size, image):
            return None
        pairs, flaw, end = int(head["pairs"]), str(head["flaw"]), int(head["end"])
        sizes = (32 * pairs, 24 * int(head["texts"]), 8 * pairs, int(head["names"]))
        report = OpeningReport.from_dict(head["report"])
        if min(sizes) < 0 or sum(sizes) > state.size + BLOCK:  # as the headers of a pair take more
            return None
        plain = zlib.decompressobj().decompress(body, sum(sizes) + 1)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error, OverflowError):
        return None
    if len(plain) != sum(sizes):
        return None
    parts = np.split(np.frombuffer(plain, np.uint8), np.cumsum(sizes)[:-1])
    index = Index(*_arrays(*(part.tobytes() for part in parts)), flaw, end, report)
    if not _is_consistent(index, state.size):
        return None
    if state.tag and head.get("tag") == state.tag:
        return index
    marks = _header_hash(path, index)
    return index if marks and head.get("marks") == marks else None


def _is_consistent(index: Index, size: int) -> bool:
    """Returns whether an index, which may be untrusted, stays within a tar of a size in bytes."""
    if not len(index.ends):
        return not len(index.names) and not len(index.texts)
    places = np.concatenate([index.spans[:, :2], index.texts[:, :2]])
    at, last = places[:, 0], places[:, 0] + places[:, 1]
    is_inside = (at >= BLOCK).all() and (last >= at).all() and (last <= size).all()
    faults, kinds = index.spans[:, 2], index.texts[:, 2]
    is_known = (faults >= 0) & (faults < len(FAULTS)), (kinds >= 0) & (kinds < len(TEXTS))
    counts = (index.ends, index.spans[:, 3])
    is_rising = all((np.diff(part, prepend=0) >= 0).all() for part in counts)
    lengths = (index.ends[-1], index.spans[-1, 3]) == (len(index.names), len(index.texts))
    is_complete = lengths and 0 <= index.end < size
    return bool(is_inside and is_known[0].all() and is_known[1].all() and is_rising and is_complete)


def _path_beside(path: str, image: str) -> str:
    return f"{path}{image_suffix(image)}.index"


def image_suffix(image: str) -> str:
    """Returns what `config.data.image` adds to the names of indices."""
    return f".{hashlib.sha256(image.encode()).hexdigest()[:8]}" if image else ""


def index_folder(place: str) -> str:
    """Returns the folder of indices that are not beside their tars: `place` or the cache folder."""
    return place if place not in ("", BESIDE) else str(files.cache_folder("index"))


def _path_in(folder: str, path: str, image: str) -> str:
    where = path if remote.is_remote(path) else os.path.abspath(path)
    name = hashlib.sha256(os.fsencode(where)).hexdigest()[:32]
    return os.path.join(folder, f"{name}{image_suffix(image)}.index")


def _load(index_path: str, path: str, image: str, state: remote.State) -> Index | None:
    try:
        if not remote.is_remote(index_path):
            if os.path.getsize(index_path) > state.size + (1 << 20):
                return None
            return _unpack(Path(index_path).read_bytes(), path, image, state)
        return _unpack(remote.read_whole(index_path, state.size + (1 << 20)), path, image, state)
    except (OSError, UserError):
        return None


def open_index(
    path: str, place: str = "", state: remote.State | None = None, image: str = ""
) -> Index:
    """Returns the index of a tar, cached until the tar changes; see `scan`.

    Args:
      path: the tar.
      place: where the index is, see `SourceOptions.index`.
      state: the state of the tar, if it is known.
      image: which images are used, see `matching.match`.

    Raises:
      UserError: see `scan`.
    """
    state = state or remote.state(path)
    beside, own = _path_beside(path, image), _path_in(index_folder(""), path, image)
    usual = beside if place == BESIDE else _path_in(index_folder(place), path, image)
    for index_path in dict.fromkeys((usual, beside, own)):
        if index := _load(index_path, path, image, state):
            return index
    index = scan(path, image)
    content = _pack(path, image, state, index)
    for index_path in dict.fromkeys((usual, own)):  # the folder of a tar may be read-only
        # an index that cannot be written only costs the next start some time
        with contextlib.suppress(OSError):
            remote.write(index_path, content)
            break
    return index
