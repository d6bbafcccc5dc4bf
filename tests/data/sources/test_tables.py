"""A table's rows are its pairs, whatever it is written in; what is wrong with one is one line."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.data import mixture
from clip_jax.data.example import Pair, PairError
from clip_jax.data.sources import SourceOptions, open_source
from clip_jax.data.sources.table_options import TableOptions
from clip_jax.data.sources.tables import arrow_source
from clip_jax.data.sources.tables.arrow_source import ArrowSource
from clip_jax.data.sources.tables.source import TableSource
from clip_jax.errors import UserError
from support import refused, says

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
    source = open_source(str(spec), SourceOptions(*more))
    assert isinstance(source, ArrowSource)
    again = pickle.loads(pickle.dumps(source))  # as a worker gets it
    in_order = [source[i] for i in range(len(source))]
    assert [again[i] for i in reversed(range(len(again)))] == in_order[::-1]
    return in_order


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


def test_a_folder_saved_by_datasets_is_mapped_and_not_copied(folder: Path) -> None:
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
    (folder / "up").symlink_to(folder.parent)
    names = [str(secret), "../secret.jpg", "up/../../secret.jpg", "/etc/passwd.jpg"]
    for i, path in enumerate(names):
        table = write(folder / f"{i}.csv", [{**ROWS[0], "filepath": path}])
        source = open_source(str(table))
        refused(lambda source=source: source[0], path, "leaves", "config.data.root")
    table = write(folder / "absolute.csv", [{**ROWS[0], "filepath": str(secret)}])
    assert pairs(table, "", str(folder.parent))[0].image == b"secret"


def test_links_in_the_folder_are_the_users(folder: Path) -> None:
    """huggingface_hub keeps a revision as links into a folder of blobs."""
    (folder.parent / "blobs").mkdir()
    (folder.parent / "blobs" / "aa").write_bytes(b"blob")
    (folder / "in" / "link.jpg").symlink_to(Path("../../blobs/aa"))
    blob = write(folder.parent / "blobs" / "0.csv", [{**ROWS[0], "filepath": "in/link.jpg"}])
    (folder / "0.csv").symlink_to(blob)
    assert pairs(folder / "0.csv")[0].image == b"blob"
    (folder.parent / "other").symlink_to(folder)
    path = f"{folder.parent}/other/in/a.jpg"
    table = write(folder / "1.csv", [{**ROWS[0], "filepath": path}])
    assert pairs(table)[0].image == b"A", "a way into the folder by a link elsewhere"


def test_the_image_column_can_be_configured(folder: Path) -> None:
    rows = [{"thumb": "b.jpg", "full": "in/a.jpg", "caption": "x"}]
    path = write(folder / "x.csv", rows)
    refused(lambda: open_source(str(path)), "thumb, full all look", "config.data.image")
    assert pairs(path, "full") == [
        Pair(b"A", {"thumb": "b.jpg", "caption": "x"}, str(folder / "in/a.jpg"))
    ]
    refused(
        lambda: open_source(str(path), SourceOptions("pic")),
        "no column 'pic'",
        "thumb, full, caption",
    )
    path = write(folder / "y.csv", [{"url": "http://x/y", "caption": "x"}])
    refused(lambda: open_source(str(path)), "'url' holds web addresses", "img2dataset")
    path = write(folder / "z.csv", [{"page": "x/y", "caption": "x"}])
    refused(lambda: open_source(str(path)), "no column holds images", "page, caption")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.parquet", b"PAR1 no", "cannot be read as a table"),
        ("x.csv", b"a,b\n1,2,3\n", "line 2: it has 3 cells and the header 2: quote cells"),
        ("x.csv", b"a.jpg,b\n1,2\n", "its first line names an image and no columns (a.jpg,b)"),
        ("x.csv", b"path,a,a\nb.jpg,1,2\n", "two columns called 'a'"),
        ("x.csv", b"p\0a\0t\0h\0,\0a\0\n\0b\0", "looks like UTF-16 without a byte-order mark"),
        ("x.csv", b"path,caption\n", "no rows"),
        ("x.csv", b"", "cannot be read as a table"),
        ("x.jsonl", b'{"a": "b.jpg"}\n{"a": ', "x.jsonl: line 2: it is no JSON"),
        ("x.jsonl", b"[1]\n", "line 1: it is no object"),
        ("x.jsonl", b"[" * 100_000 + b"\n", "line 1: it is no JSON"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "line 1: it is no JSON"),
    ],
)
def test_a_file_that_is_not_a_table_is_a_one_line_error(
    folder: Path, name: str, data: bytes, message: str
) -> None:
    (folder / name).write_bytes(data)
    refused(lambda: open_source(str(folder / name)), folder / name, message)
    assert not list((folder.parent / "cache").rglob("*.arrow*")), "nothing half-written is left"


def test_rows_without_a_picture_are_left_out_and_counted(folder: Path) -> None:
    """As img2dataset leaves those that it could not download."""
    images = [None, "b.jpg", "", "in/a.jpg", None]
    rows = [{"p": p, "caption": f"c{i}", "status": "x"} for i, p in enumerate(images)]
    for end in ("jsonl", "parquet", "csv"):
        written = [{k: v or "" for k, v in row.items()} for row in rows] if end == "csv" else rows
        path = write(folder / f"x.{end}", written)
        assert [p.text["caption"] for p in pairs(path)] == ["c1", "c3"]
        report = open_source(str(path)).opening_report()
        assert (report.seen, report.used) == (5, 2)
        assert report.left_out["null_picture"].count == 3
    structs = [{"image": {"bytes": b, "path": None}, "caption": "x"} for b in (None, b"1", None)]
    for spec in (write(folder / "y.parquet", structs), save_to_disk(folder / "saved", [structs])):
        assert [p.image for p in pairs(spec)] == [b"1"]
        assert open_source(str(spec)).opening_report().left_out["null_picture"].count == 2
        assert open_source(str(spec))[0].name == f"{spec}: row 1"
    path = write(folder / "none.jsonl", [{"p": None, "caption": "x"}])
    refused(
        lambda: open_source(str(path), SourceOptions("p")),
        "no rows with an image (null_picture 1)",
    )


def test_a_cell_that_is_not_a_picture_is_named(folder: Path) -> None:
    source = open_source(
        str(write(folder / "x.jsonl", [{"p": 3, "caption": "x"}])), SourceOptions("p")
    )
    refused(lambda: source[0], f"{folder / 'x.jsonl'}: row 0", "not an image")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.sampled_from(["b.jpg", "in/a.jpg", None]), min_size=1, max_size=40), st.data())
def test_every_row_keeps_its_own_number_and_words(
    folder: Path, images: list[str | None], data: st.DataObject
) -> None:
    """Over several files and with rows left out, whatever they are written in."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(images)), max_size=3)))
    end = data.draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    inner = folder / f"numbers{abs(hash((tuple(images), tuple(cuts), end)))}"
    inner.mkdir(exist_ok=True)
    expected = []
    for k, (start, stop) in enumerate(itertools.pairwise([0, *cuts, len(images)])):
        rows = [{"p": p, "caption": f"{i}"} for i, p in enumerate(images[start:stop], start)]
        if end == "csv":
            rows = [{"p": row["p"] or "", "caption": row["caption"]} for row in rows]
        if rows:
            path = write(inner / f"{k}.{end}", rows)
            numbers = [i for i, row in enumerate(rows) if row["p"]]
            expected += [(rows[i]["caption"], f"{path}: row {i}") for i in numbers]
    if not expected:
        refused(
            lambda: open_source(f"{inner}/*.{end}", SourceOptions("p", str(folder))),
            "no rows with an image",
        )
        return
    source = open_source(f"{inner}/*.{end}", SourceOptions("p", str(folder)))
    texts = [source.text(i) for i in range(len(source))]
    assert [(text["caption"], name) for text, name in texts] == expected
    report = source.opening_report()
    assert (report.seen, report.used) == (len(images), len(expected))


