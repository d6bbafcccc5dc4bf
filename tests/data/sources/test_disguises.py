"""A file that is something else than its name says is one line that says what it is."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from clip_jax.data.sources import open_source
from support import encoded, picture, refused, write_tar

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
CONTENTS = {
    "is a pointer of Git LFS": LFS,
    "gunzip it": gzip.compress(b"image,caption\n"),
    "unzip it": b"PK\x03\x04" + bytes(99),
    "is a web page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "is an image: give the folder": encoded(picture(1, (9, 9)), "jpeg"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("end", ["tar", "csv", "tsv", "jsonl", "parquet", "json", "txt"])
@pytest.mark.parametrize("what", CONTENTS)
def test_the_error_names_the_format_of_a_file(what: str, end: str, tmp_path: Path) -> None:
    if end in ("csv", "tsv", "jsonl", "parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{end}"
    path.write_bytes(CONTENTS[what])
    refused(lambda: open_source(str(path)), path, what)


def test_parquet_by_another_name(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    raw = io.BytesIO()
    pa.parquet.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), raw)
    for end in ("csv", "jsonl", "tar", "db"):
        (tmp_path / f"x.{end}").write_bytes(raw.getvalue())
        refused(lambda end=end: open_source(str(tmp_path / f"x.{end}")), "is Parquet", ".parquet")


def test_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04" + bytes(99))
    refused(lambda: open_source(str(tmp_path / "x.xlsx")), "x.xlsx", "save it as .csv")


@pytest.mark.parametrize("end", ["arrow", "db", "csv2"])
def test_a_file_with_an_unknown_suffix_is_not_called_a_truncated_tar(
    end: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{end}"
    path.write_bytes(b"something else" * 99)
    with pytest.raises(Exception, match="neither a tar nor a table") as error:
        open_source(str(path))
    assert str(path) in str(error.value) and "fetch it again" not in str(error.value)


def test_a_tar_whose_first_member_is_called_like_an_archive(tmp_path: Path) -> None:
    members = [("BZh91.png", encoded(picture(1, (3, 3)))), ("BZh91.txt", b"a")]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)))
    assert source[0].text == {"caption": "a", "txt": "a"}
