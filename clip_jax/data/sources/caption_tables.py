"""Tables of captions in the formats of common data sets.

- imagefolder's `metadata.csv`, `metadata.jsonl`, `metadata.parquet`: a column `file_name`;
- Flickr8k's and Flickr30k's `captions.txt`, `results.csv`, `….token`: a line for each caption;
- COCO's `captions_train2017.json`: lists of `images` and `annotations`;
- a JSON list of objects, or one object that maps the names of images to captions.

Only Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from clip_jax.data.example import IMAGES, Fields
from clip_jax.data.opening import quoted
from clip_jax.data.sources import text_files
from clip_jax.data.sources.disguises import disguise
from clip_jax.errors import UserError
from clip_jax.io import paths, remote
from clip_jax.io.files import JsonObject

MAX_BYTES = 1 << 30  # of a table
# Columns that name the image, and those that are its caption; the first that exists is taken.
_IMAGE_COLUMNS = (
    *("file_name", "filename", "image", "image_name", "image_path", "file_path", "filepath"),
    *("file", "path", "img", "img_name", "picture", "photo", "image_file"),
)
_CAPTION_COLUMNS = (
    *("caption", "captions", "text", "comment", "description", "sentence", "prompt", "title"),
)
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")  # Flickr's: 1000268201_693b08cb0e.jpg#0	A child …
_SEPARATORS = ("\t", "|", ";", ",")
_MAX_NAMED = 10  # columns in an error


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      name: the name of the image, as the table has it; None if the row has none.
      fields: the text fields of the row.
      where: the row or line, for messages.
      problem: why the row cannot be read; empty if it can.
    """

    name: str | None
    fields: Fields
    where: str
    problem: str = ""


class Table(NamedTuple):
    """A table of captions.

    Attributes:
      rows: the rows.
      notes: lines about what was guessed.
    """

    rows: list[Row]
    notes: list[str]


@dataclasses.dataclass
class _File:
    """A table while it is read."""

    path: str
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def redacted(self) -> str:
        """The path without secrets, for messages."""
        return remote.redact(self.path)

    def unknown(self, what: str) -> UserError:
        """Returns the error for a table of an unknown format."""
        return UserError(
            f"{self.redacted} is no table of captions that is known ({what}): expected a column "
            f"such as file_name or image beside caption or text, Flickr's lines or COCO's JSON"
        )


def read_table(path: str, encoding: str = "") -> Table:
    """Reads a table of captions, local or remote.

    Args:
      path: the file of the table.
      encoding: the encoding of a text file; empty for the one that `text_files.find_encoding`
        finds.

    Raises:
      UserError: the table cannot be read, or has none of the formats above.
    """
    end = os.path.splitext(remote.redact(path))[1].lower()
    file = _File(path)
    if end == ".parquet":
        return Table(list(_record_rows(_parquet_records(file), file)), file.notes)
    text, encoding = _read_text(file, encoding)
    if end == ".json":
        rows = _json_rows(text, file)
    elif end in (".jsonl", ".ndjson"):
        rows = _record_rows(_json_lines(text), file)
    else:
        rows = _text_rows(text, file)
    try:
        return Table([_checked(row, encoding) for row in rows], file.notes)
    except csv.Error as error:
        raise UserError(f"{file.redacted} cannot be read as a table ({error})") from None


def _checked(row: Row, encoding: str) -> Row:
    """Returns a row, with a problem if it contains bytes that its encoding does not have."""
    texts = (value for value in (row.name, *row.fields.values()) if isinstance(value, str))
    if any(map(text_files.has_undecoded, texts)):
        name = text_files.encoding_name(encoding)
        return Row(None, {}, row.where, f"it holds bytes that are not {name}")
    return row


def _read_text(file: _File, encoding: str) -> tuple[str, str]:
    """Returns the text of a file and its encoding."""
    content = _read_bytes(file)
    if not encoding:
        encoding, note = text_files.find_encoding(file.path, io.BytesIO(content))
        file.notes += [note] if note else []
    try:
        return text_files.decode(content, encoding), encoding
    except UnicodeError as error:
        name = text_files.encoding_name(encoding)
        raise UserError(
            f"{file.redacted} is not {name} ({error}); see config.data.encoding"
        ) from None