def test_json_lines_keep_their_values(folder: Path) -> None:
    """Rows in which a reader that infers columns gives the captions of others, or nothing."""
    rows: list[dict[str, Any]] = [
        {"p": "b.jpg", "captions": [None, "caption 0"]},
        {"p": "b.jpg", "captions": ["caption 1"]},
        {"p": "b.jpg", "captions": "a text"},
        {"p": "b.jpg"},
        {"p": "b.jpg", "captions": None, "late": {"a": [1, "x", {}]}},
        {"p": "b.jpg", "captions": ["x" * (3 << 20)], "n": 10**30},
        {"p": "b.jpg", "n": 1.5, "captions": "\ud800"},
    ]
    path = folder / "x.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    expected = [{k: v for k, v in row.items() if k != "p"} for row in rows]
    assert [pair.text for pair in pairs(path)] == expected


def test_a_key_of_json_lines_may_come_late_or_be_null_for_long(folder: Path) -> None:
    rows: list[dict[str, Any]] = [{"p": "b.jpg", "caption": None} for _ in range(3000)]
    rows += [{"p": "b.jpg", "caption": "text", "title": ["late"]}]
    path = write(folder / "x.jsonl", rows)
    source = open_source(str(path))
    assert source[2999].text == {"caption": None}
    assert source[3000].text == {"caption": "text", "title": ["late"]}


