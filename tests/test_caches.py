"""Every cache: a file of an older format or of another program in its place is made anew."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clip_jax.data import filters
from clip_jax.data.filter_conditions import Filter
from clip_jax.data.filters import Selected
from clip_jax.data.sources import tar_catalogue, tar_index
from clip_jax.data.sources.tables import cached
from clip_jax.data.sources.tables.source import TableSource
from clip_jax.data.sources.tars import TarSource
from clip_jax.evaluation import result_cache
from clip_jax.evaluation.features import Encoded
from clip_jax.evaluation.result_cache import ResultCache, key_of
from clip_jax.evaluation.serialization import Thumbnail
from clip_jax.io import files
from support import encoded, picture, write_tar

PAIRS = 30


def read_tars(folder: Path) -> Any:
    """The pairs of two tars, and what their report says."""
    source = TarSource(f"{folder}/[ab].tar")
    return [tuple(source[i]) for i in range(len(source))], source.opening_report()


def read_table(folder: Path) -> Any:
    """The rows of a table, one of which has no picture."""
    source = TableSource(f"{folder}/rows.csv")
    return [source[i].text for i in range(len(source))], source.opening_report()


def select(folder: Path) -> Any:
    """The pairs that a filter accepts."""
    selected = Selected(TarSource(f"{folder}/[ab].tar"), Filter.from_dict({"most": {"n": 1}}))
    return selected.numbers.tolist(), selected.left_out


@dataclasses.dataclass(frozen=True)
class Score:
    """A result with a thumbnail."""

    score: float
    picture: Thumbnail


def evaluate(folder: Path) -> Any:
    """What an evaluation keeps: a result, features, a classifier and descriptors."""
    cache, key = ResultCache(folder / "cache" / "evaluation"), key_of("model", "dataset")
    result = cache.result(key, Score)
    if result is None:
        result = Score(0.5, Thumbnail(encoded(picture(0))))
        cache.keep_result(key, result)
    rng = np.random.default_rng(0)
    features = Encoded(rng.random((5, 3), np.float32), rng.random((5, 4), np.float32))
    kept = cache.encoded(key, 5)
    if kept is None:
        cache.keep_encoded(key, features)
        kept = features
    arrays = [np.array(part).tolist() for part in kept]
    for read, keep in (
        (cache.classifier, cache.keep_classifier),
        (cache.descriptors, cache.keep_descriptors),
    ):
        array = read(key, 5)
        if array is None:
            array = features.pooled
            keep(key, array)
        arrays.append(array.tolist())
    return result, result.picture.content, arrays


CACHES: dict[str, tuple[Callable[[Path], Any], tuple[ModuleType, ...]]] = {
    "tars": (read_tars, (tar_index, tar_catalogue)),
    "tables": (read_table, (cached,)),
    "filters": (select, (tar_index, tar_catalogue, filters)),
    "evaluation": (evaluate, (result_cache,)),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tars and a table, and a cache folder that no other test writes to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, first in (("a", 0), ("b", PAIRS)):
        members = []
        for i in range(first, first + PAIRS):
            text = json.dumps({"caption": f"picture {i}", "n": i % 3}).encode()
            members += [(f"{i:04}.png", encoded(picture(i))), (f"{i:04}.json", text)]
        write_tar(tmp_path / f"{name}.tar", [*members, (f"alone{name}.png", b"x")])
    (tmp_path / "x.png").write_bytes(encoded(picture(0)))
    rows = [f"x.png,caption {i}" for i in range(PAIRS)]
    (tmp_path / "rows.csv").write_text("\n".join(["filepath,title", *rows, ",none", ""]))
    return tmp_path


def cache_files(folder: Path) -> dict[Path, bytes]:
    """The content of every file of every cache."""
    paths = sorted(path for path in (folder / "cache").rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in paths}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("features.npy", npy(np.ones((5, 3))))
    return file.getvalue()


FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + content[-64:],
    "junk": lambda content: np.random.default_rng(1).bytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "an object": lambda content: b'{"version": 1, "result": {}, "left_out": {}}',
    "a list": lambda content: b"[1, 2, 3]",
    "a zip archive": lambda content: archive(),
    "half of a zip archive": lambda content: archive()[:40],
    "another array": lambda content: npy(np.arange(24.0).reshape(2, 3, 4)),
    "integers": lambda content: npy(np.ones((5, 3), np.int64)),
    "an image": lambda content: encoded(picture(5)),
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_or_damaged_file_is_made_anew(folder: Path, name: str, foreign: str) -> None:
    use, _ = CACHES[name]

    def is_anew(content: bytes, expected: bytes) -> bool:
        """Whether a file was written again; bytes that follow the end of one are not read."""
        return content == expected or (foreign == "longer" and content.startswith(expected))

    expected = use(folder)
    before = cache_files(folder)
    assert before and use(folder) == expected
    assert cache_files(folder) == before, "it is used, not written again"
    for path, content in before.items():
        path.write_bytes(FOREIGN[foreign](content))
        assert use(folder) == expected, path
        # the index of a tar is not needed where the catalogue is whole
        if path.suffix != ".index":
            assert is_anew(path.read_bytes(), content), path
        path.write_bytes(content)
    for path, content in before.items():  # all at once
        path.write_bytes(FOREIGN[foreign](content))
    assert use(folder) == expected
    after = cache_files(folder)
    assert after.keys() == before.keys()
    assert all(is_anew(after[path], content) for path, content in before.items())


@pytest.mark.parametrize("name", CACHES)
def test_another_version_is_made_anew(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use, modules = CACHES[name]
    with monkeypatch.context() as older:
        for module in modules:
            older.setattr(module, "_VERSION", module.__dict__["_VERSION"] - 1)
        expected = use(folder)
    old = cache_files(folder)
    assert old
    # whatever an older version wrote is never read: the results are right without it
    for path in old:
        if path.suffix not in (".index", ".webp"):
            path.write_bytes(b"of an older version")
    assert use(folder) == expected
    for path, content in cache_files(folder).items():
        is_anew = path not in old or (path.suffix == ".index" and content != old[path])
        assert is_anew or path.suffix == ".webp" or content == b"of an older version", path


@pytest.mark.parametrize("name", CACHES)
def test_a_file_that_is_missing_is_made_anew(folder: Path, name: str) -> None:
    use, _ = CACHES[name]
    expected = use(folder)
    before = cache_files(folder)
    for path in before:
        path.unlink()
        assert use(folder) == expected
    assert {path for path in cache_files(folder) if path.suffix != ".index"} == {
        path for path in before if path.suffix != ".index"
    }


def test_a_sampled_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [b"", b"a", b"b", bytes(100), bytes(101), os.urandom(1 << 20), os.urandom(1 << 20)]
    digests = set()
    for content in contents:
        path.write_bytes(content)
        digests.add(files.sampled_digest(path))
        assert files.sampled_digest(path) in digests
    assert len(digests) == len(contents)
    path.write_bytes(contents[-1][:-1] + bytes([contents[-1][-1] ^ 1]))
    assert files.sampled_digest(path) not in digests, "the last byte counts"