def _read_bytes(file: _File) -> bytes:
    try:
        with remote.open_file(file.path) as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{file.path} cannot be read ({error.strerror})") from None
    if why := disguise(content, paths.suffix(file.path)):
        raise UserError(f"{file.redacted} {why}")
    if len(content) > MAX_BYTES:
        raise UserError(f"{file.redacted} is over {MAX_BYTES >> 20} MiB")
    return content


def _parquet_records(file: _File) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet

        from clip_jax.data.sources.tables.columns import python_rows
    except ImportError as error:
        raise UserError(
            f"{file.path} needs pyarrow, which is not installed ({error}): "
            "pip install 'clip_jax[tables]'"
        ) from None
    try:
        with remote.open_file(file.path) as opened:
            number = 0
            for batch in pyarrow.parquet.ParquetFile(opened).iter_batches(1024):
                for record in python_rows(batch):
                    yield f"row {number:,}", record
                    number += 1
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{file.redacted} cannot be read as a table ({why})") from None


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    """Yields the values of JSON lines, and None for a line that is not JSON."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number:,}", _parse_json(line)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None


def _first_column(names: Iterable[str], candidates: Iterable[str]) -> str:
    """Returns the first candidate among names, ignoring case; empty if there is none."""
    by_lower = {name.strip().lower(): name for name in names}
    return next((by_lower[name] for name in candidates if name in by_lower), "")


def _record_rows(records: Iterable[tuple[str, Any]], file: _File) -> Iterator[Row]:
    """Yields the rows of objects that have a field for the image."""
    image_column, aliases = "", set[str]()
    for where, record in records:
        if not isinstance(record, Mapping):
            yield Row(None, {}, where, "it is no object of JSON")
            continue
        is_usual = image_column in record
        column = image_column if is_usual else _first_column(record, _IMAGE_COLUMNS)
        if not column and not image_column:
            raise file.unknown(f"{where} has {_list_names(record)}")
        image_column = image_column or column
        name = record.get(column)
        fields = {key: value for key, value in record.items() if key != column}
        if alias := _add_caption(fields):
            aliases.add(alias)
        yield Row(name if isinstance(name, str) else None, fields, where)
    file.notes += [f"{file.redacted}: {{caption}} is {quoted(alias)}" for alias in sorted(aliases)]


def _list_names(names: Iterable[str]) -> str:
    return ", ".join(quoted(str(name)) for name in list(names)[:_MAX_NAMED]) or "nothing"


def caption_column(names: Iterable[str]) -> str:
    """Returns the column that `{caption}` reads where no column is called `caption`.

    That is a column with a usual name for captions, or the only column. The result is empty if
    neither exists, or if a column is called `caption`.

    Args:
      names: the names of all columns except that of the images.
    """
    columns = list(names)
    if "caption" in columns:
        return ""
    return _first_column(columns, _CAPTION_COLUMNS) or (columns[0] if len(columns) == 1 else "")


def _add_caption(fields: Fields) -> str:
    """Adds the field `caption` if another field is the caption; returns that field's name."""
    if column := caption_column(fields):
        fields["caption"] = fields[column]
    return column