def test_parquet_files_of_one_table_may_differ(folder: Path) -> None:
    """In the order of columns, in columns that only some have, and in how wide types are."""
    kinds = [
        {"p": pa.string(), "caption": pa.string(), "n": pa.int32()},
        {"caption": pa.large_string(), "n": pa.int64(), "p": pa.large_string()},
        {"p": pa.string(), "caption": pa.null(), "more": pa.list_(pa.float32()), "n": pa.int8()},
        {"p": pa.dictionary(pa.int8(), pa.string()), "caption": pa.string(), "n": pa.float32()},
    ]
    for i, kind in enumerate(kinds):
        values = {"p": "b.jpg", "caption": f"c{i}", "n": i, "more": [1.0]}
        row = {k: None if t == pa.null() else values[k] for k, t in kind.items()}
        table = pa.Table.from_pylist([row], pa.schema(list(kind.items())))
        pa.parquet.write_table(table, folder / f"{i}.parquet")
    read_pairs = pairs(f"{folder}/*.parquet")
    assert [p.text["caption"] for p in read_pairs] == ["c0", "c1", None, "c3"]
    assert [p.text["n"] for p in read_pairs] == [0, 1, 2, 3]
    assert [p.text["more"] for p in read_pairs] == [None, None, [1.0], None]
    notes = open_source(f"{folder}/*.parquet").opening_report().notes
    assert any("0.parquet has no column more" in note for note in notes)


def test_only_the_columns_that_are_needed_are_read(folder: Path) -> None:
    """So that a column of other types in some file does no harm."""
    write(folder / "0.parquet", [{"p": "b.jpg", "caption": "a", "key": "001", "s": 0.5}])
    write(folder / "1.parquet", [{"p": "b.jpg", "caption": "b", "key": 2, "s": 0.25}])
    pattern = f"{folder}/*.parquet"
    refused(lambda: open_source(pattern), "1.parquet has columns of other types", "key")
    data = {"train": pattern, "captions": ("{caption}",), "filter": {"least": {"s": 0.1}}}
    (part,) = mixture.open_mixture(data).parts
    assert [part.source[i].text for i in range(2)] == [
        {"caption": "a", "s": 0.5},
        {"caption": "b", "s": 0.25},
    ]
    lines: list[str] = []
    data = {"train": str(folder / "0.parquet"), "captions": ("{words}",)}
    refused(lambda: mixture.open_mixture(data, lines.append), "'words'", "caption, key, s")


def test_columns_that_some_csv_files_lack_are_null_there(folder: Path) -> None:
    write(folder / "0.csv", ROWS)
    write(folder / "1.csv", [{"name": "x", "filepath": "b.jpg"}])
    read_pairs = pairs(f"{folder}/*.csv")
    assert read_pairs[3].text == {"title": None, "n": None, "name": "x"}
    notes = open_source(f"{folder}/*.csv").opening_report().notes
    assert "0.csv has no column name" in notes[-2] and "1.csv has no column title, n" in notes[-1]


