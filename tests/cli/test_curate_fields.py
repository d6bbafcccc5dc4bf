"""Numeric fields as annotations: from tables and tars, and what a curation keeps by them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.cli.curate import run
from clip_jax.curation.scores.annotations import Annotations
from clip_jax.errors import UserError
from curation.pools import curate, picture, write_tar


def test_fields_of_a_table_of_addresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [0.1, None, 0.5, 0.4, 0.2, 0.3]
    for table in range(2):
        own = values[3 * table : 3 * table + 3]
        rows = {
            "url": [f"https://example.com/{table}{i}" for i in range(3)],
            "caption": ["a wall"] * 3,
            "similarity": pa.array(own, pa.float64()),
        }
        pq.write_table(pa.table(rows), tmp_path / f"{table}.parquet")
    data, fields = str(tmp_path / "*.parquet"), tmp_path / "fields"
    own = ["fields", data, "similarity", "--no-images", "--out", str(fields)]
    assert run(own) == 0
    assert "similarity: 5 of 6 pairs have a value, 0.1 to 0.5" in capsys.readouterr().out
    written = {path.name: path.stat().st_mtime_ns for path in fields.glob("*.parquet")}
    assert run(own) == 0  # nothing is read again
    assert {path.name: path.stat().st_mtime_ns for path in fields.glob("*.parquet")} == written
    flags = ("--no-images", f"--annotations={fields}", "--top-share=similarity=0.4")
    assert curate(data, tmp_path / "out", *flags) == {"kept": 2, "similarity": 4}


def test_fields_of_tars(tmp_path: Path) -> None:
    texts: list[dict[str, object]] = [
        {"caption": "a", "score": "7", "meta": {"size": 3}},
        {"caption": "b", "score": True, "meta": {"size": "x"}},
        {"caption": "c"},
    ]
    write_tar(tmp_path / "0.tar", [(picture(i), fields) for i, fields in enumerate(texts)])
    (tmp_path / "1.tar").write_bytes(b"no tar" * 1000)
    own = [str(tmp_path / "?.tar"), "score", "meta.size", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="1 of 2 files cannot be opened"):
        run(["fields", *own])
    assert run(["fields", *own, "--max-bad-fraction=0.5"]) == 0
    annotations = Annotations.open(tmp_path / "out")
    first = annotations.of_file(0)
    np.testing.assert_array_equal(first["score"], np.float32([7, np.nan, np.nan]))
    np.testing.assert_array_equal(first["meta.size"], np.float32([3, np.nan, np.nan]))
    assert len(annotations.of_file(1)["score"]) == 0


def test_a_field_that_is_no_number_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(picture(1), {"caption": "a", "a b": 1, "score": 0.5})])
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(
        UserError, match=r"'caption' is a number in none .* numbers are: a b, score"
    ):
        run(["fields", str(tmp_path / "0.tar"), "score", "caption", *out])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no name of a column"):
        run(["fields", str(tmp_path / "0.tar"), "a b", *out])
