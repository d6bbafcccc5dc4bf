"""Tables of captions as common data sets have them: which picture, and what is said of it.

- imagefolder's `metadata.csv`, `metadata.jsonl`, `metadata.parquet`: a column `file_name`;
- Flickr8k's and Flickr30k's `captions.txt`, `results.csv`, `….token`: a line for each caption;
- COCO's `captions_train2017.json`: lists of `images` and `annotations`;
- a JSON list of objects, or one object that has captions by the names of pictures.

Only Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from clip_jax.data.example import IMAGES
from clip_jax.data.opening import quoted
from clip_jax.data.sources.disguises import disguise
from clip_jax.errors import UserError
from clip_jax.io import paths, remote

MAX_BYTES = 1 << 30  # of a table
# Columns that name the picture, and those that are its caption, the first that is there.
_PICTURES = (
    *("file_name", "filename", "image", "image_name", "image_path", "file_path", "filepath"),
    *("file", "path", "img", "img_name", "picture", "photo", "image_file"),
)
_CAPTIONS = ("caption", "captions", "text", "comment", "description", "sentence", "prompt", "title")
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")  # Flickr's: 1000268201_693b08cb0e.jpg#0	A child …
_SEPARATORS = ("\t", "|", ";", ",")


class Row(NamedTuple):
    """What a table says of one picture.

    name: of the picture, as the table has it; None where the row has none.
    where: the row or line, for errors.
    problem: why the row cannot be read; empty where it can.
    """

    name: str | None
    fields: dict[str, Any]
    where: str
    problem: str = ""


class Table(NamedTuple):
    """A table that was read: its rows, and what to say about how it was read."""

    rows: list[Row]
    notes: list[str]


def read(path: str) -> Table:
    """Reads a table of captions, here or far away.

    Raises:
      UserError: it cannot be read, or is none of those above.
    """
    end = os.path.splitext(remote.shown(path))[1].lower()
    notes: list[str] = []
    if end == ".parquet":
        rows = _of_records(_parquet(path), path, notes)
    else:
        text = _decoded(_bytes(path), path, notes)
        if end == ".json":
            rows = _json(text, path, notes)
        elif end in (".jsonl", ".ndjson"):
            rows = _of_records(_lines(text), path, notes)
        else:
            rows = _text(text, path, notes)
    try:
        return Table(list(rows), notes)
    except csv.Error as error:
        raise UserError(f"{remote.shown(path)} cannot be read as a table ({error})") from None


def _bytes(path: str) -> bytes:
    try:
        with remote.open_file(path) as file:
            found = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if why := disguise(found, paths.suffix(path)):
        raise UserError(f"{remote.shown(path)} {why}")
    if len(found) > MAX_BYTES:
        raise UserError(f"{remote.shown(path)} is over {MAX_BYTES >> 20} MiB")
    return found


def _decoded(raw: bytes, path: str, notes: list[str]) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        encoding = "cp1252"
        text = raw.decode(encoding, errors="replace")
    if encoding != "utf-8-sig":
        notes.append(f"{remote.shown(path)} is no UTF-8: it is read as {encoding}")
    return text


def _unknown(path: str, what: str) -> UserError:
    return UserError(
        f"{remote.shown(path)} is no table of captions that is known ({what}): expected a column "
        f"such as file_name or image beside caption or text, Flickr's lines or COCO's JSON"
    )


def _parquet(path: str) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet

        from clip_jax.data.sources.tables.columns import python_rows
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow, which is not installed ({error}): "
            "pip install 'clip_jax[tables]'"
        ) from None
    try:
        with remote.open_file(path) as file:
            number = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024):
                for record in python_rows(batch):
                    yield f"row {number:,}", record
                    number += 1
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{remote.shown(path)} cannot be read as a table ({why})") from None


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    """JSON lines; None for a line that is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number:,}", _loaded(line)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None


def _column(names: Iterable[str], among: Iterable[str]) -> str:
    by_lower = {name.strip().lower(): name for name in names}
    return next((by_lower[one] for one in among if one in by_lower), "")


def _of_records(records: Iterable[tuple[str, Any]], path: str, notes: list[str]) -> Iterator[Row]:
    """Rows of objects that have a field for the picture."""
    picture, aliases = "", set[str]()
    for where, record in records:
        if not isinstance(record, Mapping):
            yield Row(None, {}, where, "it is no object of JSON")
            continue
        column = picture if picture in record else _column(record, _PICTURES)
        if not column and not picture:
            raise _unknown(path, f"{where} has {_named(record)}")
        picture = picture or column
        name = record.get(column)
        fields = {key: value for key, value in record.items() if key != column}
        if alias := _with_caption(fields):
            aliases.add(alias)
        yield Row(name if isinstance(name, str) else None, fields, where)
    notes += [f"{remote.shown(path)}: {{caption}} is {quoted(alias)}" for alias in sorted(aliases)]


def _named(names: Iterable[str]) -> str:
    return ", ".join(quoted(str(name)) for name in list(names)[:10]) or "nothing"


