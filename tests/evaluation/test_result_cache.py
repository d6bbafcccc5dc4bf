"""What is kept of an evaluation is used where it fits, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_jax.evaluation.features import Encoded
from clip_jax.evaluation.suite.result_cache import ResultCache, key_of

ANSWER = {"score": {"value": 0.5}, "examples": [{"picture": "abc"}]}


def test_an_answer_with_its_pictures(tmp_path: Path) -> None:
    ResultCache(tmp_path).keep("k", ANSWER, {"abc": b"picture"})
    again = ResultCache(tmp_path)
    assert again.answer("k") == ANSWER
    assert again.pictures == {"abc": b"picture"}
    assert again.answer("other") is None


def test_nothing_is_kept_without_a_folder(tmp_path: Path) -> None:
    kept = ResultCache(None)
    kept.keep("k", ANSWER, {"abc": b"picture"})
    kept.keep_encoded("k", Encoded(np.ones((2, 3)), np.ones((2, 4))))
    kept.keep_classifier("k", np.ones((2, 3)))
    assert not kept
    assert kept.pictures == {"abc": b"picture"}, "but for the page"
    assert kept.encoded("k") is None
    assert kept.classifier("k") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"of": []}', b'{"answer": {}, "of": 3}'])
def test_a_damaged_answer_is_none(tmp_path: Path, content: bytes) -> None:
    kept = ResultCache(tmp_path)
    kept.keep("k", ANSWER, {"abc": b"picture"})
    (tmp_path / "k.json").write_bytes(content)
    assert kept.answer("k") is None


def test_an_answer_without_its_picture_is_none(tmp_path: Path) -> None:
    kept = ResultCache(tmp_path)
    kept.keep("k", ANSWER, {"abc": b"picture"})
    (tmp_path / "abc.webp").unlink()
    assert kept.answer("k") is None


def test_names_of_pictures_do_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.webp").write_bytes(b"secret")
    inner = tmp_path / "kept"
    inner.mkdir()
    (inner / "k.json").write_text('{"of": ["../secret"], "answer": {}}')
    kept = ResultCache(inner)
    kept.answer("k")
    assert not kept.pictures


def test_features(tmp_path: Path) -> None:
    made = Encoded(np.ones((2, 3), np.float32), np.zeros((2, 4), np.float32))
    ResultCache(tmp_path).keep_encoded("k", made)
    found = ResultCache(tmp_path).encoded("k")
    assert found is not None
    assert all(np.array_equal(a, b) for a, b in zip(found, made, strict=True))
    assert ResultCache(tmp_path, features=False).encoded("k") is None
    (tmp_path / "k.pooled.npy").write_bytes(b"\x93NUMPY")
    assert ResultCache(tmp_path).encoded("k") is None


def test_features_hold_no_pickle(tmp_path: Path) -> None:
    array = np.array([{"a": 1}], object)
    for name in Encoded._fields:
        np.save(tmp_path / f"k.{name}.npy", array, allow_pickle=True)
    assert ResultCache(tmp_path).encoded("k") is None


def test_what_is_written_for_all_evaluations_of_a_user(tmp_path: Path) -> None:
    ResultCache(tmp_path / "one").keep_classifier("k" * 8, np.arange(6.0).reshape(2, 3))
    found = ResultCache(tmp_path / "two").classifier("k" * 8)
    assert np.array_equal(found, np.arange(6.0).reshape(2, 3))
    assert ResultCache(tmp_path / "two").descriptors("k" * 8) is None


def test_a_name_follows_from_every_value() -> None:
    names = {key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of(["a"], 1), key_of("a", "1")}
    assert len(names) == 5
    assert key_of("a", 1) == key_of("a", 1)
