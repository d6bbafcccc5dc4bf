"""A table's rows are its pairs, whatever it is written in; what is wrong with one is one line."""

from __future__ import annotations

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

from clip_jax.data import tables
from clip_jax.data.pairs import Pair, PairError
from clip_jax.data.sources import open_source
from clip_jax.data.tables import TableSource
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
    assert len({open_source(str(path), *one).fingerprint for one in columns}) == 3
    before = open_source(str(saved)).fingerprint
    save_to_disk(folder / "other", [ROWS[1:]])
    (saved / "data-00000-of-00001.arrow").write_bytes(
        (folder / "other" / "data-00000-of-00001.arrow").read_bytes()
    )
    assert open_source(str(saved)).fingerprint != before


def test_a_schema_that_lies_is_one_line(folder: Path) -> None:
    write(folder / "0.parquet", ROWS)
    other = [{**row, "n": str(row["n"])} for row in ROWS]
    write(folder / "1.parquet", [{**row, "title": i} for i, row in enumerate(other)])
    refused(
        lambda: open_source(f"{folder}/{{0..1}}.parquet"), "1.parquet has other columns", "types"
    )
    saved = save_to_disk(folder / "saved", [[{"p": "b.jpg", "t": "x"}], [{"p": "b.jpg", "t": 1}]])
    refused(lambda: open_source(str(saved)), saved, "several names or types")
    saved = save_to_disk(folder / "second", [[{"p": "b.jpg"}], [{"q": "b.jpg"}]])
    refused(lambda: open_source(str(saved)), saved, "several names or types")


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
    source = open_source(str(saved), "", str(folder))
    assert source[0].image == b"B" and source[0].text["caption"][0] == "a"
    with pytest.raises(PairError) as error:
        source[1]
    assert error.value.reason == "unreadable" and says(error.value, f"{saved}: row 1")


def test_a_row_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_MEMBER", 1000)
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
from clip_jax.data.pairs import PairError
from clip_jax.data.tables import TableSource
from clip_jax.errors import UserError
file, spec, said = Path(sys.argv[1]), sys.argv[2], 0
whole, chance = file.read_bytes(), random.Random(0)
TableSource(spec, "blob")[0]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(250):
    raw = bytearray(whole[: chance.randrange(len(whole)) if i % 5 == 0 else None])
    for _ in range(chance.randint(1, 4) if raw and i % 5 else 0):
        at = chance.randrange(max(0, len(raw) - chance.choice((400, len(raw)))), len(raw))
        flipped = bytes([raw[at] ^ 1 << chance.randrange(8)])
        new = chance.choice((flipped, b"\\xff\\xff\\xff\\x7f", chance.randbytes(4)))
        raw[at : at + len(new)] = new
    file.write_bytes(raw)
    try:
        source = TableSource(spec, "blob")
    except UserError:
        said += 1
        continue
    for k in range(len(source)):
        try:
            source[k]
        except PairError:
            said += 1
assert said > 50, said
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
