"""`curate score`: the model's own cosines for every pair, whatever is broken, killed or resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import clip_jax
import runs
from clip_jax.cli.curate import run as curate
from clip_jax.curation.scores import feature_tables
from clip_jax.curation.scores.annotations import Annotations
from clip_jax.curation.scores.score_files import ScoreJob
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.training import workdir_lock
from clip_jax.weights import export
from support import encoded, picture, refused, write_tar

SMALL = dict(width=16, layers=1, heads=2)
TEXT = TextConfig(context_length=12, **SMALL)
CONFIG = CLIPConfig(12, vision=VisionConfig(image_size=16, patch_size=8, **SMALL), text=TEXT)
COUNTS = (5, 11)  # pairs of the files
NO_PICTURE, NO_CAPTION = (1, 3), (1, 9)  # file and pair


def image(file: int, pair: int) -> Image.Image:
    return picture(100 * file + pair, (20, 18))


def texts(file: int, pair: int) -> dict[str, str]:
    fields = {"caption": f"picture {pair} of {file}", "name": f"name {pair}"}
    return {} if (file, pair) == NO_CAPTION else fields


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export.write(folder, variables(CLIP(CONFIG, rngs=nnx.Rngs(0))), CONFIG, "open_clip")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for file, count in enumerate(COUNTS):
        members = []
        for pair in range(count):
            content = encoded(image(file, pair))
            members.append((f"{pair:03}.png", b"?" if (file, pair) == NO_PICTURE else content))
            members.append((f"{pair:03}.json", json.dumps(texts(file, pair)).encode()))
        write_tar(folder / f"{file}.tar", members)
    return f"{folder}/*.tar"


def score(model: Path, data: str, out: Path, *flags: str) -> Annotations:
    assert curate(["score", str(model), data, "--out", str(out), "--batch-size", "1", *flags]) == 0
    return Annotations.open(out)


def features(model: Path, file: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The unit-norm features of a file's images, captions and names, by the model alone."""
    towers, preprocess, tokenize = clip_jax.load(model)
    rows = range(COUNTS[file])
    pixels = np.stack([preprocess(image(file, pair)) for pair in rows])
    words = [texts(file, pair) or {"caption": "", "name": ""} for pair in rows]
    captions, names = (tokenize([w[key] for w in words]) for key in ("caption", "name"))
    return (
        np.asarray(towers.encode_image(pixels, normalized=True)),
        np.asarray(towers.encode_text(captions, normalized=True)),
        np.asarray(towers.encode_text(names, normalized=True)),
    )


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder, rng = tmp_path_factory.mktemp("heads"), np.random.default_rng(0)
    values = {
        "one": (rng.normal(size=12), np.array(0.5)),
        "two": (rng.normal(size=(12, 2)), rng.normal(size=2)),
    }
    for name, (weight, bias) in values.items():
        np.savez(folder / f"{name}.npz", weight=weight, bias=bias)
    return {str(folder / f"{name}.npz"): value for name, value in values.items()}


