"""Semantic duplicates against all pairs of each cluster, and k-means against a plain one."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.cli.curate import run as curate
from clip_jax.curation.duplicates import clustering, semantic
from clip_jax.curation.duplicates.clustering import KMeans
from clip_jax.curation.scores import feature_tables
from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter
from support import refused

WIDTH, COUNTS, BROKEN = 8, (70, 50), (3, 90)


def images(seed: int = 0) -> np.ndarray:
    """Unit-norm features, of which the last third nearly repeats the first."""
    rng = np.random.default_rng(seed)
    count = sum(COUNTS)
    rows = rng.normal(size=(count, WIDTH))
    copies = count // 3
    rows[-copies:] = rows[:copies] + rng.uniform(0, 0.5, (copies, 1)) * rng.normal(
        size=(copies, WIDTH)
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[list(BROKEN)] = np.nan
    return rows.astype(np.float16)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """What `curate score --features` writes of two files."""
    rows, start = images(), 0
    files = [f"{i}.tar" for i in range(len(COUNTS))]
    writer = AnnotationWriter(tmp_path / "scores", "*.tar", {"clip_score": ""}, files, {})
    for file, count in zip(files, COUNTS, strict=True):
        table = feature_tables.path_of(writer.folder, writer.table(file))
        with feature_tables.writing(table, WIDTH, {}) as write:
            for part in np.array_split(rows[start : start + count], 3):
                write(part)
        writer.write(file, "print", {"clip_score": np.zeros(count, np.float32)})
        start += count
    assert writer.finish()
    return Path(writer.folder)


def find(scores: Path, out: Path, *flags: str) -> dict[str, np.ndarray]:
    assert curate(["semantic", str(scores), "--out", str(out), *flags]) == 0
    read = Annotations.open(out)
    parts = [read.of_file(n) for n in range(len(COUNTS))]
    return {name: np.concatenate([part[name] for part in parts]) for name in read.columns}


def by_all_pairs(
    rows: np.ndarray, cluster: np.ndarray, centres: np.ndarray, keep: str
) -> np.ndarray:
    """The largest similarity to an earlier row, by loops over all pairs."""
    rows = clustering.unit_norm(rows).astype(np.float64)
    result = np.full(len(rows), np.nan)
    for c in np.unique(cluster[np.isfinite(cluster)]).astype(int):
        members = np.flatnonzero(cluster == c)
        sign = {"farthest": 1, "nearest": -1, "first": 0}[keep]
        order = members[np.argsort(sign * (rows[members] @ centres[c]), kind="stable")]
        for place, i in enumerate(order):
            result[i] = max((float(rows[i] @ rows[j]) for j in order[:place]), default=-1)
    return result


@pytest.mark.parametrize("keep", ["farthest", "nearest", "first"])
def test_duplicates_are_those_of_all_pairs(
    scores: Path, tmp_path: Path, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the tiles, the buckets and the number of devices."""
    monkeypatch.setattr(semantic, "_TILE", 16)
    monkeypatch.setattr(semantic, "_LEAST", 4)
    monkeypatch.setattr(semantic.Buckets.__init__, "__defaults__", (200,))
    out = tmp_path / "out"
    found = find(scores, out, "--clusters", "3", "--keep", keep, "--similarity", "0.9")
    rows = images()
    with np.load(out / "centres.npz") as state:
        centres = state["centres"]
    valid = np.isfinite(rows).all(axis=1)
    cosines = clustering.unit_norm(rows) @ centres.T
    cluster = np.where(valid, cosines.argmax(axis=1), np.nan)
    np.testing.assert_array_equal(found["cluster"], cluster)
    expected = by_all_pairs(rows, cluster, centres, keep)
    np.testing.assert_allclose(found["semantic_similarity"], expected, atol=1e-6)
    duplicate = np.where(valid, expected > 0.9, np.nan)
    np.testing.assert_array_equal(found["semantic_duplicate"], duplicate)
    assert 5 < np.nansum(duplicate) < 40
    assert not (out / "work").exists()


def test_of_each_group_of_duplicates_one_is_kept(scores: Path, tmp_path: Path) -> None:
    """By the rule of `near_groups`: one that is similar to none before it."""
    for keep in semantic.KEEP:
        found = find(scores, tmp_path / keep, "--clusters", "1", "--keep", keep)
        kept = np.flatnonzero(found["semantic_duplicate"] == 0)
        rows = clustering.unit_norm(images())
        cosines = rows[kept] @ rows[kept].T - 2 * np.eye(len(kept))
        assert cosines.max() <= 0.95 + 1e-6
        others = np.flatnonzero(found["semantic_duplicate"] == 1)
        assert ((rows[others] @ rows.T) > 0.95).sum(axis=1).min() >= 2