SEPARATED = "path{0}caption{0}n\nb.jpg{0}a cat{0}1\nin/a.jpg{0}two, dogs; both{0}2\n"


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["csv", "tsv"])
def test_another_separator_is_detected_and_reported(folder: Path, end: str, separator: str) -> None:
    text = SEPARATED.format(separator)
    if separator in ",;":
        text = text.replace("two, dogs; both", '"two, dogs; both"')
    path = folder / f"x.{end}"
    path.write_text(text)
    assert [p.text["caption"] for p in pairs(path)] == ["a cat", "two, dogs; both"]
    usual = separator == {"csv": ",", "tsv": "\t"}[end]
    notes = open_source(str(path)).opening_report().notes
    assert [f"{path} is separated by" in note for note in notes] == [True] * (not usual)
    form = TableOptions.from_config(separator="tab" if separator == "\t" else separator)
    assert open_source(str(path), SourceOptions(table=form)).opening_report().notes == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["csv", "jsonl"])
def test_the_encoding_is_detected_and_reported(folder: Path, end: str, encoding: str) -> None:
    row = {"path": "b.jpg", "caption": "ein Käse für 5 €"}
    text = json.dumps(row, ensure_ascii=False) if end == "jsonl" else "path,caption\n{0},{1}"
    path = folder / f"x.{end}"
    path.write_bytes((text.format(*row.values()) if end == "csv" else text).encode(encoding))
    assert pairs(path)[0].text == {"caption": "ein Käse für 5 €"}
    notes = open_source(str(path)).opening_report().notes
    assert ("utf-8" in encoding) == (not notes)
    assert not notes or encoding.lower() in notes[0].lower()
    form = TableOptions.from_config(encoding=encoding)
    assert open_source(str(path), SourceOptions(table=form))[0].text == {
        "caption": "ein Käse für 5 €"
    }


def test_a_line_of_other_bytes_is_left_out_of_a_file_of_utf8(folder: Path) -> None:
    for end, line in (("csv", b"b.jpg,%s"), ("jsonl", b'{"path": "b.jpg", "caption": "%s"}')):
        good = [line % "Käse".encode()] * 200
        lines = [*good, line % b"K\xe4se", *good]
        path = folder / f"x.{end}"
        path.write_bytes(b"\n".join([b"path,caption"] * (end == "csv") + lines))
        source = open_source(str(path))
        assert len(source) == 400 and source[399].text == {"caption": "Käse"}
        left_out = source.opening_report().left_out["unreadable"]
        assert left_out.count == 1 and f"line {201 + (end == 'csv')}: " in left_out.example
        assert source[200].name.endswith("b.jpg") and source.text(200)[1].endswith("row 201")


def test_a_few_broken_rows_are_counted_and_many_are_refused(folder: Path) -> None:
    good = "b.jpg,a cat\n" * 500
    path = folder / "x.csv"
    path.write_text(f"path,caption\n{good}b.jpg,a, b\nb.jpg\n{good}")
    source = open_source(str(path))
    report = source.opening_report()
    assert (report.seen, report.used, len(source)) == (1002, 1000, 1000)
    assert "line 502: it has 3 cells and the header 2" in report.left_out["unreadable"].example
    open_source(str(path), SourceOptions(max_bad_fraction=0.002))
    for most in (0.0, 0.001):
        path.write_text(path.read_text() + "b.jpg,x\n")
        refused(
            lambda most=most: open_source(str(path), SourceOptions(max_bad_fraction=most)),
            *("x.csv: line 502", "rows cannot be read", "config.data.max_bad_fraction"),
        )


def test_a_lone_quotation_mark_is_reported_and_can_be_taken_as_a_letter(folder: Path) -> None:
    rows = [f"b.jpg,dog {i}" for i in range(30)]
    rows[3] = 'b.jpg,"big" cat'
    rows[5], rows[20] = 'b.jpg,"cat', 'b.jpg,a 12" ruler'
    path = folder / "x.csv"
    path.write_text("\n".join(["path,caption", *rows]))
    source = open_source(str(path), SourceOptions(max_bad_fraction=1))
    assert len(source) < 30
    (note,) = source.opening_report().notes
    assert "line breaks within quotation marks" in note and "config.data.quoting=none" in note
    assert "from line 7" in note
    source = open_source(str(path), SourceOptions(table=TableOptions.from_config(quoting="none")))
    assert [source[i].text["caption"] for i in range(30)] == [row[6:] for row in rows]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("--", "", ""), "config.data.separator='--' must be one character"),
        (('"', "", ""), "config.data.separator"),
        (("", "all", ""), "config.data.quoting='all' must be empty, double or none"),
        (("", "", "utf-99"), "config.data.encoding='utf-99' is no encoding"),
    ],
)
def test_options_of_tables_are_checked(values: tuple[str, str, str], message: str) -> None:
    refused(lambda: TableOptions.from_config(*values), message)
    keys = dict(zip(("separator", "quoting", "encoding"), values, strict=True))
    refused(lambda: mixture.open_mixture({"train": "/x.csv", "captions": ("{c}",)} | keys), message)