def _json_rows(text: str, file: _File) -> Iterator[Row]:
    content = _parse_json(text)
    lines = () if content is not None else _json_lines(text)
    if isinstance(next((record for _, record in lines), None), dict):  # objects, one a line
        yield from _record_rows(_json_lines(text), file)
    elif isinstance(content, list):
        yield from _record_rows(((f"item {i:,}", item) for i, item in enumerate(content)), file)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from _coco_rows(content, file)
    elif isinstance(content, dict) and any(_is_image(key) for key in content):
        for key, value in content.items():
            fields = dict(value) if isinstance(value, dict) else {"caption": value}
            _add_caption(fields)
            yield Row(key, fields, quoted(key))
    else:
        raise file.unknown("broken JSON" if content is None else "other JSON")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _coco_rows(content: JsonObject, file: _File) -> Iterator[Row]:
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        what = "a file of Karpathy's splits" if "dataset" in content else "without annotations"
        raise file.unknown(what)
    if not any(isinstance(item, dict) and "caption" in item for item in annotations):
        raise file.unknown("its annotations have no captions: give captions_….json")
    names = {
        image["id"]: image.get("file_name")
        for image in content["images"]
        if isinstance(image, dict) and isinstance(image.get("id"), (int, str))
    }
    for number, item in enumerate(annotations):
        where = f"annotation {number:,}"
        if not isinstance(item, dict) or not isinstance(item.get("image_id"), (int, str)):
            yield Row(None, {}, where, "it has no image_id")
            continue
        name = names.get(item["image_id"])
        fields = {"caption": item.get("caption"), "image_id": item["image_id"]}
        yield Row(name if isinstance(name, str) else None, fields, where)


def _text_rows(text: str, file: _File) -> Iterator[Row]:
    """Yields the rows of a text: Flickr's tokens, or cells between separators."""
    first = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    if (token := _TOKEN.fullmatch(first)) and _is_image(token[1].strip()):
        yield from _token_rows(text)
        return
    for separator in _SEPARATORS:
        names = [cell.strip() for cell in next(_cells(first, separator), (1, []))[1]]
        while names and not names[-1]:  # spreadsheets leave empty columns behind
            names.pop()
        if len(names) < 2:
            continue
        if image := _first_column(names, _IMAGE_COLUMNS):
            yield from _separated_rows(text, file, separator, names, image)
            return
        if _is_image(names[0]):
            columns = ["image", "caption"]
            yield from _separated_rows(text, file, separator, columns, "image", has_header=False)
            return
    raise file.unknown(f"it begins with {quoted(first[:100])!r}")


def _token_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if token := _TOKEN.fullmatch(line.rstrip("\r")):
            yield Row(token[1].strip(), {"caption": token[2].strip()}, f"line {number:,}")
        else:
            yield Row(None, {}, f"line {number:,}", "it is no NAME#NUMBER, tab, caption")


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line of each row, and its cells.

    Cells between bars, as in Flickr30k, are never quoted.
    """
    if separator == "|":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, line.rstrip("\r").split("|")
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    number = 1
    for cells in reader:
        if cells:
            yield number, cells
        number = reader.line_num + 1


def _separated_rows(
    text: str,
    file: _File,
    separator: str,
    columns: list[str],
    image: str,
    has_header: bool = True,
) -> Iterator[Row]:
    """Yields rows of cells; surplus separators belong to the last column if that is the caption."""
    caption = _first_column(columns, _CAPTION_COLUMNS)
    caption = caption or (columns[-1] if len(columns) == 2 else "")
    if caption and caption != "caption":
        file.notes.append(f"{file.redacted}: {{caption}} is {quoted(caption)}")
    longer, rows = 0, _cells(text, separator)
    if has_header:
        next(rows, None)
    for number, cells in rows:
        where = f"line {number:,}"
        if any(_contains_rows(cell, separator) for cell in cells):
            raise UserError(
                f"{file.redacted}, {where}: a quote that opens here takes the rows after "
                "it into one cell: double it, or remove it"
            )
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()
        if len(cells) > len(columns) and columns[-1] == caption:
            longer += 1
            cells[len(columns) - 1 :] = [separator.join(cells[len(columns) - 1 :])]
        if len(cells) != len(columns):
            what = f"it has {len(cells):,} of {len(columns):,} columns"
            yield Row(None, {}, where, what)
            continue
        fields = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        name = fields.pop(image)
        if caption:
            fields["caption"] = fields[caption]
        yield Row(name or None, fields, where)
    if longer:
        file.notes.append(
            f"{file.redacted}: {longer:,} rows have more separators than columns; what "
            f"follows belongs to {quoted(caption)}"
        )


def _contains_rows(cell: str, separator: str) -> bool:
    """Returns whether a cell contains the starts of further rows, because a quote never closes."""
    return any(_is_image(line.split(separator, 1)[0]) for line in cell.split("\n")[1:])
