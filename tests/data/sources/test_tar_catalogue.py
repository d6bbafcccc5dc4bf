"""A data set's catalogue is the indices of its tars, however it comes into memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.data.sources import tar_catalogue, tar_index
from clip_jax.data.sources.tars import TarSource
from clip_jax.io import remote
from support import TarFactory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test writes to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip_jax" / "index"


@pytest.fixture
def paths(tar_factory: TarFactory) -> list[str]:
    return [str(tar_factory(f"{i}.tar", pairs=i + 1, first=10 * i)) for i in range(4)]


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def open_catalogue(paths: list[str]) -> tar_catalogue.Catalogue:
    return tar_catalogue.open_catalogue(paths, remote.states(paths))


def check(catalogue: tar_catalogue.Catalogue, paths: list[str]) -> None:
    indices = [tar_index.scan(path) for path in paths]
    assert np.array_equal(catalogue.starts, np.cumsum([0, *(len(i.spans) for i in indices)]))
    texts = np.cumsum([0, *(len(i.texts) for i in indices)])
    spans = [i.spans + np.array([0, 0, 0, n]) for i, n in zip(indices, texts, strict=False)]
    assert np.array_equal(catalogue.spans, np.concatenate(spans))
    assert np.array_equal(catalogue.texts, np.concatenate([i.texts for i in indices]))
    assert catalogue.report.used == sum(i.report.used for i in indices)
    names = [i.name(k) for i in indices for k in range(len(i.ends))]
    assert [catalogue.name(i) for i in range(len(names))] == names


def test_it_is_mapped_from_the_cache_and_made_once(
    paths: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(open_catalogue(paths), paths)
    (folder,) = folders(cache)
    monkeypatch.setattr(tar_index, "open_index", lambda *_: pytest.fail("read again"))
    again = open_catalogue(paths)
    check(again, paths)
    assert all(isinstance(array, np.memmap) for array in again[:5])
    assert len(pickle.dumps(tar_catalogue.to_pickle(again))) < 1000, "workers map it themselves"
    check(
        tar_catalogue.from_pickle(pickle.loads(pickle.dumps(tar_catalogue.to_pickle(again)))), paths
    )
    assert folders(cache) == [folder]


def test_a_tar_that_changes_makes_it_anew(
    paths: list[str], cache: Path, tar_factory: TarFactory
) -> None:
    open_catalogue(paths)
    tar_factory("2.tar", pairs=7)
    check(open_catalogue(paths), paths)
    assert len(folders(cache)) == 2


@pytest.mark.parametrize("field", tar_catalogue.Catalogue._fields)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "longer"])
def test_one_that_is_damaged_is_made_anew(
    paths: list[str], cache: Path, field: str, damage: str
) -> None:
    open_catalogue(paths)
    (folder,) = folders(cache)
    file = folder / field
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-8], "longer": content + content[-40:]}.get(damage, b""))
    if damage == "gone":
        file.unlink()
    check(open_catalogue(paths), paths)
    assert file.read_bytes() == content


def test_without_a_cache_it_is_in_memory(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    catalogue = open_catalogue(paths)
    check(catalogue, paths)
    check(
        tar_catalogue.from_pickle(pickle.loads(pickle.dumps(tar_catalogue.to_pickle(catalogue)))),
        paths,
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=10))
def test_a_source_counts_through_its_tars(paths: list[str], cache: Path, order: list[int]) -> None:
    source = TarSource(f"{Path(paths[0]).parent}/{{0..3}}.tar")
    expected = [f"picture {10 * i + j}" for i in range(4) for j in range(i + 1)]
    assert [source[i].text["caption"] for i in order] == [expected[i] for i in order]
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            source[outside]
