"""Annotation folders: what is written is read, and what is damaged is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.curation import rules
from clip_jax.curation.pool import Chunk
from clip_jax.curation.scores.annotations import JOB, MANIFEST, Annotations, AnnotationWriter
from clip_jax.errors import UserError
from support import refused

FILES = ("/data/a.tar", "/data/b.tar")
VALUES = {
    "/data/a.tar": {"score": np.array([0.25, np.nan, -1], np.float32)},
    "/data/b.tar": {"score": np.array([0.5], np.float32)},
}


def writer(
    folder: Path | str, files=FILES, columns=("score",), **settings: Any
) -> AnnotationWriter:
    columns = {name: f"the {name}" for name in columns}
    return AnnotationWriter(folder, "/data/*.tar", columns, files, {"model": "m", **settings})


def written(folder: Path) -> Path:
    job = writer(folder)
    for file in FILES:
        job.write(file, f"print of {file}", VALUES[file])
    assert job.finish()
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = Annotations.open(written(tmp_path / "out"))
    assert (read.data, dict(read.columns)) == ("/data/*.tar", {"score": "the score"})
    assert [(f.file, f.pairs, f.fingerprint) for f in read.files] == [
        ("/data/a.tar", 3, "print of /data/a.tar"),
        ("/data/b.tar", 1, "print of /data/b.tar"),
    ]
    for number, file in enumerate(FILES):
        for key in (number, file):
            values = read.of_file(key)["score"]
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, VALUES[file]["score"])
    for missing in (2, -1, "/data/c.tar"):
        with pytest.raises(UserError, match="no annotations of"):
            read.of_file(missing)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    job = writer(tmp_path)
    job.write(FILES[1], "print", VALUES[FILES[1]])
    assert not job.finish()
    with pytest.raises(UserError, match="not complete: start the command"):
        Annotations.open(tmp_path)
    job = writer(tmp_path)
    assert not job.is_done(FILES[0], 3, "print")
    assert job.is_done(FILES[1], 1, "print")
    assert not job.is_done(FILES[1], 1, "the file changed")
    assert not job.is_done(FILES[1], 2, "print")
    table = tmp_path / job.table(FILES[1])
    table.write_bytes(table.read_bytes()[:-1])  # as a copy that was cut short
    assert not job.is_done(FILES[1], 1, "print")


def test_more_files_take_new_tables(tmp_path: Path) -> None:
    """Files that come before others in the order of names do not take their tables."""
    names = {file: writer(written(tmp_path)).table(file) for file in FILES}
    job = writer(tmp_path, ("/data/0.tar", *FILES))
    assert {file: job.table(file) for file in FILES} == names
    assert job.table("/data/0.tar") == "00002.parquet"
    assert job.is_done(FILES[0], 3, f"print of {FILES[0]}")
    assert not job.finish()
    job.write("/data/0.tar", "new", {"score": np.zeros(2, np.float32)})
    assert job.finish()
    read = Annotations.open(tmp_path)
    assert [len(read.of_file(n)["score"]) for n in range(3)] == [2, 3, 1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": "other"}, 'model="m", and now it is "other": give another --out'),
        ({"captions": ["{x}"]}, "captions=unset, and now"),
        ({"columns": ("score", "more")}, "columns="),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    writer(tmp_path)
    writer(tmp_path, **change)  # nothing is written yet
    job = writer(tmp_path)
    job.write(FILES[0], "print", VALUES[FILES[0]])
    with pytest.raises(UserError) as error:
        writer(tmp_path, **change)
    assert line in str(error.value)


def test_folders_of_others_are_not_written(tmp_path: Path) -> None:
    (written(tmp_path) / JOB).unlink()
    with pytest.raises(UserError, match="by another program: give another --out"):
        writer(tmp_path)
    for content in ("[]", "{}", "{", '{"version": 1, "settings": {}, "tables": {"f": "../x"}}'):
        (tmp_path / JOB).write_text(content)
        with pytest.raises(UserError, match=r"job\.json"):
            writer(tmp_path)


def test_any_program_can_write_one(tmp_path: Path) -> None:
    """Nulls are missing values, and further columns of a table do not matter."""
    column = pa.array([1, None, 3], pa.float32())
    pq.write_table(pa.table({"x": ["a", "b", "c"], "score": column}), tmp_path / "t.parquet")
    entry = {"file": "f", "pairs": 3, "fingerprint": "", "table": "t.parquet"}
    manifest = {"version": 1, "data": "f", "columns": {"score": ""}, "files": [entry]}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    values = Annotations.open(tmp_path).of_file("f")["score"]
    np.testing.assert_array_equal(values, np.array([1, np.nan, 3], np.float32))


ENTRY = {"file": "f", "pairs": 3, "fingerprint": "", "table": "t.parquet"}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"data": 3},
        {"columns": {}},
        {"columns": ["score"]},
        {"columns": {"a b=": ""}},
        {"columns": {"score": 3}},
        {"files": []},
        {"files": {}},
        {"files": [3]},
        {"files": [{**ENTRY, "pairs": -1}]},
        {"files": [{**ENTRY, "pairs": True}]},
        {"files": [{**ENTRY, "pairs": 1 << 40}]},
        {"files": [{**ENTRY, "table": "../t.parquet"}]},
        {"files": [{**ENTRY, "table": None}]},
        {"files": [ENTRY, ENTRY]},
    ],
)
def test_hostile_manifests_are_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    manifest = {"version": 1, "data": "f", "columns": {"score": ""}, "files": [ENTRY], **change}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"annotations\.json"):
        Annotations.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": 1e999}'])
def test_what_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="is no annotation folder"):
        Annotations.open(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=r"annotations\.json"):
        Annotations.open(tmp_path)


def test_hostile_tables_are_one_line(tmp_path: Path) -> None:
    read = Annotations.open(written(tmp_path))
    path = tmp_path / read.files[0].table
    whole = path.read_bytes()

    def error() -> str:
        with pytest.raises(UserError) as caught:
            read.of_file(0)
        assert str(path) in str(caught.value)
        return str(caught.value)

    path.unlink()
    assert "cannot be read" in error()
    for damaged in (b"", whole[:-1], whole[:30] + b"\0" * 40 + whole[70:], b"PAR1" * 50):
        path.write_bytes(damaged)
        error()
    for kind in (pa.float64(), pa.string(), pa.list_(pa.float32())):
        pq.write_table(pa.table({"score": pa.array([], kind)}), path)
        assert "must be float32" in error()
    pq.write_table(pa.table({"other": pa.array([1.0], pa.float32())}), path)
    assert "no column 'score'" in error()
    for rows, line in ((2, "has 2 rows"), (4, "has more than 3 rows"), (100_000, "more than 3")):
        pq.write_table(pa.table({"score": np.zeros(rows, np.float32)}), path)
        assert line in error()


def test_a_killed_write_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = writer(tmp_path)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            job.write(FILES[0], "print", VALUES[FILES[0]])
    assert sorted(path.name for path in tmp_path.iterdir()) == [JOB]
    shutil.rmtree(tmp_path)


def test_folders_in_buckets() -> None:
    """Several hosts write to a bucket; the workers of a cluster read from it."""
    folder = "memory://bucket/scores"
    job = writer(folder)
    job.write(FILES[0], "print", VALUES[FILES[0]])
    refused(lambda: Annotations.open(folder), "not complete")
    job = writer(folder)
    assert job.is_done(FILES[0], 3, "print") and not job.is_done(FILES[1], 1, "print")
    job.write(FILES[1], "print", VALUES[FILES[1]])
    assert job.finish()
    read = Annotations.open(folder)
    for file in FILES:
        np.testing.assert_array_equal(read.of_file(file)["score"], VALUES[file]["score"])
    refused(lambda: writer(folder, model="other"), "was written with model=")
    writer(folder).write(FILES[1], "new", VALUES[FILES[1]])
    refused(lambda: Annotations.open(folder), "not complete")


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"/data/\xff.tar")
    job = writer(tmp_path, (name,))
    job.write(name, "print", {"score": np.zeros(2, np.float32)})
    assert writer(tmp_path, (name,)).is_done(name, 2, "print") and job.finish()
    assert len(Annotations.open(tmp_path).of_file(name)["score"]) == 2


def test_rules_read_the_rows_of_a_chunk(tmp_path: Path) -> None:
    job = writer(tmp_path)
    job.write(FILES[0], "print", VALUES[FILES[0]])
    job.write(FILES[1], "", VALUES[FILES[1]])
    assert job.finish()

    def values(file: int, start: int, stop: int, fingerprint: str = "print") -> np.ndarray:
        chunk = Chunk(file, FILES[file], start, stop, fingerprint)
        return rules.column_values((str(tmp_path),), "score", chunk)

    np.testing.assert_array_equal(values(0, 1, 3), VALUES[FILES[0]]["score"][1:])
    np.testing.assert_array_equal(values(1, 0, 1), VALUES[FILES[1]]["score"])
    refused(lambda: values(0, 1, 3, "new"), "has changed")
    limits = rules.ColumnLimits((str(tmp_path),), (("score", 0.0, 1.0),))
    limits.check(FILES[1], 1)
    refused(lambda: limits.check(FILES[1], 2), "1 row about /data/b.tar, which has 2 pairs")
