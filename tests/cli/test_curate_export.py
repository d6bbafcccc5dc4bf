"""`curate export`: the selected pairs, all of them and in order, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.cli.curate import run
from clip_jax.curation import storage
from clip_jax.curation.curated.shards import OTHER
from clip_jax.data.selection import SelectedPairs, Selection
from clip_jax.data.sources import Source, open_source
from curation import pools, strangers
from support import encoded, picture, refused


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strangers.curate(tmp_path_factory.mktemp("pool"), "--no-page")


@pytest.fixture(scope="module")
def selected(out: Path) -> SelectedPairs:
    source = open_source(str(out.parent / "{00000..00002}.tar"))
    return SelectedPairs(source, Selection.open(str(out)))


@pytest.fixture(scope="module")
def whole(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "export"
    assert export(out, folder, "--shard-pairs", "4") == 0
    return folder


def export(out: Path, folder: Path, *flags: str) -> int:
    return run(["export", str(out), "--to", str(folder), *flags])


def pairs_of(source: Source | SelectedPairs) -> list[tuple[bytes, dict[str, Any]]]:
    pairs = [source[i] for i in range(len(source))]
    return [
        (p.image, {k: v for k, v in p.text.items() if v is not None and k != OTHER}) for p in pairs
    ]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_tars_hold_the_selected_pairs(out: Path, whole: Path, selected: SelectedPairs) -> None:
    assert pairs_of(open_source(f"{whole}/*.tar")) == pairs_of(selected)
    shards = sorted(whole.glob("*.tar"))
    assert [path.name for path in shards] == [f"{n:05}.tar" for n in range(-(-len(selected) // 4))]
    keys = []
    for path in shards:
        with tarfile.open(path) as archive:
            names = archive.getnames()
        assert {name.partition(".")[2] for name in names} == {"png", "json", "txt"}
        keys += dict.fromkeys(name.partition(".")[0] for name in names)
    assert keys == [f"{n:09}" for n in range(len(selected))]
    with tarfile.open(shards[0]) as archive, tarfile.open(out.parent / "00000.tar") as original:
        raw = {original.extractfile(m).read() for m in original if m.name.endswith("json")}
        assert archive.extractfile("000000000.json").read() in raw
    done = json.loads((whole / "export.json").read_text())["done"]
    assert done["pairs"] == len(selected)
    assert done["left_out"] == 0


def test_parquet_holds_the_selected_pairs(
    out: Path, tmp_path: Path, selected: SelectedPairs
) -> None:
    assert export(out, tmp_path / "p", "--format", "parquet", "--shard-pairs", "30") == 0
    assert len(list((tmp_path / "p").glob("*.parquet"))) == 2
    assert pairs_of(open_source(str(tmp_path / "p/*.parquet"))) == pairs_of(selected)
    assert export(out, tmp_path / "n", "--format", "parquet", "--no-images", "--limit", "5") == 0
    table = pq.read_table(tmp_path / "n/00000.parquet")
    assert table.column_names == ["caption", "n", "txt", OTHER]
    assert table["caption"].to_pylist() == [selected[i].text["caption"] for i in range(5)]


def test_shards_by_size_and_the_first_pairs(
    out: Path, tmp_path: Path, selected: SelectedPairs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(out, tmp_path / "a", "--shard-mib", "1", "--limit", "7", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["pairs"], printed["shards"]) == (7, 1)
    assert pairs_of(open_source(str(tmp_path / "a/*.tar"))) == pairs_of(selected)[:7]
    assert (tmp_path / "a/00000.tar").stat().st_size == printed["size"]


def test_processes_change_nothing(out: Path, tmp_path: Path, whole: Path) -> None:
    assert export(out, tmp_path / "e", "--shard-pairs", "4", "--workers", "2") == 0
    assert contents(tmp_path / "e") == contents(whole)


def test_what_is_there_is_not_written_again(out: Path, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "e"
    shutil.copytree(whole, folder)
    (folder / "00001.tar").unlink()
    (folder / "00002.tar").write_bytes(b"half")
    (folder / "shards/00003.json").write_text("{")
    (folder / ".00004.tar.99.88.tmp").write_bytes(b"left")
    for path in folder.glob("*.tar"):
        os.utime(path, (1, 1))
    assert export(out, folder, "--shard-pairs", "4") == 0
    assert contents(folder) == contents(whole)
    again = {path.name for path in folder.glob("*.tar") if path.stat().st_mtime > 1}
    assert again == {"00001.tar", "00002.tar", "00003.tar"}


def test_a_killed_export_goes_on(out: Path, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "e"
    words = ["curate", "export", str(out), "--to", str(folder), "--shard-pairs", "4"]
    with subprocess.Popen([sys.executable, "-m", "clip_jax", *words]) as process:
        while process.poll() is None and len(list(folder.glob("*.tar"))) < 2:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert export(out, folder, "--shard-pairs", "4") == 0
    assert contents(folder) == contents(whole)


def test_tables_of_paths_and_of_addresses(tmp_path: Path, capsys: Any) -> None:
    rows = []
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i), "jpeg"))
        rows.append({"path": f"{i}.jpg", "caption": f"cat {i}", "score": i / 2, "tags": ["a", "b"]})
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    pools.curate(data, tmp_path / "out", "--min-words", "2", "--duplicates", "image", "--no-page")
    (tmp_path / "5.jpg").unlink()
    capsys.readouterr()
    assert export(tmp_path / "out", tmp_path / "e") == 0
    printed = capsys.readouterr().out
    assert "11 pairs in 1 shard" in printed
    assert "1 pair cannot be read" in printed
    assert "5.jpg" in printed
    source = open_source(str(tmp_path / "e/*.tar"))
    assert [source[i].text["score"] for i in (0, 5, 10)] == [0, 3, 5.5]
    assert source[4].image == (tmp_path / "4.jpg").read_bytes()
    assert source[4].text == {key: value for key, value in rows[4].items() if key != "path"}

    urls = [{"url": f"https://x.test/{i}.jpg", "caption": f"cat {i}"} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(urls), tmp_path / "urls.parquet")
    flags = ("--no-images", "--min-words", "2", "--no-page")
    pools.curate(tmp_path / "urls.parquet", tmp_path / "u", *flags)
    refused(lambda: export(tmp_path / "u", tmp_path / "f"), "web addresses", "--no-images")
    assert export(tmp_path / "u", tmp_path / "f", "--format", "parquet", "--no-images") == 0
    read = pq.read_table(tmp_path / "f/00000.parquet").select(["url", "caption"])
    assert read.to_pylist() == urls


def test_mistakes_are_one_line(
    out: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("x")
    refused(lambda: export(out, tmp_path / "full"), "not empty")
    refused(lambda: export(out, whole, "--shard-pairs", "5"), "another export")
    with storage.alone(str(tmp_path / "used"), "--to"):
        refused(lambda: export(out, tmp_path / "used"), "in use", "another --to")
    refused(lambda: export(out, tmp_path / "e", "--no-images"), "--format parquet")
    refused(lambda: export(out, Path("gs:/"), "--to", "gs://bucket/x"), "this machine")
    refused(lambda: export(tmp_path, tmp_path / "e"), "no selection")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 1000))
    refused(lambda: export(out, tmp_path / "small"), "GiB", "make room")
    export(out, whole, "--shard-pairs", "4")  # nothing is left to write