def test_the_seed_decides(scores: Path, tmp_path: Path) -> None:
    flags = ("--clusters", "4", "--keep", "random")
    first = find(scores, tmp_path / "a", *flags)
    again = find(scores, tmp_path / "b", *flags)
    other = find(scores, tmp_path / "c", *flags, "--seed", "1")
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert not np.array_equal(first["cluster"], other["cluster"], equal_nan=True)


def test_a_stopped_run_goes_on_with_its_centres(
    scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find(scores, tmp_path / "whole", "--passes", "4")
    move, passes = KMeans.move, list[str]()

    def stop(self: KMeans, *args: object) -> object:
        passes.append("pass")
        if len(passes) == 3:
            raise KeyboardInterrupt
        return move(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(KMeans, "move", stop)
    with pytest.raises(KeyboardInterrupt):
        find(scores, tmp_path / "out", "--passes", "4")
    found = find(scores, tmp_path / "out", "--passes", "4")
    assert len(passes) == 5
    find(scores, tmp_path / "out", "--passes", "4")
    assert len(passes) == 5
    for name, values in whole.items():
        np.testing.assert_array_equal(values, found[name])


@settings(max_examples=15)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 40))
def test_batches_hold_all_rows(seed: int, parts: int, size: int) -> None:
    rows = images(seed)
    given_parts = np.array_split(rows, parts)
    seen = list(clustering.batches(given_parts, size))
    assert [batch.start for batch in seen] == list(range(0, len(rows), size))
    assert {len(batch.rows) for batch in seen} == {size}
    joined = np.concatenate([batch.rows[: batch.filled] for batch in seen])
    np.testing.assert_array_equal(joined, clustering.unit_norm(rows))
    valid = np.concatenate([batch.valid[: batch.filled] for batch in seen])
    np.testing.assert_array_equal(valid, np.isfinite(rows).all(axis=1))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_pass_is_one_of_plain_k_means(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_MAX_ROWS", 64)
    rows = images()
    valid = np.flatnonzero(np.isfinite(rows).all(axis=1))
    parts = np.array_split(rows, 5)
    centres = clustering.initial_centres(parts, valid, 6, 0)
    unit = clustering.unit_norm(rows)
    assert all((np.abs(unit - centre).max(axis=1) < 1e-6).any() for centre in centres)
    centres[5] = -centres[:5].mean(axis=0) / np.linalg.norm(centres[:5].mean(axis=0))
    moved, mean = KMeans(6, jax.devices()[:devices]).move(centres, parts)
    cosines = unit[valid] @ centres.T
    nearest = cosines.argmax(axis=1)
    assert mean == pytest.approx(cosines.max(axis=1).mean(), abs=1e-6)
    for number, centre in enumerate(centres):
        own = unit[valid][nearest == number]
        expected = own.sum(axis=0) / np.linalg.norm(own.sum(axis=0)) if len(own) else centre
        np.testing.assert_allclose(moved[number], expected, atol=1e-5)


@pytest.mark.parametrize("rows", [np.zeros((0, 4)), np.zeros((3, 4)), np.full((3, 4), np.nan)])
def test_features_of_no_pair_are_told(rows: np.ndarray, tmp_path: Path) -> None:
    writer = AnnotationWriter(tmp_path / "scores", "*.tar", {"clip_score": ""}, ["0.tar"], {})
    table = feature_tables.path_of(writer.folder, writer.table("0.tar"))
    with feature_tables.writing(table, 4, {}) as write:
        if len(rows):
            write(rows.astype(np.float16))
    writer.write("0.tar", "", {"clip_score": np.zeros(len(rows), np.float32)})
    assert writer.finish()
    refused(lambda: find(tmp_path / "scores", tmp_path / "out"), "has features of no pair")


def test_wrong_input_is_one_line(scores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(lambda: find(tmp_path, out), "is no annotation folder")
    refused(lambda: find(scores, out, "--similarity", "1.5"), "--similarity 1.5")
    refused(lambda: find(scores, out, "--clusters", "119"), "118 images", "119 clusters")
    table = scores / feature_tables.FOLDER / "00001.parquet"
    content = table.read_bytes()
    for damage, words in (
        (content[:-1], "cannot be read"),
        (content[: len(content) // 2] + b"\0" * 50 + content[len(content) // 2 + 50 :], "again"),
        ((scores / feature_tables.FOLDER / "00000.parquet").read_bytes(), "for each of 50 pairs"),
        ((scores / "00001.parquet").read_bytes(), "list of 8 float16"),
    ):
        table.write_bytes(damage)
        refused(lambda: find(scores, out), "00001.parquet", words)
    table.unlink()
    refused(lambda: find(scores, out), "curate score --features")
