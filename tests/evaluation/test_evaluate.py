"""`--mode=evaluate`: any checkpoint, any sets, the same numbers on any devices, and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runs
from clip_jax import main
from clip_jax.evaluation.features import Encoder
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.model_config import CLIPConfig
from support import encoded, picture, refused, write_tar

ALL = "--suite=zero_shot,linear_probe,few_shot,retrieval"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its config is `config.py` beside it."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = runs.small_run(folder, 8)
    flags = "--config.steps=4", "--config.evaluate.every=4", "--config.evaluate.at=(2,)"
    done = runs.run(config, folder / "run", *flags)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the user's own: folders named by class, in a train and a test split."""
    folder = tmp_path_factory.mktemp("sets") / "animals"
    for i in range(72):
        split = "test" if i < 24 else "train"
        path = folder / split / ["cat", "dog", "owl"][i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i % 3 + 3 * (i % 2), (20, 20 + i % 3))))
    return folder


def evaluate(run: Path, *flags: str) -> None:
    config = str(run.parent / "config.py")
    main.run(["--config", config, "--mode=evaluate", "--checkpoint", str(run), *flags])


def report(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "report.json").read_text())
    del document["seconds"], document["model"]["created"], document["model"]["checkpoint"]
    return document


@pytest.mark.slow
def test_training_leaves_a_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    document = report(run)
    assert document["model"]["step"] == 4
    scored = [step for step, name in runs.values(run) if name == "zero_shot/held/top1"]
    assert scored == [2, 4]
    assert document["sets"]["held"]["images"] == 8
    assert [step for step, _ in document["curves"]["loss"]] == [1, 2, 3, 4]
    assert len(document["sets"]["held"]["zero_shot"]["examples"]) == 2


@pytest.mark.slow
def test_a_probe_while_training_is_that_of_an_evaluation(
    run: Path, animals: Path, tmp_path: Path
) -> None:
    sets = {"animals": {"data": str(animals)}}
    flags = (
        "--config.evaluate.suite=zero_shot,linear_probe",
        f"--config.evaluate.sets={sets}",
        *("--config.steps=3", "--config.evaluate.every=3"),
    )
    config = run.parent / "config.py"
    done = runs.run(config, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    trained = runs.values(tmp_path)[3, "linear_probe/animals/accuracy"]
    sweep = report(tmp_path)["sets"]["animals"]["linear_probe"]["sweep"]
    process = runs.run(config, tmp_path, *flags, "--mode=evaluate")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1])["linear_probe/animals/accuracy"] == trained
    assert report(tmp_path)["sets"]["animals"]["linear_probe"]["sweep"] == sweep


