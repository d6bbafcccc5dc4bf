"""Rows of any fields in Parquet: nothing is lost, whatever the types of strangers are."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.curation.curated import shards
from clip_jax.curation.curated.shards import OTHER, Row
from support import encoded, picture

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.dictionaries(st.sampled_from(["a", "b", "image", OTHER, "", "x\ny"]) | TEXTS, VALUES)


def pruned(value: Any) -> Any:
    """Without what is null, also NaN, which tables and JSON do not tell apart."""
    if isinstance(value, dict):
        inner = {key: pruned(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None} or None
    if isinstance(value, list):
        return [pruned(item) for item in value]
    return None if value != value else value


def written(schema: Any, rows: list[Row], with_images: bool = True) -> list[dict[str, Any]]:
    file = io.BytesIO()
    shards.write_parquet(file, schema, enumerate(rows), with_images)
    file.seek(0)
    return pq.read_table(file).to_pylist()


@settings(max_examples=40)
@given(st.lists(FIELDS, min_size=1, max_size=4), st.lists(FIELDS, max_size=3), st.booleans())
def test_nothing_is_lost(sample: list[Any], more: list[Any], with_images: bool) -> None:
    schema = shards.schema_of([Row(b"", fields) for fields in sample], with_images)
    rows = [Row(b"%d" % i, fields) for i, fields in enumerate([*sample, *more])]
    for row, table_row in zip(rows, written(schema, rows, with_images), strict=True):
        other = json.loads(table_row.pop(OTHER) or "{}")
        if with_images:
            assert table_row.pop(schema.names[0]) == row.image
        assert all(table_row.get(name) is None for name in other)
        assert pruned({**table_row, **other}) == pruned(row.fields)


def test_types_become_columns() -> None:
    rows = [
        Row(b"", {"caption": "a", "w": 1, "s": 0.5, "tags": ["x"], "meta": {"t": "u"}, "ok": True}),
        Row(b"", {"caption": "b", "w": 2, "s": 1, "tags": [], "meta": {"t": None}, "ok": None}),
    ]
    schema = shards.schema_of(rows, True)
    kinds = {field.name: str(field.type) for field in schema}
    assert kinds == {
        "image": "binary",
        "caption": "string",
        "w": "int64",
        "s": "double",
        "tags": "list<item: string>",
        "meta": "struct<t: string>",
        "ok": "bool",
        OTHER: "string",
    }
    (odd,) = written(schema, [Row(b"i", {"caption": 7, "w": 1 << 70, "meta": {"t": "u", "v": 1}})])
    assert json.loads(odd[OTHER]) == {"caption": 7, "w": 1 << 70, "meta": {"t": "u", "v": 1}}
    assert odd["caption"] is odd["w"] is odd["meta"] is None


@pytest.mark.parametrize(
    ("kind", "end"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp"), ("tiff", ".tif")]
)
def test_an_image_without_a_name_gets_an_ending(kind: str, end: str) -> None:
    image = encoded(picture(), kind)
    assert shards.ending_of(image, "table.parquet: row 3") == end
    assert shards.ending_of(image, "a.tar:b.JPEG") == ".jpeg"
    assert shards.ending_of(b"what", "row") == ".jpg"
