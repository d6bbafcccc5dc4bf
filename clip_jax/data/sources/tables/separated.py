"""CSV and TSV: the separator is detected, and every row must have as many cells as the header."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from clip_jax.data.example import IMAGES, MAX_TEXT
from clip_jax.data.opening import quoted
from clip_jax.data.sources import text_files
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.errors import UserError
from clip_jax.io import remote

_USUAL = {".csv": ",", ".tsv": "\t"}
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
_SAMPLED = 50  # rows that a separator must fit


class Line(NamedTuple):
    """A row of a file.

    Attributes:
      first: the number of its first line, from 1.
      number: the number of its last line.
      cells: its cells.
      fault: what is wrong with it; empty if nothing is.
    """

    first: int
    number: int
    cells: list[str]
    fault: str = ""


@dataclasses.dataclass
class SeparatedFile:
    """A CSV or TSV file: how it is written, and the names of its columns.

    Attributes:
      path: the path of the file.
      encoding: the encoding of its text.
      separator: the character between cells.
      quoting: whether cells may be in double quotation marks.
      is_spaced: whether a space follows each separator, as in the header.
      width: the number of cells of the header, with those without a name.
      skipped: the number of lines before the header.
      names: the names of the columns.
      notes: lines about what was guessed; some are known only after all rows are read.
    """

    path: str
    encoding: str
    separator: str
    quoting: bool
    is_spaced: bool = False
    width: int = 0
    skipped: int = 0
    names: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def inspect(cls, path: str, end: str, options: TableOptions) -> SeparatedFile:
        """Detects how a file is written.

        Args:
          path: the file, local or remote.
          end: the ending of its name, `.csv` or `.tsv`.
          options: what is known already.

        Raises:
          UserError: the file cannot be read, or its first row names no columns.
        """
        encoding, note = (
            (options.encoding, "") if options.encoding else text_files.find_encoding(path)
        )
        usual = _USUAL[end]
        file = cls(path, encoding, options.separator or usual, options.quoting != "none")
        file.notes += [note] if note else []
        declared = file._declared_separator()
        if declared and not options.separator:
            file.separator = declared
        elif not options.separator:
            file._detect_separator(usual)
        _, *others = next((row.cells for row in file._read_rows()), []) or [""]
        file.is_spaced = bool(others) and all(cell.startswith(" ") for cell in others)
        file.names = file._header()
        return file

    def _declared_separator(self) -> str:
        """Returns the separator in a first line such as `sep=;`, which Excel writes, if any."""
        with text_files.open_text(self.path, self.encoding) as file:
            match = re.fullmatch(r'"?sep=([,;|\t])"?[\r\n]*', file.readline(16), re.IGNORECASE)
        self.skipped = 1 if match else 0
        return match[1] if match else ""

    def _detect_separator(self, usual: str) -> None:
        """Takes another separator if the usual one gives no table and another does."""
        marks = [usual, *(mark for mark in _NAMES if mark != usual)]
        cells = {mark: self._cells(mark) for mark in marks}
        even = [mark for mark in marks if len(set(cells[mark])) == 1 and cells[mark][0] > 1]
        # if every table is ragged, the one whose header has several cells
        several = [mark for mark in marks if cells[mark] and cells[mark][0] > 1]
        self.separator = (even or several or [usual])[0]
        if self.separator != usual:
            self.notes.append(
                f"{remote.redact(self.path)} is separated by {_NAMES[self.separator]}, not "
                f"{_NAMES[usual]}; config.data.separator says otherwise"
            )

    def _cells(self, separator: str) -> list[int]:
        """Returns the number of cells of the first rows with another separator."""
        other = dataclasses.replace(self, separator=separator)
        return [len(row.cells) for row in itertools.islice(other._read_rows(), _SAMPLED)]

    def _read_rows(self) -> Iterator[Line]:
        """Yields all rows that are not blank, including the header."""
        csv.field_size_limit(MAX_TEXT)
        quoting: Any = csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
        with text_files.open_text(self.path, self.encoding) as file:
            for _ in range(self.skipped):
                file.readline()
            reader = csv.reader(
                file, delimiter=self.separator, quoting=quoting, skipinitialspace=self.is_spaced
            )
            while True:
                first = self.skipped + reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    last = self.skipped + reader.line_num
                    yield Line(first, last, [], f"{error}; config.data.quoting=none?")
                    continue
                except UnicodeError as error:  # truncated UTF-16
                    yield Line(
                        first,
                        first,
                        [],
                        f"it is not {text_files.encoding_name(self.encoding)}: {error}",
                    )
                    return
                if cells:
                    yield Line(first, self.skipped + reader.line_num, cells)

    def _header(self) -> list[str]:
        shown = remote.redact(self.path)
        names = [name.strip() for name in next((row.cells for row in self._read_rows()), [])]
        self.width = len(names)
        while names and not names[-1]:  # spreadsheets leave empty columns behind
            names.pop()
        if not names:
            raise UserError(f"{shown} cannot be read as a table: it is empty")
        if any(text_files.has_undecoded(name) for name in names):
            raise UserError(
                f"{shown} cannot be read as a table: its first line is not "
                f"{text_files.encoding_name(self.encoding)}; see "
                "config.data.encoding"
            )
        if any(name.lower().endswith(IMAGES) for name in names):
            line = quoted(self.separator.join(names))
            raise UserError(
                f"{shown}: its first line names an image and no columns ({line}): put a line such "
                "as filepath,caption before it"
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{shown} has two columns called {quoted(twice[0])!r}: rename one")
        return names

    def rows(self, note: bool = True) -> Iterator[Line]:
        """Yields the rows below the header.

        Empty cells beyond the header are ignored, and so are trailing columns without a name.

        Args:
          note: whether to describe unusual rows in `notes`.
        """
        broken, longest, where, escaped = 0, 0, 0, list[int]()
        rows = self._read_rows()
        next(rows, None)
        for row in rows:
            if not any(map(str.strip, row.cells[self.width :])):
                del row.cells[self.width :]
            if len(row.cells) == self.width:
                del row.cells[len(self.names) :]
            if row.fault:
                yield row
            elif len(row.cells) != len(self.names):
                yield row._replace(fault=self._ragged(row))
            elif any(map(text_files.has_undecoded, row.cells)):
                what = f"it holds bytes that are not {text_files.encoding_name(self.encoding)}"
                yield row._replace(fault=f"{what}; see config.data.encoding")
            else:
                yield row
            if self.quoting and any("\\" in cell and cell.endswith('"') for cell in row.cells):
                escaped.append(row.first)
            if row.number > row.first:
                broken += 1
                if row.number + 1 - row.first > longest:
                    longest, where = row.number + 1 - row.first, row.first
        if escaped and note:
            self.notes.append(
                f"{remote.redact(self.path)}: {len(escaped):,} rows, such as line {escaped[0]:,}, "
                'seem to write quotation marks as \\", which are read as they stand: write ""'
            )
        if broken and note:
            self.notes.append(
                f"{remote.redact(self.path)}: {broken:,} rows have line breaks within quotation "
                f"marks; the longest is of {longest:,} lines, from line {where:,}. If a mark there "
                "does not quote, rows after it were lost: set config.data.quoting=none"
            )

    def _ragged(self, row: Line) -> str:
        more = len(row.cells) > len(self.names)
        how = f": quote cells that hold {_NAMES.get(self.separator, 'a separator')}" * more
        return f"it has {len(row.cells)} cells and the header {len(self.names)}{how}"
