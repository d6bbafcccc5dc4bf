"""JSON lines, read by the module `json`, so that every row is exactly what its line says.

A reader that infers columns from the first rows gives wrong or missing values if a key comes late,
is null for long, or is sometimes text and sometimes a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from clip_jax.data.example import Fields
from clip_jax.data.sources import text_files

MAX_LINE = 16 << 20  # characters; a line of brackets becomes objects of fifty times its size


class Line(NamedTuple):
    """A line of a file.

    Attributes:
      number: its number, from 1.
      row: the object in it.
      raw: its text.
      fault: what is wrong with it; empty if nothing is.
    """

    number: int
    row: Fields
    raw: str
    fault: str = ""


def read_lines(path: str, encoding: str) -> Iterator[Line]:
    """Yields the lines of a file that are not blank."""
    number = 0
    with text_files.open_text(path, encoding) as file:
        try:
            for number, line in enumerate(text_files.read_lines(file, MAX_LINE), 1):
                if line is None:
                    yield Line(number, {}, "", f"it is over {MAX_LINE >> 20} MiB")
                elif stripped := line.strip():
                    yield _parse(number, stripped, encoding)
        except UnicodeError as error:  # truncated UTF-16
            yield Line(
                number + 1, {}, "", f"it is not {text_files.encoding_name(encoding)}: {error}"
            )


def _parse(number: int, line: str, encoding: str) -> Line:
    if text_files.has_undecoded(line):
        return Line(
            number, {}, "", f"it holds bytes that are not {text_files.encoding_name(encoding)}"
        )
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Line(number, {}, "", f"it is no JSON ({error})")
    if not isinstance(row, dict):
        what = 'it is no object such as {"image": "a.jpg", "caption": "a"}'
        list_of_all = "; a list of objects is read from a file called .json"
        return Line(number, {}, "", what + list_of_all * isinstance(row, list))
    return Line(number, row, line)
