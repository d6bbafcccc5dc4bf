"""A picture and what is written about it, and what can be wrong with one of a billion."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.errors import UserError
from clip_jax.io import remote

# torchvision's list and GIF; what a file holds is told by its bytes, see `images.FORMATS`
IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".tif", ".tiff", ".jfif", ".jpe", ".avif", ".jp2"),
)
TEXTS = (".json", ".txt", ".cls", ".npy")
MAX_MEMBER = 256 << 20  # bytes of a picture
MAX_TEXT = 1 << 20  # bytes of what is written about it

_LONGEST_LINE = 500  # characters of a line about a pair

# Why a pair cannot be used: its bytes cannot be had, its text cannot be parsed, it makes no
# caption, its picture cannot be decoded.
REASONS = ("unreadable", "text", "caption", "picture")


class Pair(NamedTuple):
    """One picture's bytes and what is written about it. `name` says where it stands."""

    image: bytes
    text: dict[str, Any]
    name: str


class PairError(UserError):
    """A pair that cannot be used, which training leaves out and counts by `reason`."""

    def __init__(self, reason: str, line: str) -> None:
        super().__init__(line)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return PairError, (self.reason, str(self))


@contextlib.contextmanager
def only_pair_errors(reason: str, name: str | Callable[[], str]) -> Iterator[None]:
    """Makes whatever the block raises a PairError of that reason; `name` says of which pair.

    Files of strangers make libraries fail with errors of every type: no pair may end a run. A name
    that takes work to make is given as a function, which is called for an error only.
    """
    try:
        yield
    except PairError:
        raise
    except Exception as error:
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        pair = name if isinstance(name, str) else name()
        line = " ".join(f"{pair}: {what}{error}".split())
        raise PairError(reason, line[:_LONGEST_LINE]) from error


def described(counts: Iterable[int]) -> str:
    """Counts by reason, those that are not zero: `picture 12, text 3`."""
    found = [(int(n), reason) for n, reason in zip(counts, REASONS, strict=True) if n]
    return ", ".join(f"{reason} {n:,}" for n, reason in sorted(found, reverse=True))


def _at_once(path: str, flags: int) -> int:
    """Opens a file without waiting: for the other end of a pipe one would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | Path, most: int) -> bytes:
    """What is in a file of a pair, here or far away.

    Raises:
      PairError: it cannot be read, or holds more than `most` bytes.
    """
    if remote.is_remote(str(path)):
        try:
            return remote.whole(str(path), most)
        except UserError as error:
            raise PairError("unreadable", str(error)) from None
    try:
        with open(path, "rb", opener=_at_once) as file:
            found = file.read(most + 1) or b""
    except OSError as error:
        raise PairError("unreadable", f"{path} cannot be read ({error.strerror})") from None
    if len(found) > most:
        raise PairError("unreadable", f"{path} is over {most >> 20} MiB")
    return found


def _array(raw: bytes) -> list[Any]:
    """The numbers of an array as numpy saves one, such as a label for each of several classes."""
    found = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    if found.dtype.kind not in "biuf":
        raise ValueError("no array of numbers")
    return found.tolist() if found.ndim else [found.item()]


def parse_text(raw: bytes, name: str, end: str) -> dict[str, Any]:
    """What is written about a picture, by how its file ends (one of `TEXTS`).

    `.json` is an object, `.txt` the `caption`, `.cls` the number of a class as `cls`, and `.npy`
    an array of numbers as the list `npy`.

    Raises:
      PairError: it is not that, or over `MAX_TEXT`; `name` says whose it is.
    """
    if len(raw) > MAX_TEXT:  # a file of brackets becomes lists of fifty times its size
        raise PairError("text", f"{name}: its text is over {MAX_TEXT >> 20} MiB")
    try:
        if end == ".npy":
            return {"npy": _array(raw)}
        text = raw.decode("utf-8-sig")
        if end == ".cls":
            return {"cls": int(text)}
        if end == ".txt":
            return {"caption": text.strip()}
        found = json.loads(text)
    except (ValueError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise PairError("text", f"{name}: its text cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise PairError("text", f'{name}: its json is no object such as {{"caption": "a cat"}}')
    return found


def parse_texts(texts: Iterable[tuple[bytes, str]], name: str) -> dict[str, Any]:
    """The fields of all texts of a picture: their bytes and how each file ends, see `parse_text`.

    `txt`, `cls` and `npy` are what these files say. `caption` is the `.json`'s, or the `.txt`'s
    where that says nothing.

    Raises:
      PairError: as `parse_text`.
    """
    fields: dict[str, Any] = {}
    for raw, end in sorted(texts, key=lambda text: TEXTS.index(text[1])):
        said = parse_text(raw, name, end)
        if end == ".txt":
            fields["txt"] = said["caption"]
        for key, value in said.items():
            if key == end[1:] or says_nothing(fields.get(key)):
                fields[key] = value
    return fields


def says_nothing(value: Any) -> bool:
    """Whether a field is null, blank, not a number, or a list of such."""
    if isinstance(value, list):
        return all(says_nothing(one) for one in value)
    return value is None or value != value or (isinstance(value, str) and not value.strip())
