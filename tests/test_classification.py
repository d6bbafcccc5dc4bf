"""A classifier on a model's images: trained by a run, evaluated, used, and left out elsewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
import runs
from clip_jax import config as config_lib
from clip_jax import main
from clip_jax.config.checks import check
from clip_jax.data.images.decoding import decode
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets import registry
from clip_jax.inference import conversion, mixtures, model_source
from clip_jax.models.model_config import CLIPConfig
from clip_jax.plan import cost
from clip_jax.training import class_labels
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer
from support import says

COLORS = {"Blue sky": (30, 60, 220), "green_leaf": (30, 190, 40), "red apple": (200, 30, 30)}
LABELS = ("Blue sky", "green_leaf", "red apple")
CLASSIFY = "--config.objective.name=classification"


def write_classes(folder: Path, count: int) -> None:
    """Noisy pictures of one colour a class, in a folder for each class."""
    rng = np.random.default_rng(count)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(color, 60, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two splits, a config, a run `base` without and a run `probe` with a classifier."""
    folder = tmp_path_factory.mktemp("classes")
    for split, count in (("train", 8), ("test", 4)):
        write_classes(folder / split, count)
    config = folder / "config.py"
    held = f"    c.evaluate.sets.held = dict(data={str(folder / 'test')!r})\n    return c"
    text = runs.CONFIG.format(train=str(folder / "train"), labels="")
    lines = [line for line in text.splitlines() if "evaluate.sets" not in line]
    config.write_text("\n".join([*lines[:-1], held]) + "\n")
    base = runs.run(config, folder / "base", "--config.model.vision.patch_dropout=0.0")
    assert base.returncode == 0, base.stderr
    flags = (
        *(CLASSIFY, f"--config.weights.path={folder / 'base'}", "--config.optimizer.freeze=vision"),
        *("--config.data.cache_features=True", f"--config.data.features={folder / 'features'}"),
        *("--config.classifier.init=zeros", "--config.model.vision.patch_dropout=0.0"),
        "--config.optimizer.learning_rate=0.02",
    )
    probe = runs.run(config, folder / "probe", *flags)
    assert probe.returncode == 0, probe.stderr
    again = runs.run(config, folder / "probe", *flags)
    assert again.returncode == 0 and "all 12 steps were done before" in again.stderr, again.stderr
    return SimpleNamespace(folder=folder, config=config, output=probe.stderr)


def trainer_of(world: SimpleNamespace, source: str, workdir: Path, **keys: Any) -> Trainer:
    c, _ = config_lib.load(str(world.config))
    c.workdir, c.objective.name = str(workdir), "classification"
    c.weights.path = str(world.folder / source)
    c.model.vision.patch_dropout = 0.0
    c.update_from_flattened_dict(keys)
    return Trainer(prepare(c))


def pixels_of(world: SimpleNamespace) -> np.ndarray:
    paths = sorted((world.folder / "test").glob("*/*.png"))
    images = (decode(path.read_bytes(), path.name).resize((16, 16)) for path in paths)
    return np.stack([np.asarray(image) for image in images])


def head_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return jax.device_get(trainer.fresh().params["heads"]["classifier"])


def test_a_probe_on_cached_features_learns_the_classes(world: SimpleNamespace) -> None:
    assert (
        "a classifier of 3 classes: Blue sky, green_leaf, red apple; it starts at zero"
        in world.output
    )
    assert "negative" not in world.output
    lines = runs.lines(world.folder / "probe")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(np.log(3), rel=1e-5) and losses[-1] < 0.5 * losses[0]
    metrics = [line for line in lines if "classifier/held/top1" in line]
    assert metrics[-1]["classifier/held/top1"] > 0.9
    report = json.loads((world.folder / "probe" / "report.json").read_text())
    assert report["sets"]["held"]["classifier"]["score"]["value"] > 0.9
    assert "Classifier" in (world.folder / "probe" / "report.html").read_text()
    with pytest.raises(UserError) as caught:
        main.run(["--config", str(world.config), "--workdir", str(world.folder / "probe")])
    assert says(caught.value, "holds a run of another config", "classifier.init")