def test_scores_are_the_models_own(
    model: Path,
    data: str,
    tmp_path: Path,
    heads: dict[str, tuple[np.ndarray, np.ndarray]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [f"--head=h{i}={path}" for i, path in enumerate(heads)]
    read = score(model, data, tmp_path, "--features", *flags)
    assert list(read.columns) == ["clip_score", "h0", "h1_0", "h1_1"]
    assert [entry.pairs for entry in read.files] == list(COUNTS)
    for file in range(2):
        images, captions, _ = features(model, file)
        values = read.of_file(file)
        missing = [file == 1 and pair in (NO_PICTURE[1], NO_CAPTION[1]) for pair in range(11)]
        expected = np.where(missing[: COUNTS[file]], np.nan, np.sum(images * captions, axis=1))
        np.testing.assert_allclose(values["clip_score"], expected, atol=1e-6)
        lost = [(file, pair) == NO_PICTURE for pair in range(COUNTS[file])]
        images = np.where(np.array(lost)[:, None], np.nan, images)
        (w1, b1), (w2, b2) = heads.values()
        np.testing.assert_allclose(values["h0"], images @ w1 + b1, atol=1e-5)
        for i in range(2):
            np.testing.assert_allclose(values[f"h1_{i}"], images @ w2[:, i] + b2[i], atol=1e-5)
        table = feature_tables.path_of(read.folder, read.files[file].table)
        stored = np.concatenate(list(feature_tables.read(table, COUNTS[file], 12)))
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, images, atol=1e-3)
    printed = capsys.readouterr()
    assert "scored 16 pairs of 2 files; 2 without a score: picture 1, caption 1" in printed.err
    assert "clip_score of 14 pairs: mean" in printed.out


def test_captions_are_the_first_that_is_filled_or_all(
    model: Path, data: str, tmp_path: Path
) -> None:
    images, captions, names = features(model, 0)
    flags = ("--captions", "{title}", "--captions", "{name}", "--captions", "{caption}")
    first = score(model, data, tmp_path / "first", *flags).of_file(0)["clip_score"]
    np.testing.assert_allclose(first, np.sum(images * names, axis=1), atol=1e-6)
    flags = (*flags, "--average", "--column", "mean_score")
    average = score(model, data, tmp_path / "average", *flags).of_file(0)["mean_score"]
    mean = captions + names
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(average, np.sum(images * mean, axis=1), atol=1e-6)


def test_a_stopped_run_goes_on_with_the_file_that_was_not_finished(
    model: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(model, data, tmp_path / "whole", "--features")
    out, scored = tmp_path / "out", list[str]()
    step = ScoreJob._score

    def note(self: ScoreJob, file: str, *rest: object) -> object:
        if scored == ["0.tar"]:
            scored.append("stopped")
            raise KeyboardInterrupt
        scored.append(Path(file).name)
        return step(self, file, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ScoreJob, "_score", note)
    with pytest.raises(KeyboardInterrupt):
        score(model, data, out, "--features")
    refused(lambda: Annotations.open(out), "not complete")
    again = score(model, data, out, "--features")
    assert scored == ["0.tar", "stopped", "1.tar"]
    score(model, data, out, "--features")
    Path(feature_tables.path_of(again.folder, again.files[0].table)).unlink()
    score(model, data, out, "--features")
    assert scored == ["0.tar", "stopped", "1.tar", "0.tar"]
    for file in range(2):
        np.testing.assert_array_equal(
            again.of_file(file)["clip_score"], whole.of_file(file)["clip_score"]
        )


def test_a_limit_leaves_the_rest_without_values(model: Path, data: str, tmp_path: Path) -> None:
    read = score(model, data, tmp_path, "--limit", "6", "--features")
    for file, count in enumerate((5, 6)):
        values = read.of_file(file)["clip_score"]
        assert len(values) == COUNTS[file] and np.isnan(values[count:]).all()
        table = feature_tables.path_of(read.folder, read.files[file].table)
        assert (
            len(np.concatenate(list(feature_tables.read(table, COUNTS[file], 12)))) == COUNTS[file]
        )


def test_wrong_input_is_one_line(
    model: Path, data: str, tmp_path: Path, heads: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    out, wrong = tmp_path / "out", tmp_path / "wrong.npz"
    head = next(iter(heads))

    def fails(*words: str, flags: tuple[str, ...]) -> None:
        refused(lambda: score(model, data, out, *flags), *words)

    fails("0.tar", "caption 5", "needs the field 'title'", flags=("--captions", "{title}"))
    fails("expected '}'", flags=("--captions", "{title"))
    fails("NAME=FILE.npz", flags=("--head", "x.npz"))
    fails("two columns have one name", flags=(f"--head=clip_score={head}",))
    fails("no name of a column", flags=("--column", "a b"))
    for content in (b"", b"PK\3\4", b"\x93NUMPY"):
        wrong.write_bytes(content)
        fails("wrong.npz cannot be read", flags=(f"--head=h={wrong}",))
    for arrays, words in (
        ({"bias": np.zeros(1)}, "must hold 'weight'"),
        ({"weight": np.array(["a"])}, "as numbers"),
        ({"weight": np.zeros(11)}, "this model gives 12 features"),
        ({"weight": np.zeros((12, 2, 1))}, "[12, 2, 1]"),
        ({"weight": np.zeros((12, 2)), "bias": np.zeros(3)}, "one for each output"),
        ({"weight": np.full(12, np.inf)}, "not finite"),
        ({"weight": np.array([None] * 12)}, "cannot be read"),
    ):
        np.savez(wrong, allow_pickle=True, **arrays)
        fails(words, flags=(f"--head=h={wrong}",))
    assert not list(tmp_path.glob("out/*.parquet"))
    with pytest.raises(UserError, match="was written with captions="):
        score(model, data, out)
        score(model, data, out, "--captions", "{name}")


KILLED = """
import os, signal, sys
from clip_jax.cli import curate
from clip_jax.curation.scores.annotations import AnnotationWriter
write = AnnotationWriter.write
def kill(self, file, *rest):
    if file.endswith("1.tar"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, file, *rest)
AnnotationWriter.write = kill
curate.run(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(model: Path, data: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["score", str(model), data, "--out", str(out), "--batch-size", "1", "--features"]
    process = subprocess.run([sys.executable, "-c", KILLED, *flags], env=runs.environment())
    assert process.returncode == -signal.SIGKILL
    refused(lambda: Annotations.open(out), "not complete")
    first = out / "00000.parquet"
    written = first.stat().st_mtime_ns
    again, whole = score(model, data, out, "--features"), score(model, data, tmp_path / "whole")
    assert first.stat().st_mtime_ns == written
    for file in range(2):
        np.testing.assert_array_equal(
            again.of_file(file)["clip_score"], whole.of_file(file)["clip_score"]
        )


@pytest.mark.slow
def test_hosts_share_the_files(model: Path, data: str, tmp_path: Path) -> None:
    code = "import sys; from clip_jax.cli import common, curate; "
    argv = [sys.executable, "-c", code + "common.run_and_exit(curate.run, sys.argv[1:])"]
    argv += ["score", str(model), data, "--out", str(tmp_path / "two"), "--batch-size", "1"]
    ended = runs.together(argv, 2)
    assert [process.returncode for process in ended] == [0, 0], ended[0].stderr
    for process in ended:
        assert "scored" in process.stderr and "of 1 file;" in process.stderr
    one, two = score(model, data, tmp_path / "one"), Annotations.open(tmp_path / "two")
    for file in range(2):
        np.testing.assert_array_equal(
            one.of_file(file)["clip_score"], two.of_file(file)["clip_score"]
        )


def test_two_commands_never_write_one_folder(model: Path, data: str, tmp_path: Path) -> None:
    with workdir_lock.locked(tmp_path, False, print):
        refused(lambda: score(model, data, tmp_path), "is in use by", "give another --out")


def test_files_that_cannot_be_opened_are_counted(
    model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(Path(data).parent, folder)
    damaged = folder / "00.tar"
    damaged.write_bytes(b"no tar")
    mixed = f"{folder}/*.tar"
    refused(lambda: score(model, mixed, out), "1 of 3 files", "--max-bad-fraction=0.01", "00.tar")
    flags = ("--max-bad-fraction", "0.5", "--features")
    read = score(model, mixed, out, *flags)
    assert sorted(entry.pairs for entry in read.files) == [0, *COUNTS]
    assert "1 file cannot be opened; 2 without a score" in capsys.readouterr().err
    assert len(read.of_file(str(damaged))["clip_score"]) == 0
    assert curate(["semantic", str(out), "--out", str(tmp_path / "semantic")]) == 0
    damaged.write_bytes((folder / "0.tar").read_bytes())
    assert len(score(model, mixed, out, *flags).of_file(str(damaged))["clip_score"]) == COUNTS[0]
