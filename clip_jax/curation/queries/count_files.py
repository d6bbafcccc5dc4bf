"""Files of word counts and bigram counts, in the layouts in which they are published.

A line is `word<TAB>count`, `count<TAB>word`, `word count` or CSV; that of a bigram has two words,
in one column or in two. The column that is a number in every one of the first lines is the count.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import PurePath
from typing import TypeAlias

from clip_jax.curation.queries.text_stream import open_stream, read_rows
from clip_jax.errors import UserError
from clip_jax.io import remote

_LOOKED_AT = 1000  # lines from which the layout is found
_MAX_COUNT = 1 << 62
_Splitter: TypeAlias = Callable[[str], list[str]]


def read_counts(
    path: str, words: int, quiet: bool = False
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields the words and the count of each line of a file of counts.

    Args:
      path: the file, also compressed.
      words: how many words a line has: 1 or 2.
      quiet: whether to show no progress.

    Raises:
      UserError: a line has another form; the error has its number.
    """
    with open_stream(path, quiet) as file:
        rows = read_rows(path, file)
        start = list(islice(rows, _LOOKED_AT))
        if not start:
            raise UserError(f"{remote.redact(path)} is empty")
        split = _splitter(path, start[0][1].decode(errors="replace"))
        at, has_header = _find_count(path, start, split)
        for number, line in chain(start[has_header:], rows):
            yield _parse(path, number, line, split, at, words)


def _splitter(path: str, line: str) -> _Splitter:
    """Returns the function that splits the lines of a file into their fields."""
    if "\t" in line:
        return lambda text: [field.strip() for field in text.split("\t")]
    if PurePath(path).suffixes[-2:][:1] == [".csv"] or path.lower().endswith(".csv"):
        return _split_csv
    return str.split


def _split_csv(text: str) -> list[str]:
    """Returns the fields of a line of CSV; a damaged line is one field."""
    try:
        return [field.strip() for field in next(csv.reader([text]), [])]
    except csv.Error:
        return [text]


def _find_count(path: str, rows: Sequence[tuple[int, bytes]], split: _Splitter) -> tuple[int, bool]:
    """Returns which field is the count, 0 or -1, and whether the first line is a header."""
    fields = [split(line.decode(errors="replace")) or [""] for _, line in rows]
    has_header = len(fields) > 1 and not (_is_count(fields[0][0]) or _is_count(fields[0][-1]))
    fields = fields[has_header:]
    matches = [at for at in (0, -1) if all(_is_count(row[at]) for row in fields)]
    if len(matches) == 2:
        raise UserError(
            f"{remote.redact(path)}: both columns are numbers, so that the count is not known"
        )
    if not matches:
        first, last = (sum(_is_count(row[at]) for row in fields) for at in (0, -1))
        at = 0 if first > last else -1
        if max(first, last) == 0:
            raise UserError(
                f"{remote.redact(path)}, line {rows[0][0]}: {rows[0][1][:60]!r} is no word with a "
                "count: give word<TAB>count, count<TAB>word or CSV"
            )
        return at, has_header
    return matches[0], has_header


def _is_count(field: str) -> bool:
    return field.isascii() and field.isdigit()


def _parse(
    path: str, number: int, line: bytes, split: _Splitter, at: int, words: int
) -> tuple[tuple[str, ...], int]:
    """Returns the words and the count of a line."""
    try:
        fields = split(line.decode())
    except UnicodeDecodeError:
        raise _mistake(path, number, line, "is not UTF-8 text") from None
    if len(fields) < 2 or not _is_count(fields[at]):
        raise _mistake(path, number, line, "has no count where the others have it")
    count = int(fields.pop(at)[:20])
    if count >= _MAX_COUNT:
        raise _mistake(path, number, line, "has too large a count")
    if words == 2 and len(fields) == 1:
        fields = fields[0].split()
    if len(fields) != words or not all(fields):
        noun = "one word" if words == 1 else "two words"
        raise _mistake(path, number, line, f"is not {noun} and a count")
    return tuple(fields), count


def _mistake(path: str, number: int, line: bytes, reason: str) -> UserError:
    return UserError(f"{remote.redact(path)}, line {number}: {line[:60]!r} {reason}")
