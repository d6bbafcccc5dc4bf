"""An image–text pair, reading one from files, and what can be wrong with it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from clip_jax.errors import UserError
from clip_jax.io import remote

# torchvision's list and GIF; the format is told by the bytes, see `decoding.FORMATS`
IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".tif", ".tiff", ".jfif", ".jpe", ".avif", ".jp2"),
)
TEXTS = (".json", ".txt", ".cls", ".npy")
MAX_MEMBER = 256 << 20  # bytes of an image file
MAX_TEXT = 1 << 20  # bytes of a text file

_MAX_LINE = 500  # characters of a line about a pair

# Why a pair cannot be used: its bytes cannot be read, its text cannot be parsed, it gives no
# caption, its image cannot be decoded.
REASONS = ("unreadable", "text", "caption", "picture")


# The text fields of a pair by name; values are those of JSON.
Fields: TypeAlias = dict[str, Any]


class Pair(NamedTuple):
    """An image–text pair.

    Attributes:
      image: the bytes of the image file.
      text: the text fields about the image.
      name: where the pair is stored, for messages.
    """

    image: bytes
    text: Fields
    name: str


class PairError(UserError):
    """An error for a pair that cannot be used; training replaces the pair and counts the error.

    Attributes:
      reason: one of `REASONS`.
    """

    def __init__(self, reason: str, line: str) -> None:
        super().__init__(line)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return PairError, (self.reason, str(self))


@contextlib.contextmanager
def only_pair_errors(reason: str, name: str | Callable[[], str]) -> Iterator[None]:
    """Turns every exception of the block into a PairError, so that no pair ends a run.

    Untrusted files make libraries fail with exceptions of every type.

    Args:
      reason: one of `REASONS`.
      name: the name of the pair. A name that is costly to make is given as a function, which is
        called only for an error.
    """
    try:
        yield
    except PairError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        pair = name if isinstance(name, str) else name()
        line = " ".join(f"{pair}: {kind}{error}".split())
        raise PairError(reason, line[:_MAX_LINE]) from error


def described(counts: Iterable[int]) -> str:
    """Formats counts by reason, largest first and without zeros: `picture 12, text 3`.

    Args:
      counts: a number for each of `REASONS`.
    """
    nonzero = [(int(n), reason) for n, reason in zip(counts, REASONS, strict=True) if n]
    return ", ".join(f"{reason} {n:,}" for n, reason in sorted(nonzero, reverse=True))


def _open_nonblocking(path: str, flags: int) -> int:
    """Opens a file without waiting, as opening a pipe could wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | Path, most: int) -> bytes:
    """Reads a file of a pair, local or remote.

    Raises:
      PairError: the file cannot be read, or holds more than `most` bytes.
    """
    if remote.is_remote(str(path)):
        try:
            return remote.read_whole(str(path), most)
        except UserError as error:
            raise PairError("unreadable", str(error)) from None
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            content = file.read(most + 1) or b""
    except OSError as error:
        raise PairError("unreadable", f"{path} cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise PairError("unreadable", f"{path} is over {most >> 20} MiB")
    return content


def _parse_array(raw: bytes) -> list[Any]:
    """Returns the numbers of a `.npy` file, such as a label for each of several classes."""
    values = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    if values.dtype.kind not in "biuf":
        raise ValueError("no array of numbers")
    return values.tolist() if values.ndim else [values.item()]


def parse_text(raw: bytes, name: str, end: str) -> Fields:
    """Parses a text file of a pair into fields.

    Args:
      raw: the bytes of the file.
      name: the name of the pair, for errors.
      end: the ending of the file's name, one of `TEXTS`. A `.json` file is an object, `.txt` gives
        the field `caption`, `.cls` the number of a class as `cls`, and `.npy` an array of numbers
        as the list `npy`.

    Raises:
      PairError: the file is something else, or larger than `MAX_TEXT`.
    """
    if len(raw) > MAX_TEXT:  # JSON of nothing but brackets takes fifty times its size as lists
        raise PairError("text", f"{name}: its text is over {MAX_TEXT >> 20} MiB")
    try:
        if end == ".npy":
            return {"npy": _parse_array(raw)}
        text = raw.decode("utf-8-sig")
        if end == ".cls":
            return {"cls": int(text)}
        if end == ".txt":
            return {"caption": text.strip()}
        fields = json.loads(text)
    except (ValueError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise PairError("text", f"{name}: its text cannot be read ({error})") from None
    if not isinstance(fields, dict):
        raise PairError("text", f'{name}: its json is no object such as {{"caption": "a cat"}}')
    return fields


def parse_texts(texts: Iterable[tuple[bytes, str]], name: str) -> Fields:
    """Parses all text files of a pair and merges their fields.

    `txt`, `cls` and `npy` come from these files. `caption` comes from the `.json`, or from the
    `.txt` if the `.json` has none or a blank one.

    Args:
      texts: the bytes of each file, and the ending of its name; see `parse_text`.
      name: the name of the pair, for errors.

    Raises:
      PairError: a file cannot be parsed; see `parse_text`.
    """
    fields: Fields = {}
    for raw, end in sorted(texts, key=lambda text: TEXTS.index(text[1])):
        parsed = parse_text(raw, name, end)
        if end == ".txt":
            fields["txt"] = parsed["caption"]
        for key, value in parsed.items():
            if key == end[1:] or is_blank(fields.get(key)):
                fields[key] = value
    return fields


def is_blank(value: Any) -> bool:
    """Returns whether a field is null, NaN, blank text, or a list of such values."""
    if isinstance(value, list):
        return all(map(is_blank, value))
    return value is None or value != value or (isinstance(value, str) and not value.strip())
