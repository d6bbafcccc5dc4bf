"""A table's rows are its pairs, whatever it is written in; what is wrong with one is one line."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.data.pairs import Pair
from clip_jax.data.sources import open_source
from clip_jax.data.tables import TableSource
from support import refused

ROWS = [
    {"filepath": "in/a.jpg", "title": 'a "quoted", caption', "n": "1"},
    {"filepath": "b.jpg", "title": "two\nlines ☃", "n": "2"},
    {"filepath": "in/a.jpg", "title": "", "n": "3"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures `in/a.jpg` and `b.jpg`, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inner = tmp_path / "data"
    (inner / "in").mkdir(parents=True)
    (inner / "in" / "a.jpg").write_bytes(b"A")
    (inner / "b.jpg").write_bytes(b"B")
    return inner


def write_separated(path: Path, rows: list[dict[str, str]], delimiter: str) -> None:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = [delimiter.join('"' + v.replace('"', '""') + '"' for v in line) for line in lines]
    path.write_text("\n".join(quoted) + "\n", encoding="utf-8")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        write_separated(path, rows, {".csv": ",", ".tsv": "\t"}[path.suffix])
    return path


def pairs(spec: object, *more: str) -> list[Pair]:
    source = open_source(str(spec), *more)
    assert isinstance(source, TableSource)
    again = pickle.loads(pickle.dumps(source))  # as a worker gets it
    found = [source[i] for i in range(len(source))]
    assert [again[i] for i in reversed(range(len(again)))] == found[::-1]
    return found


@pytest.mark.parametrize("end", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_name_pictures_beside_the_table(folder: Path, end: str) -> None:
    expected = [
        Pair(data, {"title": row["title"], "n": row["n"]}, str(folder / row["filepath"]))
        for row, data in zip(ROWS, [b"A", b"B", b"A"], strict=True)
    ]
    assert pairs(write(folder / f"pairs.{end}", ROWS)) == expected


def test_many_files_are_one_table_and_are_read_once(folder: Path) -> None:
    for i in range(3):
        write(folder / f"{i}.parquet", ROWS[i:])
    titles = [row["title"] for i in range(3) for row in ROWS[i:]]
    assert [p.text["title"] for p in pairs(folder / "{0..2}.parquet")] == titles

    cached = {p: p.stat().st_mtime_ns for p in (folder.parent / "cache").rglob("*.arrow")}
    assert len(cached) == 1
    assert [p.text["title"] for p in pairs(folder / "{0..2}.parquet")] == titles
    assert {p: p.stat().st_mtime_ns for p in (folder.parent / "cache").rglob("*.arrow")} == cached

    write(folder / "1.parquet", [{**ROWS[0], "title": "new"}])
    assert pairs(folder / "*.parquet")[3].text["title"] == "new", "a changed file is read again"


def test_pictures_may_be_in_the_table(folder: Path) -> None:
    rows = [{"img": b"\x89PNG", "caption": "bytes"}, {"img": b"RIFF", "caption": "more"}]
    path = write(folder / "x.parquet", rows)
    assert pairs(path) == [
        Pair(row["img"], {"caption": row["caption"]}, f"{path}: row {i}")
        for i, row in enumerate(rows)
    ]
    struct = [
        {"image": {"bytes": b"1", "path": "b.jpg"}, "text": "bytes come first"},
        {"image": {"bytes": None, "path": "b.jpg"}, "text": "path"},
    ]
    assert [p.image for p in pairs(write(folder / "y.parquet", struct))] == [b"1", b"B"]


def save_to_disk(folder: Path, parts: list[list[dict[str, Any]]]) -> Path:
    """As `datasets` 4 does: Arrow streams, and a list of them."""
    names = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
    folder.mkdir()
    for name, rows in zip(names, parts, strict=True):
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(folder / name), table.schema) as file:
            file.write_table(table, max_chunksize=2)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x"}))
    return folder


def test_what_datasets_saved_is_mapped_and_not_copied(folder: Path) -> None:
    rows = [{"image": {"bytes": b"%d" % i, "path": None}, "text": f"{i}"} for i in range(7)]
    saved = save_to_disk(folder / "saved", [rows[:5], rows[5:]])
    assert [(p.image, p.text) for p in pairs(saved)] == [
        (b"%d" % i, {"text": f"{i}"}) for i in range(7)
    ]
    assert not (folder.parent / "cache").exists()

    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    refused(lambda: open_source(str(saved)), "../x.arrow", "not in the folder")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "x.arrow"}]}))
    (saved / "x.arrow").write_bytes(b"no stream")
    refused(lambda: open_source(str(saved)), "x.arrow is no Arrow stream")


def test_paths_do_not_leave_their_root(folder: Path) -> None:
    secret = folder.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(secret)
    for i, path in enumerate([str(secret), "../secret.jpg", "link.jpg", "/etc/passwd.jpg"]):
        table = write(folder / f"{i}.csv", [{**ROWS[0], "filepath": path}])
        source = open_source(str(table))
        refused(lambda source=source: source[0], path, "leaves", "config.data.root")
    table = write(folder / "absolute.csv", [{**ROWS[0], "filepath": str(secret)}])
    assert pairs(table, "", str(folder.parent))[0].image == b"secret"


def test_the_column_of_the_pictures_can_be_said(folder: Path) -> None:
    rows = [{"thumb": "b.jpg", "full": "in/a.jpg", "caption": "x"}]
    path = write(folder / "x.csv", rows)
    refused(lambda: open_source(str(path)), "thumb, full all look", "config.data.image")
    assert pairs(path, "full") == [
        Pair(b"A", {"thumb": "b.jpg", "caption": "x"}, str(folder / "in/a.jpg"))
    ]
    refused(lambda: open_source(str(path), "pic"), "no column 'pic'", "thumb, full, caption")
    path = write(folder / "y.csv", [{"url": "http://x/y", "caption": "x"}])
    refused(lambda: open_source(str(path)), "no column holds pictures", "url, caption")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.parquet", b"PAR1 no", "cannot be read as a table"),
        ("x.csv", b"a.jpg,b\n1,2,3\n", "cannot be read as a table"),
        ("x.csv", b"path,caption\na.jpg,\xff\xfe\n", "cannot be read as a table"),
        ("x.csv", b"path,caption\n", "no rows"),
        ("x.csv", b"", "cannot be read as a table"),
        ("x.jsonl", b'{"a": 1}\n{"a": ', "cannot be read as a table"),
        ("x.jsonl", b"[1]\n", "cannot be read as a table"),
    ],
)
def test_what_is_no_table_is_one_line(folder: Path, name: str, data: bytes, said: str) -> None:
    (folder / name).write_bytes(data)
    refused(lambda: open_source(str(folder / name)), folder / name, said)
    assert not list((folder.parent / "cache").rglob("*.arrow*")), "nothing half-written is left"


def test_other_columns_are_refused(folder: Path) -> None:
    write(folder / "0.csv", ROWS)
    write(folder / "1.csv", [{"filepath": "b.jpg", "name": "x"}])
    refused(lambda: open_source(f"{folder}/*.csv"), "1.csv has other columns", "filepath, name")


@pytest.mark.parametrize("value", [None, 3, ""])
def test_a_row_without_a_picture_is_named(folder: Path, value: Any) -> None:
    path = write(folder / "x.jsonl", [{"p": value, "caption": "x"}])
    source = open_source(str(path), "p")
    refused(lambda: source[0], f"{path}: row 0", "not a picture")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(TEXT, min_size=1, max_size=30), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_any_text_comes_back(folder: Path, texts: list[str], end: str) -> None:
    path = folder / f"any.{end}"
    write(path, [{"path": "b.jpg", "caption": text, "": "no name"} for text in texts])
    os.utime(path, ns=(hash(tuple(texts)) % 10**18, hash(tuple(texts)) % 10**18))
    assert [p.text["caption"] for p in pairs(path)] == texts