def test_addresses_are_never_taken_for_paths(folder: Path) -> None:
    rows = [{"url": "https://x.org/a.jpg", "filepath": "b.jpg", "caption": "x"}]
    for end in ("csv", "jsonl", "parquet"):
        path = write(folder / f"x.{end}", rows)
        assert [p.image for p in pairs(path)] == [b"B"]
        refused(
            lambda path=path: open_source(str(path), SourceOptions("url")),
            "'url' holds web addresses",
        )


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(TEXT, min_size=1, max_size=30), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_any_text_comes_back(folder: Path, texts: list[str], end: str) -> None:
    path = folder / f"any.{end}"
    write(path, [{"path": "b.jpg", "caption": text, "": "no name"} for text in texts])
    os.utime(path, ns=(hash(tuple(texts)) % 10**18, hash(tuple(texts)) % 10**18))
    assert [p.text["caption"] for p in pairs(path)] == texts


def test_a_table_has_a_fingerprint(folder: Path) -> None:
    for end in ("csv", "parquet"):
        path = write(folder / f"x.{end}", ROWS)
        before = open_source(str(path)).fingerprint
        assert open_source(str(path)).fingerprint == before
        write(path, ROWS[1:])
        assert open_source(str(path)).fingerprint != before
    saved = save_to_disk(folder / "saved", [ROWS])
    root, other = str(folder), str(folder / "other")
    columns = [("filepath", root), ("title", root), ("filepath", other)]
    assert (
        len({open_source(str(path), SourceOptions(*options)).fingerprint for options in columns})
        == 3
    )
    before = open_source(str(saved)).fingerprint
    save_to_disk(folder / "other", [ROWS[1:]])
    (saved / "data-00000-of-00001.arrow").write_bytes(
        (folder / "other" / "data-00000-of-00001.arrow").read_bytes()
    )
    assert open_source(str(saved)).fingerprint != before


def test_a_schema_that_lies_is_a_one_line_error(folder: Path) -> None:
    write(folder / "0.parquet", ROWS)
    other = [{**row, "n": str(row["n"])} for row in ROWS]
    write(folder / "1.parquet", [{**row, "title": i} for i, row in enumerate(other)])
    pattern = f"{folder}/{{0..1}}.parquet"
    refused(lambda: open_source(pattern), "1.parquet has columns of other types", "title")
    saved = save_to_disk(folder / "saved", [[{"p": "b.jpg", "t": "x"}], [{"p": "b.jpg", "t": 1}]])
    refused(lambda: open_source(str(saved)), saved, "columns of other types")
    saved = save_to_disk(folder / "second", [[{"p": "b.jpg"}], [{"q": "b.jpg"}]])
    refused(lambda: open_source(str(saved)), saved, "p, q all look like images")
    assert [p.image for p in pairs(saved, "q", str(folder))] == [b"B"]


def forged(kind: str) -> pa.RecordBatch:
    """A batch of three rows of which the middle one points where nothing is."""
    paths = pa.array(["b.jpg"] * 3)
    if kind == "a dictionary's index":
        codes = pa.array([0, 1_000_000, 1], pa.int32())
        texts = pa.DictionaryArray.from_arrays(codes, pa.array(["a", "b"]), safe=False)
    else:
        ends = {"an end": [0, 1, 2**31 - 1, 3], "a start": [0, 2, 1, 3]}.get(kind, [0, 1, 2, 3])
        content = b"a\xffb" if kind == "no UTF-8" else b"abc"
        buffers = [None, pa.array(ends, pa.int32()).buffers()[1], pa.py_buffer(content)]
        texts = pa.Array.from_buffers(pa.string(), 3, buffers)
    return pa.record_batch({"path": paths, "caption": texts})