@pytest.mark.slow
def test_the_page_of_an_evaluation(run: Path, animals: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(run, "--workdir", str(out), f"--sets=animals={animals},held", ALL)
    document = report(out)
    assert list(document["sets"]) == ["animals", "held"]
    mine = document["sets"]["animals"]
    assert mine["classes"] == 3
    assert mine["images"] == 24
    assert mine["zero_shot"]["score"]["n"] == 24
    assert set(mine["zero_shot"]["prompts"]) == {"name alone", "one template", "all templates"}
    assert mine["linear_probe"]["train"] + mine["linear_probe"]["validation"] == 48
    assert mine["linear_probe"]["score"]["value"] == 1.0, "six pictures, seen in training"
    assert mine["few_shot"]["shots"] == [1, 2, 4, 8, 16]
    assert "retrieval" not in mine, "names of classes are no captions"
    assert document["sets"]["held"]["retrieval"]["images"] == 8
    assert "linear_probe" not in document["sets"]["held"]
    assert [entry["set"] for entry in document["missing"]] == [
        "held: linear_probe",
        "held: few_shot",
    ]
    page = (out / "report.html").read_text()
    assert "animals" in page
    assert page.count("data:image/") >= 8, "six of animals, two of held"


def test_a_second_evaluation_goes_on_from_the_first(
    run: Path, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, at_once = tmp_path / "out", tmp_path / "whole"
    flags = (f"--sets=animals={animals},held", "--suite=zero_shot,retrieval")
    evaluate(run, "--workdir", str(at_once), *flags)

    encode = Encoder.encoded
    encoded: list[int] = []

    def counted(self: Encoder, source: Any, *args: Any, **more: Any) -> Any:
        encoded.append(len(source))
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return encode(self, source, *args, **more)

    monkeypatch.setattr(Encoder, "encoded", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, "--workdir", str(out), *flags)
    assert encoded == [24, 8]
    assert not (out / "report.json").exists()
    evaluate(run, "--workdir", str(out), *flags)
    assert encoded == [24, 8, 8], "the first set is not encoded again"
    assert report(out) == report(at_once)
    evaluate(run, "--workdir", str(out), *flags, "--config.evaluate.templates=('a {}',)")
    assert encoded == [24, 8, 8], "features do not hang on prompts"
    assert report(out)["sets"]["animals"]["zero_shot"]["templates"] == 1


def test_a_class_without_a_picture_to_learn_from(run: Path, animals: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(animals, mine)
    shutil.rmtree(mine / "train" / "owl")
    flags = ("--workdir", str(tmp_path / "out"), f"--sets=mine={mine}", "--suite")
    refused(lambda: evaluate(run, *flags, "few_shot"), "mine.train", "1 of 3 classes", "no row")
    evaluate(run, *flags, "zero_shot,linear_probe")
    document = report(tmp_path / "out")
    assert "linear_probe" not in document["sets"]["mine"]
    assert "1 of 3 classes" in document["missing"][0]["why"]


def test_a_changed_picture_is_seen(run: Path, animals: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(animals, mine)
    flags = ("--workdir", str(tmp_path / "out"), f"--sets=mine={mine}", "--suite=zero_shot")
    evaluate(run, *flags)
    before = report(tmp_path / "out")["sets"]["mine"]["zero_shot"]["examples"]
    for path in sorted((mine / "test").glob("*/*.png")):
        path.write_bytes(encoded(picture(99, (21, 22))))
    evaluate(run, *flags)
    after = report(tmp_path / "out")["sets"]["mine"]["zero_shot"]["examples"]
    assert {example["picture"] for example in before}.isdisjoint(
        example["picture"] for example in after
    )


def test_damaged_notes_are_made_again(run: Path, animals: Path, tmp_path: Path) -> None:
    flags = ("--workdir", str(tmp_path), f"--sets=animals={animals}", "--suite=zero_shot")
    evaluate(run, *flags)
    expected = report(tmp_path)
    cached = sorted((tmp_path / "evaluation").iterdir())
    assert {path.suffix for path in cached} == {".json", ".npy", ".webp"}
    for path in cached:
        path.write_bytes(path.read_bytes()[:20])
    evaluate(run, *flags)
    assert report(tmp_path) == expected


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_report(
    run: Path, animals: Path, tmp_path: Path
) -> None:
    flags = (f"--sets=animals={animals},held", ALL)
    config = run.parent / "config.py"
    reports = []
    for count in (1, 8):
        devices = f"--xla_force_host_platform_device_count={count} {runs.QUICK}"
        more = ("--mode=evaluate", "--checkpoint", str(run), *flags)
        done = runs.run(config, tmp_path / str(count), *more, XLA_FLAGS=devices)
        assert done.returncode == 0, done.stderr
        reports.append(report(tmp_path / str(count)))
    assert reports[0] == reports[1]
    again = runs.run(config, tmp_path / "1", *more, XLA_FLAGS=devices)
    for what in ("zero_shot", "linear_probe", "few_shot"):
        assert f"animals: {what} was done before" in again.stderr, "by another process"
    assert report(tmp_path / "1") == reports[0]


@pytest.mark.slow
def test_two_processes_give_the_same_report(run: Path, animals: Path, tmp_path: Path) -> None:
    flags = (f"--sets=animals={animals},held", ALL, "--mode=evaluate", "--checkpoint", str(run))
    for count in (1, 2):
        argv = [*runs.command(run.parent / "config.py", tmp_path / str(count)), *flags]
        for process in runs.together(argv, count, devices=2 // count):
            assert process.returncode == 0, process.stderr
    assert report(tmp_path / "1") == report(tmp_path / "2")


def test_mistakes_are_one_line_errors(run: Path, animals: Path, tmp_path: Path) -> None:
    config = str(run.parent / "config.py")
    refused(lambda: evaluate(run, "--suite=zeroshot"), "zeroshot", "did you mean zero_shot?")
    refused(lambda: evaluate(run, "--sets=cifar-10"), "cifar-10", "did you mean cifar10")
    folder = f"--config.evaluate.folder={tmp_path}"
    refused(lambda: evaluate(run, "--sets=cifar10", folder), "cifar10", tmp_path)
    refused(lambda: evaluate(run, "--sets=paper", folder), "food101", tmp_path)
    refused(lambda: evaluate(run, "--config.evaluate.sets={}"), "--sets")
    start = ["--config", config, "--mode=evaluate", "--checkpoint"]
    refused(lambda: main.run([*start, str(tmp_path)]), "config.json")
    refused(lambda: main.run([*start, str(tmp_path / "none")]), "no run or model at")
    refused(lambda: main.run([*start[:2], "--suite=zero_shot"]), "--suite", "--mode=evaluate")
    refused(lambda: evaluate(run, "--suite=overlap", "--config.data.train="), "--config.data.train")


def test_weights_of_others_need_a_folder_for_the_report(run: Path, tmp_path: Path) -> None:
    from clip_jax.cli import convert

    convert.run([str(run), str(tmp_path / "theirs"), "--to", "hugging_face"])
    config = str(run.parent / "config.py")
    argv = ["--config", config, "--mode=evaluate", "--checkpoint", str(tmp_path / "theirs")]
    refused(lambda: main.run(argv), "--workdir")


def test_a_lone_file_computes_what_the_config_says(
    run: Path,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from clip_jax.cli import convert

    model = json.loads((run / "config.json").read_text())["model"]
    model["vision"]["patch_dropout"] = 0.0
    monkeypatch.setitem(ARCHITECTURES, "tiny", CLIPConfig.from_dict(model))
    convert.run([str(run), str(tmp_path / "theirs"), "--to", "open_clip"])
    lone = (tmp_path / "theirs" / "open_clip_model.safetensors").rename(tmp_path / "l.safetensors")
    config = str(run.parent / "config.py")
    argv = ["--config", config, "--mode=evaluate", "--checkpoint", str(lone)]
    argv.append(f"--sets=mine={animals}")
    for activation, times in (("quick_gelu", 1), ("gelu", 0)):
        flags = ("--workdir", str(tmp_path / activation), f"--config.model.activation={activation}")
        capsys.readouterr()
        main.run([*argv, *flags])
        assert capsys.readouterr().err.count("need activation=gelu") == times
    evaluate(run, "--workdir", str(tmp_path / "run"), f"--sets=mine={animals}")

    def features(name: str) -> Any:
        (file,) = (tmp_path / name / "evaluation").glob("*.features.npy")
        return np.load(file)

    assert np.allclose(features("quick_gelu"), features("run"), atol=1e-6)
    assert np.abs(features("gelu") - features("run")).max() > 1e-5
    assert report(tmp_path / "gelu")["model"]["name"] == "tiny"


def test_a_broken_picture_ends_it(run: Path, animals: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(animals, mine)
    (mine / "test" / "owl" / "2.png").write_bytes(b"no picture")
    flags = ("--workdir", str(tmp_path / "out"), f"--sets=mine={mine}")
    refused(lambda: evaluate(run, *flags), "evaluate.sets.mine", "2.png", "mend it or take it out")


def test_overlap_with_the_training_pictures(run: Path, animals: Path, tmp_path: Path) -> None:
    """Three of the six pictures of `animals` are among the training pictures, at another size."""
    pairs = [
        (f"{i}.{end}", content)
        for i in range(3)
        for end, content in (
            ("png", encoded(picture(i, (20, 20 + i)).resize((40, 42)))),
            ("txt", b"an animal"),
        )
    ]
    members = [*pairs, ("9.png", b"broken"), ("9.txt", b"nothing")]
    train = write_tar(tmp_path / "train.tar", members)
    flags = (f"--sets=animals={animals}", "--suite=overlap", f"--config.data.train={train}")
    evaluate(run, "--workdir", str(tmp_path / "out"), *flags)
    overlap = report(tmp_path / "out")["sets"]["animals"]["overlap"]
    assert overlap["overlapping"] == 12
    assert overlap["all"]["n"] == 24
    assert overlap["clean"]["n"] == overlap["overlap"]["n"] == 12
    assert all(pair["similarity"] >= overlap["threshold"] for pair in overlap["pairs"])


def test_bias_by_groups(run: Path, tmp_path: Path) -> None:
    """A table as FairFace's, by its columns."""
    rows = ["file,age,gender,race"]
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i, (20, 20))))
        gender, race = ("Male", "Female")[i % 2], ("Black", "White", "Indian")[i % 3]
        rows.append(f"{i}.png,{('0-2', '20-29')[i % 2]},{gender},{race}")
    (tmp_path / "fairface_label_val.csv").write_text("\n".join(rows) + "\n")
    data = f"--sets=fairface={tmp_path / 'fairface_label_val.csv'}"
    evaluate(run, "--workdir", str(tmp_path / "out"), data, "--suite=bias")
    tables = report(tmp_path / "out")["sets"]["fairface"]["bias"]["tables"]
    titles = [table["title"] for table in tables]
    assert "Accuracy by race" in titles
    assert any("age" in title for title in titles)
    for table in tables:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert "Accuracy by race" in (tmp_path / "out" / "report.html").read_text()


def test_shifted_sets_beside_the_same_classes_of_imagenet(run: Path, tmp_path: Path) -> None:
    from clip_jax.evaluation import datasets

    classes = datasets.standard("imagenet").folders
    shown = datasets.standard("imagenet_a").subset[:4]
    for i, j in enumerate((*shown, 0, 1)):
        path = tmp_path / "imagenet" / "val" / classes[j] / f"{i}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(picture(i, (20, 20))))
        if j in shown:
            path = tmp_path / "imagenet_a" / classes[j] / f"{i}.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(encoded(picture(i + 50, (20, 20))))
    flags = ("--sets=imagenet,imagenet_a", f"--config.evaluate.folder={tmp_path}")
    evaluate(run, "--workdir", str(tmp_path / "out"), *flags, "--suite=zero_shot,robustness")
    document = report(tmp_path / "out")
    shift = document["robustness"]["shifts"]["imagenet_a"]
    assert shift["reference"]["n"] == 4, "those of its 200 classes alone"
    assert shift["score"] == document["sets"]["imagenet_a"]["zero_shot"]["score"]
    assert document["sets"]["imagenet"]["classes"] == 1000
    assert document["sets"]["imagenet_a"]["classes"] == 200
    assert "not the paper's 50,000" in document["sets"]["imagenet"]["note"]