def test_its_model_is_loaded_and_classifies_by_its_own_labels(world: SimpleNamespace) -> None:
    model, _, _ = clip_jax.load(str(world.folder / "probe"))
    assert model.config.labels == LABELS
    logits = model.class_logits(model.encode_image(pixels_of(world), normalized=True))
    truth = np.repeat(np.arange(3), 4)
    assert np.mean(np.argmax(logits, axis=1) == truth) > 0.9
    pipe = clip_jax.pipeline(model=str(world.folder / "probe"))
    image = Image.open(world.folder / "test" / "green_leaf" / "0.png")
    answer = pipe(image)
    assert answer[0]["label"] == "green_leaf"
    assert sum(item["score"] for item in answer) == pytest.approx(1, abs=1e-6)
    named = pipe(image, ["a cat", "a dog"], "{}")
    assert {item["label"] for item in named} == {"a cat", "a dog"}
    without = clip_jax.pipeline(model=str(world.folder / "base"))
    with pytest.raises(UserError) as caught:
        without(image)
    assert says(caught.value, "give labels", "classification")


def test_it_starts_as_the_zero_shot_classifier(world: SimpleNamespace, tmp_path: Path) -> None:
    prompts = ("a {}", "one {}.")
    keys = {"classifier.templates": prompts}
    trainer = trainer_of(world, "base", tmp_path / "run", **keys)
    state = trainer.fresh()
    model, _, tokenize = clip_jax.load(str(world.folder / "base"))
    features = [
        model.encode_text(
            tokenize([p.replace("{}", label.replace("_", " ")) for p in prompts]), normalized=True
        )
        for label in LABELS
    ]
    mean = np.stack([np.mean(rows, axis=0) for rows in features])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    head = jax.device_get(state.params["heads"]["classifier"])
    np.testing.assert_allclose(head["kernel"], mean.T, rtol=0, atol=1e-5)
    assert not head["bias"].any()
    results = trainer.evaluate(state.variables).metrics()
    assert results["classifier/held/top1"] == pytest.approx(
        np.mean(
            np.argmax(model.encode_image(pixels_of(world), normalized=True) @ mean.T, axis=1)
            == np.repeat(np.arange(3), 4)
        )
    )


def test_a_classifier_of_the_same_labels_is_kept(world: SimpleNamespace, tmp_path: Path) -> None:
    probe = clip_jax.load(str(world.folder / "probe"))[0].heads.classifier
    kept = head_of(trainer_of(world, "probe", tmp_path / "a"))
    np.testing.assert_array_equal(kept["kernel"], probe.kernel[...])
    zeros = head_of(trainer_of(world, "probe", tmp_path / "b", **{"classifier.init": "zeros"}))
    assert not zeros["kernel"].any()
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(LABELS[::-1]))
    other = trainer_of(world, "probe", tmp_path / "d", **{"classifier.labels": str(labels)})
    backward = head_of(other)
    np.testing.assert_array_equal(backward["kernel"], probe.kernel[:, ::-1])
    np.testing.assert_array_equal(backward["bias"], probe.bias[::-1])
    with pytest.raises(UserError) as caught:
        keys = {"classifier.labels": str(labels), "weights.optimizer": True}
        trainer_of(world, "probe", tmp_path / "e", **keys)
    assert says(caught.value, "config.weights.optimizer=True", "heads")
    labels.write_text(json.dumps([*LABELS, "snow"]))
    other = trainer_of(world, "probe", tmp_path / "c", **{"classifier.labels": str(labels)})
    kernel = head_of(other)["kernel"]
    assert kernel.shape == (8, 4)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-5)
    row = next(other.data())
    assert row["label"].dtype == np.int32 and set(row["label"]) <= {0, 1, 2}


def test_other_libraries_get_the_model_without_it(world: SimpleNamespace, tmp_path: Path) -> None:
    notes: list[str] = []
    conversion.convert(world.folder / "probe", tmp_path / "out", "open_clip", note=notes.append)
    assert any("no place for the model's classifier" in note for note in notes)
    model = clip_jax.load(str(tmp_path / "out"), tokenizer=None)[0]
    assert model.config.labels == ()
    pixels = pixels_of(world)
    ours = clip_jax.load(str(world.folder / "probe"))[0].encode_image(pixels)
    np.testing.assert_allclose(model.encode_image(pixels), ours, rtol=0, atol=1e-6)
    paths = [world.folder / "base", world.folder / "probe"]
    both = mixtures.open_models(paths, notes.append)
    assert "classifier" in notes[-1]
    assert not both[1].config.heads and "heads" not in mixtures.read_variables(both[1])[0]
    same = mixtures.open_models([world.folder / "probe", world.folder / "probe"])
    assert same[0].config.labels == LABELS
    source = model_source.open_run(world.folder / "probe").without_heads()
    params, _ = source.read("float32")
    where = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, {})
    )
    placed, _ = source.read_sharded(where)
    assert jax.tree.structure(placed) == jax.tree.structure(params)


