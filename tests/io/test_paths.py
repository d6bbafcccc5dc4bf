"""Patterns name files in order, or one line says which file is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.io import paths
from support import refused, says


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{000..001}-{x,y}", ["000-x", "000-y", "001-x", "001-y"]),
        ("{x,y}{0..1}", ["x0", "x1", "y0", "y1"]),
        ("a{,b}", ["a", "ab"]),
        ("{a,b{0..1}}", ["a", "b0", "b1"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{name}", ["{name}"]),
        ("{}", ["{}"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert paths.braces(pattern) == expected


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 5))
def test_a_range_names_every_number_once_at_its_width(first: int, more: int, width: int) -> None:
    pattern = f"p{{{first:0{width}}..{first + more:0{width}}}}.tar"
    assert paths.braces(pattern) == [f"p{i:0{width}}.tar" for i in range(first, first + more + 1)]


def test_expand_keeps_the_order_of_the_pattern_and_sorts_globs(tmp_path: Path) -> None:
    b, a, c = touch(tmp_path, "b1.tar", "a1.tar", "sub/c1.tar")
    assert paths.expand(f"{tmp_path}/*.tar") == [a, b]
    assert paths.expand(f"{tmp_path}/{{b,a,sub/c}}1.tar") == [b, a, c]
    assert paths.expand(f"{tmp_path}/{{sub/*,a1.tar}}") == [c, a]


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path: Path) -> None:
    (path,) = touch(tmp_path, "set [1].tar")
    assert paths.expand(path) == [path]


@pytest.mark.parametrize("pattern", ["no.tar", "no-*.tar", "a{0..1}.tar", "sub"])
def test_missing_files_are_named(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a0.tar", "sub/x.tar")
    with pytest.raises(UserError) as error:
        paths.expand(f"{tmp_path}/{pattern}")
    assert says(error.value, f"{tmp_path}/{pattern}", tmp_path / pattern.replace("{0..1}", "1"))


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (file,) = touch(tmp_path, "x.tar")
    assert paths.expand("~/x.tar") == [file]
    with pytest.raises(UserError) as error:
        paths.resolve("~nobody_of_this_name/x.tar")
    assert says(error.value, "~nobody_of_this_name/x.tar")


def test_embedded_names_stay_inside_the_package() -> None:
    inside = Path(paths.__file__).parents[1] / "data"
    assert Path(paths.resolve("embedded:emoji/labels.json")) == inside / "emoji" / "labels.json"
    for outside in ("embedded:../config.py", "embedded:/etc/passwd", "embedded:a/../../../x"):
        with pytest.raises(UserError) as error:
            paths.resolve(outside)
        assert says(error.value, outside)


def test_an_existing_path_is_not_a_pattern(tmp_path: Path) -> None:
    names = ["{a,b}.tar", "[x].tar", "{a,b}/0.tar", "{a,b}/1.tar", "[x]/{0..1}/2.tar", "[x]/3*.tar"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def expanded(pattern: str) -> list[str]:
        return [os.path.relpath(path, tmp_path) for path in paths.expand(f"{tmp_path}/{pattern}")]

    assert expanded("{a,b}.tar") == ["{a,b}.tar"] and expanded("[x].tar") == ["[x].tar"]
    assert expanded("{a,b}/{0..1}.tar") == expanded("{a,b}/*.tar") == ["{a,b}/0.tar", "{a,b}/1.tar"]
    assert expanded("[x]/{0..1}/?.tar") == ["[x]/{0..1}/2.tar"]
    assert expanded("[x]/*.tar") == ["[x]/3*.tar"]
    refused(lambda: paths.expand(f"{tmp_path}/{{a,c}}.tar"), f"no file {tmp_path}/a.tar")
    refused(lambda: paths.expand(f"{tmp_path}/{{a,b}}"), f"use {tmp_path}/{{a,b}}/*.tar")
