"""Moved data has the same fingerprint, changed data another, also where no pair is read."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_jax.data import filter_conditions, filters, fingerprint
from clip_jax.data.sources import open_source
from support import encoded, picture, write_tar

COUNT, CHANGED = 40, 1  # of which sixteen are read, not this one
Build = Callable[[Path, list[str]], None]


def _tar(folder: Path, captions: list[str]) -> None:
    members = []
    for i, caption in enumerate(captions):
        members += [(f"{i:03}.png", encoded(picture(i))), (f"{i:03}.txt", caption.encode())]
    write_tar(folder / "a.tar", members)


def _texts(folder: Path, captions: list[str]) -> None:
    for i, caption in enumerate(captions):
        (folder / f"{i:03}.png").write_bytes(encoded(picture(i)))
        (folder / f"{i:03}.txt").write_text(caption)


def _classes(folder: Path, captions: list[str]) -> None:
    for i, caption in enumerate(captions):
        (folder / caption).mkdir(exist_ok=True)
        (folder / caption / f"{i:03}.png").write_bytes(encoded(picture(i)))


def _table_in_folder(folder: Path, captions: list[str]) -> None:
    for i in range(len(captions)):
        (folder / f"{i:03}.png").write_bytes(encoded(picture(i)))
    lines = [json.dumps({"file_name": f"{i:03}.png", "text": c}) for i, c in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def _csv(folder: Path, captions: list[str]) -> None:
    for i in range(len(captions)):
        (folder / f"{i:03}.png").write_bytes(encoded(picture(i)))
    with open(folder / "a.csv", "w", newline="") as file:
        rows = [("filepath", "caption"), *((f"{i:03}.png", c) for i, c in enumerate(captions))]
        csv.writer(file).writerows(rows)


KINDS: dict[str, tuple[Build, str]] = {
    "tar": (_tar, "a.tar"),
    "texts": (_texts, ""),
    "classes": (_classes, ""),
    "table in a folder": (_table_in_folder, ""),
    "csv": (_csv, "a.csv"),
}


def built(folder: Path, kind: str, captions: list[str]) -> str:
    folder.mkdir(parents=True)
    build, name = KINDS[kind]
    build(folder, captions)
    return fingerprint.of_source(open_source(str(folder / name)))


@pytest.mark.parametrize("kind", KINDS)
def test_moved_data_is_the_same_and_a_change_that_no_sample_reads_shows(
    kind: str, tmp_path: Path
) -> None:
    captions = [("a cat", "a dog", "a cow")[i % 3] for i in range(COUNT)]
    first = built(tmp_path / "first", kind, captions)
    shutil.copytree(tmp_path / "first", tmp_path / "deep" / "moved")
    for path in (tmp_path / "deep" / "moved").rglob("*"):
        os.utime(path, (1, 1))
    name = KINDS[kind][1]
    assert fingerprint.of_source(open_source(str(tmp_path / "deep" / "moved" / name))) == first
    captions[CHANGED] = "a horse"
    other = built(tmp_path / "other", kind, captions)
    assert other != first and other.split()[0] == first.split()[0] == str(COUNT)


def test_a_picture_that_is_replaced_shows(tmp_path: Path) -> None:
    captions = ["a cat", "a dog"] * (COUNT // 2)
    first = built(tmp_path / "first", "texts", captions)
    (tmp_path / "first" / f"{CHANGED:03}.png").write_bytes(encoded(picture(0, (30, 30))))
    assert fingerprint.of_source(open_source(str(tmp_path / "first"))) != first


def test_files_that_belong_to_no_pair_change_nothing(tmp_path: Path) -> None:
    first = built(tmp_path / "first", "texts", ["a cat", "a dog"] * 4)
    for name in ("README.md", ".DS_Store", "alone.png"):
        (tmp_path / "first" / name).write_bytes(b"x")
    assert fingerprint.of_source(open_source(str(tmp_path / "first"))) == first


def test_pairs_that_a_filter_leaves_in_are_told_apart(tmp_path: Path) -> None:
    captions = ["a cat" if i % 2 else "a lion" for i in range(COUNT)]
    built(tmp_path / "first", "texts", captions)
    source = open_source(str(tmp_path / "first"))
    pair_filters = [filter_conditions.Filter(min_characters=n) for n in (1, 6)]
    fingerprints = [
        fingerprint.of_source(filters.Selected(source, pair_filter)) for pair_filter in pair_filters
    ]
    assert fingerprints[0] != fingerprints[1]


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    original = tmp_path / "a" / "weights.pt"
    original.parent.mkdir()
    original.write_bytes(os.urandom(3 << 20))
    moved = tmp_path / "b" / "other name.pt"
    shutil.copytree(original.parent, moved.parent)
    (moved.parent / original.name).rename(moved)
    known = fingerprint.of_weights(str(original))
    assert known and fingerprint.of_weights(str(moved)) == known
    for at in (0, -1):
        changed = bytearray(original.read_bytes())
        changed[at] ^= 1
        moved.write_bytes(changed)
        assert fingerprint.of_weights(str(moved)) != known
    folder = fingerprint.of_weights(str(original.parent))
    shutil.copytree(original.parent, tmp_path / "c")
    assert folder and fingerprint.of_weights(str(tmp_path / "c")) == folder
    os.mkfifo(tmp_path / "pipe")
    for nothing in (tmp_path / "none", tmp_path / "pipe"):
        assert fingerprint.of_weights(str(nothing)) is None
