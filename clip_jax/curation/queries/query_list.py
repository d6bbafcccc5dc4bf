"""A list of queries and its file: one query a line, with its count and its sources.

    # clip_jax queries: query<TAB>count<TAB>sources
    the<TAB>186631452<TAB>words
    New York<TAB>214001<TAB>bigrams+titles+wordnet

Plain lists (one query a line) and MetaCLIP's JSON files are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from clip_jax.errors import UserError
from clip_jax.io.files import atomic_write, read_small

MAX_LENGTH = 256  # characters of a query: MetaCLIP 2 leaves longer ones out
HEADER = "# clip_jax queries: query\tcount\tsources"
_MARK = b"# clip_jax queries"
_MAX_LINE = 8 * MAX_LENGTH  # bytes: UTF-8 takes up to 4 a character, then count and sources
_MAX_JSON = 256 << 20  # bytes
# What MetaCLIP 2's files call the source of a query; its numbers have an empty name.
_METACLIP_SOURCES = {"w": "wordnet", "u": "words", "b": "bigrams", "t": "titles", "": "numbers"}


@dataclass(frozen=True)
class QueryList:
    """Distinct queries in the order of their file.

    Attributes:
      queries: the queries, each of 1 to `MAX_LENGTH` characters.
      counts: how often each was seen in its first source; 0 where the file does not say.
      sources: where each comes from, joined by `+`; empty where the file does not say.
    """

    queries: tuple[str, ...]
    counts: tuple[int, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.queries)


def write_queries(path: Path, queries: QueryList) -> None:
    """Writes a list, completely or not at all.

    Raises:
      OSError: the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write(f"{HEADER}\n".encode())
        rows = zip(queries.queries, queries.counts, queries.sources, strict=True)
        file.writelines(f"{query}\t{count}\t{source}\n".encode() for query, count, source in rows)


def read_queries(path: str | Path) -> QueryList:
    """Reads a list of queries: of `curate queries`, plain with one query a line, or JSON.

    JSON is an array of strings, as MetaCLIP's `metadata.json`, or an object from queries to their
    sources or counts, as MetaCLIP 2's files of one language.

    Raises:
      UserError: the file is missing or empty, or a query is empty, repeated, too long, damaged, or
        of the wrong type; the line says which.
    """
    path = Path(path).expanduser()
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file: give a list of queries")
        with open(path, "rb") as file:
            start = file.read(4).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            is_json = start[:1] in (b"[", b"{") and path.suffix.lower() == ".json"
            rows = list(_read_lines(path, file)) if not is_json else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if is_json:
        rows = list(_read_json(path))
    if not rows:
        raise UserError(f"{path} has no queries")
    places: dict[str, str] = {}
    for place, query, _, _ in rows:
        if query in places:
            _refuse(path, place, f"{query!r:.80} stands at {places[query]} already: leave one out")
        places[query] = place
    _, queries, counts, sources = zip(*rows, strict=True)
    return QueryList(queries, counts, sources)


_Row = tuple[str, str, int, str]  # the place, for errors; the query; its count; its sources


def _refuse(path: Path, place: str, reason: str) -> NoReturn:
    raise UserError(f"{path}, {place}: {reason}")


def _read_lines(path: Path, file: BinaryIO) -> Iterator[_Row]:
    """Yields the rows of a text file."""
    number, with_columns = 0, False
    while line := file.readline(_MAX_LINE):
        number += 1
        place = f"line {number}"
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                _refuse(path, place, "the file is UTF-16: save it as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
            with_columns = line.startswith(_MARK)
            if with_columns:
                continue
        if len(line) == _MAX_LINE and not line.endswith(b"\n"):
            _refuse(path, place, f"over {_MAX_LINE:,} bytes: no query is that long")
        try:
            text = line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            _refuse(path, place, f"{line[:40]!r} is not UTF-8")
        if not with_columns:
            _check(path, place, text)
            yield place, text, 0, ""
            continue
        query, *columns = text.split("\t")
        if len(columns) != 2 or not (columns[0].isascii() and columns[0].isdigit()):
            _refuse(path, place, f"{text!r:.80} is not QUERY<TAB>COUNT<TAB>SOURCES")
        if len(columns[0]) > 18:
            _refuse(path, place, f"the count {columns[0]:.30} is too large")
        _check(path, place, query)
        yield place, query, int(columns[0]), columns[1]


def _read_json(path: Path) -> Iterator[_Row]:
    """Yields the rows of a JSON file."""
    content = read_small(path, _MAX_JSON, "list of queries")
    try:
        values = json.loads(content, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(values, _Pairs | list):
        raise UserError(f"{path} must hold an array of strings, not {values!r:.40}")
    pairs = values.pairs if isinstance(values, _Pairs) else [(query, "?") for query in values]
    for i, (query, value) in enumerate(pairs):
        place = f"entry {i + 1}"
        if not isinstance(query, str):
            _refuse(path, place, f"{query!r:.80} is no string")
        _check(path, place, query)
        if isinstance(value, str):
            source = "" if value == "?" else _METACLIP_SOURCES.get(value, value)
            if any(letter in source for letter in "\t\n\r\0"):
                _refuse(path, place, f"{source!r:.80} is no source")
            yield place, query, 0, source
        elif type(value) is int and 0 <= value < 1 << 62:
            yield place, query, value, ""
        elif isinstance(value, list):
            _refuse(path, place, f"{query!r:.40} holds a list: give a file of one language")
        else:
            _refuse(path, place, f"{value!r:.40} is neither a source nor a count")


class _Pairs:
    """The keys and values of a JSON object; a repeated key stays, so that it can be reported."""

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        self.pairs = pairs


def _check(path: Path, place: str, query: str) -> None:
    """Raises a UserError about what cannot be a query."""
    if not query.strip():
        _refuse(path, place, "there is no query on it: remove it")
    if len(query) > MAX_LENGTH:
        _refuse(path, place, f"a query of {len(query):,} characters; at most {MAX_LENGTH}")
    for letter, name in (("\t", "a tab"), ("\0", "a zero byte"), ("\n", "an end of line")):
        if letter in query:
            _refuse(path, place, f"{query!r:.80} contains {name}: a query is words and spaces")
    if not query.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in query):
        _refuse(path, place, f"{query!r:.80} contains half of a surrogate pair")
