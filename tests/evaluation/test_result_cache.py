"""What is kept of an evaluation is used where it fits, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from clip_jax.evaluation.features import Encoded
from clip_jax.evaluation.result_cache import ResultCache, key_of
from clip_jax.evaluation.serialization import Thumbnail


@dataclasses.dataclass(frozen=True)
class Result:
    """A result with a thumbnail."""

    score: float
    picture: Thumbnail
    note: str | None = None


RESULT = Result(0.5, Thumbnail(b"picture"))
NAME = RESULT.picture.name


def test_a_result_with_its_thumbnails(tmp_path: Path) -> None:
    ResultCache(tmp_path).keep_result("k", RESULT)
    result = ResultCache(tmp_path).result("k", Result)
    assert result == RESULT
    assert result.picture.content == b"picture"
    assert ResultCache(tmp_path).result("other", Result) is None


def test_nothing_is_kept_without_a_folder() -> None:
    cache = ResultCache(None)
    cache.keep_result("k", RESULT)
    cache.keep_encoded("k", Encoded(np.ones((2, 3)), np.ones((2, 4))))
    cache.keep_classifier("k", np.ones((2, 3)))
    assert not cache
    assert cache.result("k", Result) is None
    assert cache.encoded("k", 2) is None
    assert cache.classifier("k", 2) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"thumbnails": []}',
        b'{"result": {}, "thumbnails": 3}',
        b'{"result": {}, "thumbnails": []}',
        b'{"result": {"score": "0.5", "picture": ""}, "thumbnails": []}',
        b'{"result": {"score": 0.5, "picture": "", "more": 1}, "thumbnails": []}',
    ],
)
def test_a_damaged_result_is_none(tmp_path: Path, content: bytes) -> None:
    cache = ResultCache(tmp_path)
    cache.keep_result("k", RESULT)
    (tmp_path / "k.json").write_bytes(content)
    assert cache.result("k", Result) is None


def test_a_result_without_its_thumbnail_is_none(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.keep_result("k", RESULT)
    (tmp_path / f"{NAME}.webp").unlink()
    assert cache.result("k", Result) is None


def test_names_of_thumbnails_do_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.webp").write_bytes(b"secret")
    inner = tmp_path / "kept"
    inner.mkdir()
    document = {"thumbnails": ["../secret"], "result": {"score": 1.0, "picture": "../secret"}}
    (inner / "k.json").write_text(json.dumps(document))
    result = ResultCache(inner).result("k", Result)
    assert result is not None
    assert result.picture.content == b""


def test_features(tmp_path: Path) -> None:
    encoded = Encoded(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))
    ResultCache(tmp_path).keep_encoded("k", encoded)
    cached = ResultCache(tmp_path).encoded("k", 2)
    assert ResultCache(tmp_path).encoded("k", 3) is None
    assert cached is not None
    assert all(np.array_equal(a, b) for a, b in zip(cached, encoded, strict=True))
    assert ResultCache(tmp_path, features=False).encoded("k", 2) is None
    (tmp_path / "k.pooled.npy").write_bytes(b"\x93NUMPY")
    assert ResultCache(tmp_path).encoded("k", 2) is None


def test_features_hold_no_pickle(tmp_path: Path) -> None:
    array = np.array([{"a": 1}], object)
    for name in Encoded._fields:
        np.save(tmp_path / f"k.{name}.npy", array, allow_pickle=True)
    assert ResultCache(tmp_path).encoded("k", 2) is None


def test_entries_shared_by_all_evaluations_of_a_user(tmp_path: Path) -> None:
    ResultCache(tmp_path / "one").keep_classifier("k" * 8, np.arange(6.0).reshape(2, 3))
    classifier = ResultCache(tmp_path / "two").classifier("k" * 8, 2)
    assert np.array_equal(classifier, np.arange(6.0).reshape(2, 3))
    assert ResultCache(tmp_path / "two").descriptors("k" * 8, 2) is None


def test_a_name_follows_from_every_value() -> None:
    names = {key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of(["a"], 1), key_of("a", "1")}
    assert len(names) == 5
    assert key_of("a", 1) == key_of("a", 1)