@pytest.mark.parametrize("kind", ["a dictionary's index", "an end", "a start", "no UTF-8"])
def test_a_row_that_points_where_nothing_is_is_unreadable(folder: Path, kind: str) -> None:
    saved = save_to_disk(folder / "saved", [[{"path": "b.jpg", "caption": "x"}]])
    batch = forged(kind)
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), batch.schema) as file:
        file.write_batch(batch)
    source = open_source(str(saved), SourceOptions("", str(folder)))
    assert source[0].image == b"B" and source[0].text["caption"][0] == "a"
    with pytest.raises(PairError) as error:
        source[1]
    assert error.value.reason == "unreadable" and says(error.value, f"{saved}: row 1")


def test_a_row_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_source, "MAX_MEMBER", 1000)
    rows = [{"p": "b.jpg", "caption": "x" * n} for n in (10, 2000, 10)]
    source = open_source(str(write(folder / "x.parquet", rows)))
    assert source[0].image == source[2].image == b"B"
    refused(lambda: source[1], "row 1 is over")


def test_a_pipe_among_the_pictures_holds_nobody_up(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    assert pairs(write(folder / "x.csv", [{**ROWS[0], "filepath": "pipe.jpg"}]))[0].image == b""


FUZZ = """
import random, resource, sys
from pathlib import Path
from clip_jax.data.example import PairError
from clip_jax.data.sources import SourceOptions, open_source
from clip_jax.errors import UserError
file, spec, errors = Path(sys.argv[1]), sys.argv[2], 0
original, chance = file.read_bytes(), random.Random(0)
open_source(spec, SourceOptions("blob"))[0]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(250):
    raw = bytearray(original[: chance.randrange(len(original)) if i % 5 == 0 else None])
    for _ in range(chance.randint(1, 4) if raw and i % 5 else 0):
        at = chance.randrange(max(0, len(raw) - chance.choice((400, len(raw)))), len(raw))
        flipped = bytes([raw[at] ^ 1 << chance.randrange(8)])
        new = chance.choice((flipped, b"\\xff\\xff\\xff\\x7f", chance.randbytes(4)))
        raw[at : at + len(new)] = new
    file.write_bytes(raw)
    try:
        source = open_source(spec, SourceOptions("blob"))
    except UserError:
        errors += 1
        continue
    for k in range(len(source)):
        try:
            source[k]
        except PairError:
            errors += 1
assert errors > 50, errors
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
assert memory < 1 << 20, f"{memory >> 10} MiB"
"""


@pytest.mark.parametrize("kind", ["parquet", "parquet of dictionaries", "datasets"])
def test_no_damage_ends_the_process(folder: Path, kind: str) -> None:
    rows = [{**ROWS[i % 3], "blob": b"%d" % i * 50} for i in range(60)]
    table = pa.Table.from_pylist(rows)
    if kind == "datasets":
        spec = save_to_disk(folder / "saved", [rows])
        file = spec / "data-00000-of-00001.arrow"
    else:
        file = spec = folder / "x.parquet"
        pa.parquet.write_table(
            table, file, row_group_size=20, use_dictionary="dict" in kind, compression="zstd"
        )
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(file), str(spec)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XDG_CACHE_HOME": str(folder.parent / "fuzz")},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_text_without_the_picture(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1", b"2"], "label": [3, None], "words": [["a", "b"], []]})
    pa.parquet.write_table(table, tmp_path / "x.parquet")
    source = TableSource(str(tmp_path / "x.parquet"))
    assert [source.text(i)[0] for i in range(2)] == [source[i].text for i in range(2)]
    assert source.text(0)[0] == {"label": 3, "words": ["a", "b"]}
    assert "row 1" in source.text(1)[1]
    (tmp_path / "y.csv").write_text("path,label\nno/such.png,cat\n")
    source = TableSource(str(tmp_path / "y.csv"))
    assert source.text(0)[0] == {"label": "cat"}, "the picture need not be there"


def test_without_pyarrow_a_table_is_one_line_with_the_extra(tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,a\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / "pairs.csv"))
    assert says(error.value, "pairs.csv", "pyarrow", "clip_jax[tables]")
