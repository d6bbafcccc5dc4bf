"""One set in every layout is the same set; what lies beside it is not taken for it."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.data.sources import read_text
from clip_jax.data.sources.tars import TarSource
from clip_jax.evaluation.datasets import Dataset, open_dataset, standard
from clip_jax.evaluation.datasets.layouts import Chosen, SplitLocation, find_split, lines
from support import encoded, picture, refused, write_pairs, write_tar

PNG = encoded(picture())
NAMES = standard("stl10").classes


def as_suite(home: Path, targets: Sequence[int]) -> None:
    members = []
    for i, target in enumerate(targets):
        members += [(f"s{i:07}.cls", str(target).encode()), (f"s{i:07}.png", PNG)]
    write_tar(home / "test" / "0.tar", members)
    (home / "test" / "nshards.txt").write_text("1")
    (home / "classnames.txt").write_text("\n".join(NAMES))


def as_tar(home: Path, targets: Sequence[int]) -> None:
    members = []
    for i, target in enumerate(targets):
        text = f'{{"label": "{NAMES[target]}"}}'.encode()
        members += [(f"{i:07}.json", text), (f"{i:07}.png", PNG)]
    write_tar(home / "test-000.tar", members)


def as_folders(home: Path, targets: Sequence[int], split: str = "test/") -> None:
    for i, target in enumerate(targets):
        path = home / f"{split}{NAMES[target]}" / f"{i:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)


def as_plain_folders(home: Path, targets: Sequence[int]) -> None:
    as_folders(home, targets, "")


def as_table(home: Path, targets: Sequence[int]) -> None:
    home.mkdir(parents=True)
    with (home / "test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([f"{i:07}.png", NAMES[target]] for i, target in enumerate(targets))


def open_set(folder: Path) -> Dataset:
    return open_dataset("stl10", {}, str(folder), templates=(), caption="")


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.sampled_from([as_suite, as_tar, as_folders, as_plain_folders, as_table]),
)
def test_a_set_is_the_same_in_every_layout(targets, write) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "stl10", targets)
        test = open_set(Path(folder))
        assert test.target is not None and len(test) == len(targets)
        order = []
        for i in range(len(test)):
            name = Path(read_text(test.source, i)[1].rpartition(":")[2]).name
            order.append(i if "row" in name else int(name.removeprefix("s").split(".")[0]))
        assert test.target.tolist() == [targets[i] for i in order]
        assert test.labels == list(NAMES)


def test_the_suite_of_another_name_is_found(tmp_path: Path) -> None:
    as_suite(tmp_path / "wds_stl10", [1, 2])
    (tmp_path / "stl10").mkdir()
    assert len(open_set(tmp_path)) == 2


def test_splits_are_not_taken_for_each_other(tmp_path: Path) -> None:
    assert find_split(tmp_path / "none", "test") is None
    assert find_split(tmp_path, "test") is None
    as_folders(tmp_path, [1], "train/")
    assert find_split(tmp_path, "test") is not None, (
        "one folder called train is a class, or all of it"
    )
    as_folders(tmp_path, [1], "val/")
    assert find_split(tmp_path, "test") == SplitLocation(
        "data", f"{tmp_path}/val", "val", str(tmp_path)
    )
    as_folders(tmp_path, [1], "test/")
    assert find_split(tmp_path, "test") == SplitLocation(
        "data", f"{tmp_path}/test", "test", str(tmp_path)
    )
    location = find_split(tmp_path, "validation")
    assert location is not None and location.split == "val"
    (tmp_path / "train.csv").write_text("path,label\n")
    location = find_split(tmp_path, "train")
    assert location is not None and location.path.endswith("train.csv"), (
        "a table says more than folders"
    )


def test_some_pairs_of_a_source(tmp_path: Path) -> None:
    source = TarSource(str(write_pairs(tmp_path / "x.tar", 5)))
    some = Chosen(source, np.array([4, 1]))
    assert len(some) == 2 and some[0] == source[4]
    assert some.text(1) == source.text(1)
    prints = {Chosen(source, chosen).fingerprint for chosen in ([4, 1], [1, 4], [4], [4, 1])}
    assert len(prints) == 3 and some.fingerprint in prints


def test_lines(tmp_path: Path) -> None:
    assert lines(tmp_path / "none.txt") == []
    (tmp_path / "some.txt").write_text(" a \n\nb c\r\n", encoding="utf-8")
    assert lines(tmp_path / "some.txt") == ["a", "b c"]
    (tmp_path / "wrong.txt").write_bytes(b"\xff\xfe")
    refused(lambda: lines(tmp_path / "wrong.txt"), "wrong.txt", "UTF-8")


@pytest.mark.parametrize("name", ["..", "/", "stl10/../.."])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    as_folders(tmp_path / "stl10", [1])
    options: Any = {"templates": (), "caption": ""}
    refused(lambda: open_dataset(name, {}, str(tmp_path), **options), "no data given")