def test_sets_of_other_classes_have_no_score(world: SimpleNamespace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_classes(other, 1)
    (other / "red apple").rename(other / "snow")
    some = tmp_path / "some"
    write_classes(some, 2)
    for image in (some / "Blue sky").iterdir():
        image.unlink()
    (some / "Blue sky").rmdir()
    flags = ("--mode=evaluate", "--suite=classifier", f"--workdir={tmp_path / 'report'}")
    sets = f"--sets=other={other},some={some}"
    command = [*flags, sets, f"--checkpoint={world.folder / 'probe'}"]
    main.run(["--config", str(world.config), *command])
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "'snow' is no class" in report["sets"]["other"]["classifier"]["note"]
    assert report["sets"]["some"]["classifier"]["score"]["value"] > 0.9, "among its two classes"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([CLASSIFY, "--config.data.label=kind"], ["lacks the field 'kind'", "caption, label"]),
        ([CLASSIFY, "--config.classifier.labels=cifar10"], ["none of the 10 classes"]),
        ([CLASSIFY, "--config.classifier.labels=cifar"], ["no such file, and no standard set"]),
        ([CLASSIFY, "--config.classifier.labels=flickr30k"], ["this set has no classes"]),
        ([CLASSIFY, "--config.classifier.init=zero_shot"], ["config.weights.path"]),
        ([CLASSIFY, "--config.classifier.templates=('a',)"], ["'a' must hold {}"]),
        ([CLASSIFY, "--config.objective.options={'a': 1}"], ["config.classifier"]),
        (["--config.classifier.init=zeros"], ["no objective trains a classifier"]),
        ([CLASSIFY, "--config.classifier.label_smoothing=1"], ["config.classifier.label_smoo"]),
        ([CLASSIFY, "--config.loss.label_smoothing=0.3"], ["config.loss.label_smoothing=0.3"]),
        ([CLASSIFY, "--config.objective.mix={'contrastive': 1}"], ["config.objective.mix"]),
        (
            [
                "--config.objective.mix={'classification': 1, 'contrastive': 1}",
                "--config.loss.multi_positive=True",
            ],
            ["config.data.label is empty"],
        ),
        (["--config.model.heads={'classifier': {'labels': ('a', 'b')}}"], ["by no objective"]),
        (
            [
                CLASSIFY,
                "--config.model.heads={'classifier': {'labels': ('a', 'b')}}",
                "--config.classifier.labels=cifar10",
            ],
            ["both name the classes"],
        ),
        ([CLASSIFY, f"--config.classifier.labels={'x' * 300}"], ["no such file"]),
    ],
)
def test_mistakes_are_one_line(
    world: SimpleNamespace, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        main.run(["--config", str(world.config), "--workdir", str(tmp_path / "run"), *flags])
    assert says(caught.value, *words)
    assert not (tmp_path / "run").exists()


def test_labels_of_a_standard_set_find_its_folders(world: SimpleNamespace) -> None:
    c, _ = config_lib.load(str(world.config))
    c.objective.name, c.classifier.labels = "classification", "imagenet"
    named = class_labels.with_classifier(check(c), class_labels.open_for_labels)
    model = cost.setup.checked(named)[1]
    classes = class_labels.class_index(named, model)
    assert classes is not None and len(model.labels) == 1000
    assert [classes.find(folder) for folder in registry.standard("imagenet").folders] == list(
        range(1000)
    )


def test_a_plan_needs_labels_and_counts_the_classifier(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    c, _ = config_lib.load(str(world.config))
    c.objective.name = "classification"
    assert cost.make_recipe(c, "cpu:1")[0].architecture.labels == LABELS
    c.data.train = str(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        cost.make_recipe(c, "cpu:1")
    assert says(caught.value, "config.classifier.labels is empty", "elsewhere", "JSON file")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(LABELS))
    c.classifier.labels = str(labels)
    estimate = cost.estimate_step(c, "cpu:1")
    assert estimate.fits
    vision = cost.make_recipe(c, "cpu:1")[0].architecture.vision
    assert estimate.model_flops == 3 * 8 * (vision.flops(8) + 2 * 8 * 3)


def test_a_head_of_a_stranger_is_checked() -> None:
    values = CLIPConfig().to_dict()
    for heads, words in (
        ({"classifier": {"labels": ["a"]}}, ["from 2 to"]),
        ({"classifier": {"labels": [1, 2]}}, ["model.heads.classifier.labels", "text"]),
        ({"classifier": {"labels": "ab"}}, ["a list"]),
        ({"classifier": {"sizes": 3}}, ["sizes"]),
        ({"other": {}}, ["no head has this name"]),
        ({"x": {"kind": "os:system"}}, ["class"]),
        ({"a b": {"kind": "classifier"}}, ["plain name"]),
        ({"__class__": {"kind": "classifier", "labels": ["a", "b"]}}, ["plain name"]),
        ({"classifier": {"labels": ["a", " "]}}, ["an empty name"]),
        ({"classifier": {"labels": ["a" * 2_000_000, "b" * 200_000]}}, ["2 MiB"]),
        ([], ["must be an object"]),
    ):
        with pytest.raises(UserError) as caught:
            CLIPConfig.from_dict({**values, "heads": heads})
        assert says(caught.value, *words), str(caught.value)
    assert dataclasses.asdict(CLIPConfig())["heads"] == () and "heads" not in values


def test_labels_of_the_data_are_what_each_pair_finds(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    image = tmp_path / "0.png"
    Image.new("RGB", (16, 16)).save(image)
    for values, labels in (
        ([1.0, 2.0, 10.0, 2, 1.5, 15], ["1", "1.5", "2", "10", "15"]),
        (["01", "1", "2", "0"], ["0", "01", "1", "2"]),
        (["red_apple", "red-apple", "C", "C++"], ["C", "C++", "red-apple", "red_apple"]),
        (["a", "9" * 5000], ["a", "9" * 5000]),
    ):
        table = tmp_path / "table.jsonl"
        rows = [{"image": str(image), "label": value} for value in values]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        c, _ = config_lib.load(str(world.config), [f"data.train={table}"])
        c.objective.name, c.workdir = "classification", str(tmp_path / "run")
        run = prepare(c)
        assert sorted(run.model.labels) == sorted(labels)
        assert run.classes is not None
        for value in values:
            number = run.classes.find(value)
            assert number is not None
            assert run.model.labels[number] == (str(value).removesuffix(".0"))
    assert run.classes.find(1) is None, "labels of the data have no numbers"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["a"]', ["one class"]),
        ('["a", "a"]', ["'a' is there twice"]),
        ('["a", null]', ["None"]),
        ('["a", " "]', ["names no class"]),
        ('{"a": 1}', ["a list of distinct names"]),
        ("[", ["is not JSON"]),
    ],
)
def test_bad_files_of_labels_are_one_line(
    world: SimpleNamespace, tmp_path: Path, content: str, words: list[str]
) -> None:
    (tmp_path / "labels.json").write_text(content)
    c, _ = config_lib.load(str(world.config), [f"classifier.labels={tmp_path / 'labels.json'}"])
    c.objective.name, c.workdir = "classification", str(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        prepare(c)
    assert says(caught.value, "config.classifier.labels", "labels.json", *words)


def test_weights_without_a_bias_do_not_start_a_model_with_one(world: SimpleNamespace) -> None:
    path = f"--config.weights.path={world.folder / 'base'}"
    flags = ["--config", str(world.config), "--workdir", str(world.folder / "bias"), path]
    for more, words in (
        (["--config.model.logit_bias=-10.0"], ["model.logit_bias=None", "-10.0"]),
        (
            ["--config.model.log_scale=False", "--config.model.max_logit_scale=0.0"],
            ["model.log_scale=True", "False"],
        ),
    ):
        with pytest.raises(UserError) as caught:
            main.run([*flags, *more])
        assert says(caught.value, str(world.folder / "base"), *words)
    assert not (world.folder / "bias").exists()


@pytest.mark.slow
def test_a_start_that_fails_leaves_the_folder_to_a_corrected_one(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    flags = [
        *("--config", str(world.config), "--workdir", str(tmp_path / "run")),
        *(f"--config.weights.path={world.folder / 'base'}", "--config.weights.optimizer=True"),
    ]
    with pytest.raises(UserError) as caught:
        main.run([*flags, "--config.optimizer.name=sgd"])
    assert says(caught.value, "config.weights.optimizer=True")
    assert not (tmp_path / "run" / "config.json").exists()
    corrected = runs.run(world.config, tmp_path / "run", "--config.steps=3", *flags[4:5])
    assert corrected.returncode == 0, corrected.stderr
