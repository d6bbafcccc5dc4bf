"""What columns that captions do not need may hold, and which one is `{caption}`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")

from clip_jax.data.sources import SourceOptions, open_source  # noqa: E402
from clip_jax.data.sources.tables import columns  # noqa: E402

LATE = 2**62  # of which no Python type holds as many microseconds
TIMES = {
    "ns": pa.array([1], pa.timestamp("ns")),
    "zone": pa.array([1], pa.timestamp("ns", "UTC")),
    "far": pa.array([-LATE], pa.timestamp("us")),
    "date": pa.array([2**31 - 1], pa.date32()),
    "duration": pa.array([1], pa.duration("ns")),
    "time": pa.array([1], pa.time64("ns")),
    "listed": pa.array([[1]], pa.list_(pa.timestamp("ns"))),
    "inside": pa.array([{"a": {"b": [1]}}], pa.struct([("a", pa.struct([("b", pa.list_(
        pa.timestamp("ns")))]))])),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("file", ["x.parquet", "metadata.parquet"])
def test_times_that_python_cannot_hold(name: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    table = pa.table({"file_name": ["a.jpg"], "caption": ["a cat"], "t": TIMES[name]})
    pa.parquet.write_table(table, tmp_path / file)
    spec = str(tmp_path if file == "metadata.parquet" else tmp_path / file)
    for needed in (None, frozenset({"caption"})):
        source = open_source(spec, SourceOptions(columns=needed))
        assert source[0].image == b"A" and source[0].text["caption"] == "a cat"


def test_times_that_python_holds_stay_times() -> None:
    times = pa.array([datetime.datetime(2024, 5, 6), None])
    (one, other) = columns.python_rows(pa.record_batch({"t": times, "n": pa.array([1, 2])}))
    assert one == {"t": datetime.datetime(2024, 5, 6), "n": 1} and other == {"t": None, "n": 2}


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ({"text": "a cat", "n": "1"}, "a cat"),
        ({"Caption": "a cat", "n": "1"}, "a cat"),
        ({"title": "a cat"}, "a cat"),
        ({"what": "a cat"}, "a cat"),
        ({"caption": "a cat", "text": "no"}, "a cat"),
        ({"what": "a cat", "n": "1"}, None),
    ],
)
@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet", "json"])
def test_the_column_that_is_the_caption(
    row: dict[str, Any], caption: str | None, end: str, tmp_path: Path
) -> None:
    import csv
    import json

    (tmp_path / "a.jpg").write_bytes(b"A")
    path, full_row = tmp_path / f"x.{end}", {"file_name": "a.jpg", **row}
    if end == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist([full_row]), path)
    elif end == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([full_row.keys(), full_row.values()])
    else:  # JSON lines are also called .json
        path.write_text(json.dumps(full_row) + "\n" + json.dumps(full_row) + "\n")
    source = open_source(str(path), SourceOptions(columns=frozenset({"caption"})))
    assert source[0].text.get("caption") == caption
    is_noted = any("{caption} is" in note for note in source.opening_report().notes)
    assert is_noted == (caption is not None and "caption" not in row)