def caption_column(names: Iterable[str]) -> str:
    """The column that is `{caption}` where none is called so: by its name, or as the only one.

    names: of all columns beside the picture's. Empty: none is.
    """
    known = list(names)
    if "caption" in known:
        return ""
    return _column(known, _CAPTIONS) or (known[0] if len(known) == 1 else "")


def _with_caption(fields: dict[str, Any]) -> str:
    """Gives fields a `caption` where another field is one; gives that field's name."""
    if column := caption_column(fields):
        fields["caption"] = fields[column]
    return column


def _json(text: str, path: str, notes: list[str]) -> Iterator[Row]:
    content = _loaded(text)
    lines = () if content is not None else _lines(text)
    if isinstance(next((record for _, record in lines), None), dict):  # objects, one a line
        yield from _of_records(_lines(text), path, notes)
    elif isinstance(content, list):
        yield from _of_records(((f"item {i:,}", one) for i, one in enumerate(content)), path, notes)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from _coco(content, path)
    elif isinstance(content, dict) and any(_is_picture(key) for key in content):
        for key, value in content.items():
            fields = dict(value) if isinstance(value, dict) else {"caption": value}
            _with_caption(fields)
            yield Row(key, fields, quoted(key))
    else:
        raise _unknown(path, "broken JSON" if content is None else "other JSON")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _coco(content: dict[str, Any], path: str) -> Iterator[Row]:
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        kind = "a file of Karpathy's splits" if "dataset" in content else "without annotations"
        raise _unknown(path, kind)
    if not any(isinstance(one, dict) and "caption" in one for one in annotations):
        raise _unknown(path, "its annotations have no captions: give captions_….json")
    names = {
        one["id"]: one.get("file_name")
        for one in content["images"]
        if isinstance(one, dict) and isinstance(one.get("id"), (int, str))
    }
    for number, one in enumerate(annotations):
        where = f"annotation {number:,}"
        if not isinstance(one, dict) or not isinstance(one.get("image_id"), (int, str)):
            yield Row(None, {}, where, "it has no image_id")
            continue
        name = names.get(one["image_id"])
        said = {"caption": one.get("caption"), "image_id": one["image_id"]}
        yield Row(name if isinstance(name, str) else None, said, where)


def _text(text: str, path: str, notes: list[str]) -> Iterator[Row]:
    """Rows of lines: Flickr's tokens, or cells between separators."""
    first = next((line for line in text.split("\n") if line.strip()), "").rstrip("\r")
    if (token := _TOKEN.fullmatch(first)) and _is_picture(token[1].strip()):
        yield from _tokens(text)
        return
    for separator in _SEPARATORS:
        names = [cell.strip() for cell in next(_cells(first, separator), (1, []))[1]]
        while names and not names[-1]:  # spreadsheets leave empty columns behind
            names.pop()
        if len(names) < 2:
            continue
        if picture := _column(names, _PICTURES):
            yield from _separated(text, path, separator, names, picture, notes)
            return
        if _is_picture(names[0]):
            columns = ["image", "caption"]
            yield from _separated(text, path, separator, columns, "image", notes, header=False)
            return
    raise _unknown(path, f"it begins with {quoted(first[:100])!r}")


def _tokens(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if token := _TOKEN.fullmatch(line.rstrip("\r")):
            yield Row(token[1].strip(), {"caption": token[2].strip()}, f"line {number:,}")
        else:
            yield Row(None, {}, f"line {number:,}", "it is no NAME#NUMBER, tab, caption")


def _cells(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line of each row, and its cells.

    Flickr30k's, between bars, are never quoted.
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


def _separated(
    text: str,
    path: str,
    separator: str,
    columns: list[str],
    picture: str,
    notes: list[str],
    header: bool = True,
) -> Iterator[Row]:
    """Rows of cells. What follows the last separator that is needed belongs to the last column."""
    caption = _column(columns, _CAPTIONS) or (columns[-1] if len(columns) == 2 else "")
    if caption and caption != "caption":
        notes.append(f"{remote.shown(path)}: {{caption}} is {quoted(caption)}")
    longer, left = 0, header
    for number, cells in _cells(text, separator):
        if left:
            left = False
            continue
        where = f"line {number:,}"
        if any(_swallows(cell, separator) for cell in cells):
            raise UserError(
                f"{remote.shown(path)}, {where}: a quote that opens here takes the rows after "
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
        name = fields.pop(picture)
        if caption:
            fields["caption"] = fields[caption]
        yield Row(name or None, fields, where)
    if longer:
        notes.append(
            f"{remote.shown(path)}: {longer:,} rows have more separators than columns; what "
            f"follows belongs to {quoted(caption)}"
        )


def _swallows(cell: str, separator: str) -> bool:
    """Whether a cell holds the beginnings of further rows."""
    return any(_is_picture(line.split(separator, 1)[0]) for line in cell.split("\n")[1:])
