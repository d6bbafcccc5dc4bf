"""Shards of exported pairs: WebDataset tars, and Parquet tables with or without the images."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from clip_jax.data.example import IMAGES, Fields
from clip_jax.data.images.decoding import open_image
from clip_jax.data.sources import KnowsMembers, Members, Source, read_pair, read_text

if TYPE_CHECKING:
    import pyarrow as pa

OTHER = "other_fields"  # the column of what fits into no other, as JSON
_IMAGE = "image"
_BLOCK = 512  # bytes of a tar's header, and what its members are padded to
_ROWS, _GROUP = 1024, 64 << 20  # rows and bytes of a row group, at most
_MOST_COLUMNS = 256
_ENDS = {
    **{"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"},
    **{"TIFF": ".tif", "PPM": ".ppm", "JPEG2000": ".jp2", "AVIF": ".avif"},
}
_MAX_INT = 1 << 63


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair to be written into a table.

    Attributes:
      image: the bytes of the image; empty where images are not written.
      fields: the text fields.
    """

    image: bytes
    fields: Fields


def read_members(source: Source, i: int) -> Members:
    """Reads the files of a pair; a source that has none gets a `.json` of the fields.

    Raises:
      PairError: the pair cannot be read.
    """
    if isinstance(source, KnowsMembers):
        return source.members(i)
    image, fields, name = read_pair(source, i)
    return Members(image, [(json_of(fields), ".json")], name)


def read_row(source: Source, i: int, with_image: bool) -> Row:
    """Reads a pair as a row.

    Raises:
      PairError: the pair cannot be read.
    """
    if with_image:
        pair = read_pair(source, i)
        return Row(pair.image, pair.text)
    return Row(b"", read_text(source, i)[0])


def json_of(fields: Mapping[str, Any]) -> bytes:
    """Returns fields as JSON: NaN, which is null in tables, as null, and bytes in base 64."""
    text = json.dumps(_plain(fields), ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return None if isinstance(value, float) and value != value else value


def ending_of(image: bytes, name: str) -> str:
    """Returns the ending of an image's file name: its own, or else that of its format."""
    end = f".{name.rpartition('.')[2].lower()}"
    if end in IMAGES:
        return end
    try:
        with open_image(image) as opened:
            return _ENDS[str(opened.format)]
    except Exception:  # damaged files raise exceptions of every type
        return ".jpg"


def size_in_tar(pair: Members) -> int:
    """Returns the bytes that a pair takes in a tar."""
    sizes = [len(pair.image), *(len(content) for content, _ in pair.texts)]
    return sum(_BLOCK - (-size // _BLOCK) * _BLOCK for size in sizes)


def write_tar(file: BinaryIO, pairs: Iterable[tuple[int, Members]]) -> None:
    """Writes pairs into a tar; the same pairs give the same bytes.

    Args:
      file: where to write.
      pairs: the number of each pair, which becomes its key, and the pair.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, pair in pairs:
            parts = [(pair.image, ending_of(pair.image, pair.name)), *pair.texts]
            for content, end in parts:
                member = tarfile.TarInfo(f"{number:09}{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps all headers otherwise


def schema_of(rows: Sequence[Row], with_images: bool) -> pa.Schema:
    """Returns the columns of a table, from rows that are like all others.

    A field whose values have one type becomes a column. All that fits into no column goes into
    `OTHER` as JSON, so that nothing is lost.

    Args:
      rows: some rows.
      with_images: whether there is a column of images.
    """
    import pyarrow as pa

    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.fields.items():
            if name not in values and len(values) >= _MOST_COLUMNS:
                continue
            values.setdefault(name, []).append(value)
    columns = {name: _kind(list_of) for name, list_of in values.items() if _is_name(name)}
    fields = [pa.field(name, kind) for name, kind in columns.items() if kind and name != OTHER]
    if with_images:
        fields = [pa.field(image_column(values), pa.binary()), *fields]
    return pa.schema([*fields, pa.field(OTHER, pa.string())])


def image_column(names: Iterable[str]) -> str:
    """Returns the name of the column of images, which is no field's."""
    name, taken = _IMAGE, set(names)
    while name in taken:
        name += "_bytes"
    return name


def _is_name(name: str) -> bool:
    return bool(name) and name.isprintable()


def _kind(values: Iterable[Any]) -> pa.DataType | None:
    """Returns the one type of values, or None; nulls have any."""
    import pyarrow as pa

    present = [value for value in values if not _is_null(value)]
    kinds = {type(value) for value in present}
    simple = {bool: pa.bool_(), int: pa.int64(), str: pa.string(), bytes: pa.binary()}
    if len(kinds) == 1 and (kind := simple.get(next(iter(kinds)))):
        return kind
    if kinds and kinds <= {int, float}:
        return pa.float64()
    if kinds == {list}:
        inner = _kind(item for value in present for item in value)
        return pa.list_(inner) if inner else None
    if kinds == {dict}:
        parts: dict[str, list[Any]] = {}
        for value in present:
            for key, item in value.items():
                parts.setdefault(key, []).append(item)
        inner_kinds = {key: _kind(items) for key, items in parts.items() if _is_name(key)}
        known = [pa.field(key, kind) for key, kind in inner_kinds.items() if kind]
        return pa.struct(known) if 0 < len(known) <= _MOST_COLUMNS else None
    return None


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Returns whether a column of a type holds a value without change."""
    import pyarrow as pa

    if _is_null(value):
        return True
    if pa.types.is_list(kind):
        return type(value) is list and all(_fits(item, kind.value_type) for item in value)
    if pa.types.is_struct(kind):
        inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return type(value) is dict and all(
            key in inner and _fits(item, inner[key]) for key, item in value.items()
        )
    if pa.types.is_string(kind):
        return type(value) is str and not any("\ud800" <= c <= "\udfff" for c in value)
    if pa.types.is_int64(kind):
        return type(value) is int and -_MAX_INT <= value < _MAX_INT
    if pa.types.is_float64(kind):
        return type(value) is float or (type(value) is int and abs(value) <= 1 << 53)
    return type(value) is (bool if pa.types.is_boolean(kind) else bytes)


def write_parquet(
    file: BinaryIO, schema: pa.Schema, rows: Iterable[tuple[int, Row]], with_images: bool
) -> None:
    """Writes rows into a Parquet file, a group of rows at a time.

    Args:
      file: where to write.
      schema: the columns, see `schema_of`.
      rows: the number of each row, which is not written, and the row.
      with_images: whether the first column is that of the images.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {field.name: field.type for field in schema if field.name != OTHER}
    image = next(iter(kinds)) if with_images else None
    names = [name for name, kind in kinds.items() if not pa.types.is_binary(kind)]
    with pq.ParquetWriter(
        file, schema, use_dictionary=names, write_statistics=names, write_page_checksum=True
    ) as writer:
        for group in _groups(row for _, row in rows):
            columns: dict[str, list[Any]] = {name: [] for name in schema.names}
            for row in group:
                _add(columns, kinds, row, image)
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.image)
        if len(group) >= _ROWS or size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _add(
    columns: Mapping[str, list[Any]],
    kinds: Mapping[str, pa.DataType],
    row: Row,
    image: str | None,
) -> None:
    """Adds a row to columns; `image` names the one of the images."""
    other = {name: value for name, value in row.fields.items() if not _is_null(value)}
    for name, kind in kinds.items():
        if name == image:
            columns[name].append(row.image)
        elif name in other and _fits(other[name], kind):
            columns[name].append(other.pop(name))
        else:
            columns[name].append(None)
    columns[OTHER].append(json_of(other).decode() if other else None)
