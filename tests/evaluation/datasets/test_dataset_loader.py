"""Test sets in every layout, and mistakes in them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.sources import Source, read_text
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets import (
    Dataset,
    MissingDataset,
    open_dataset,
    read_labels,
    standard,
)
from support import encoded, picture, refused, write_tar

PNG = encoded(picture())
CIFAR = standard("cifar10").classes


def open_set(name: str, values: Mapping[str, Any] = {}, folder: object = "") -> Dataset:
    return open_dataset(name, values, str(folder), templates=("{}",), caption="{caption}")


def write(folder: Path, content: Mapping[str, bytes | str]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def saved(*values: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, np.float32))
    return file.getvalue()


def suite(
    folder: Path, texts: Sequence[str | bytes], end: str, split: str = "test", shards: int = 2
) -> Path:
    """A folder as CLIP_benchmark writes it, with these texts."""
    parts = np.array_split(np.arange(len(texts)), shards)
    for shard, part in enumerate(parts):
        members = []
        for i in part:
            text = texts[i]
            members.append((f"s{i:07}.{end}", text.encode() if isinstance(text, str) else text))
            members.append((f"s{i:07}.webp", PNG))
        write_tar(folder / split / f"{shard}.tar", members)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    return folder


def digits(folder: Path, *values: int, name: str = "{}") -> Path:
    return write(folder, {f"{name.format(v)}/{i}.png": PNG for i, v in enumerate(values)})


class Unseen:
    """A source whose pictures nobody may read."""

    def __init__(self, source: Source) -> None:
        self.fingerprint, self._source = source.fingerprint, source

    def opening_report(self) -> Any:
        return self._source.opening_report()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("a picture was read")

    def text(self, i: int) -> Any:
        return read_text(self._source, i)


@pytest.fixture(autouse=True)
def pictures_stay_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    from clip_jax.evaluation.datasets import layouts

    real = layouts.open_at
    monkeypatch.setattr(layouts, "open_at", lambda *args: Unseen(real(*args)))


def test_a_suite_of_tars(tmp_path: Path) -> None:
    home = suite(tmp_path / "wds_vtab-cifar10", ["3", "0", "9", "3"], "cls")
    suite(home, ["1", "2"], "cls", "train", 1)
    write(home, {"classnames.txt": "\n".join(CIFAR), "zeroshot_classification_templates.txt": "x"})
    test = open_set("cifar10", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [3, 0, 9, 3]
    assert test.target.dtype == np.int64
    assert test.labels == list(CIFAR) and test.templates == standard("cifar10").templates
    assert (test.title, test.metric, test.paper, test.split_name) == (
        "CIFAR-10",
        "accuracy",
        True,
        "test",
    )
    assert len(test) == 4 and test.note == "4 images, not the paper's 10,000"
    assert test.texts == [] and test.image_group.tolist() == [0, 1, 2, 3]
    assert test.split("train").target.tolist() == [1, 2]
    refused(lambda: test.split("validation"), "evaluate.sets.cifar10", "validation/")
    refused(lambda: test.split("test"), "train and validation")


def test_a_suite_whose_classes_are_in_another_order(tmp_path: Path) -> None:
    home = suite(tmp_path / "cifar10", ["0", "9"], "cls")
    write(home, {"classnames.txt": "\n".join(CIFAR[::-1])})
    test = open_set("cifar10", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [9, 0]
    write(home, {"classnames.txt": "\n".join("abcdefghijk")})
    test = open_set("cifar10", folder=tmp_path)
    assert test.labels == list("abcdefghijk") and "its own 11 class names" in test.note


def test_a_suite_of_several_labels(tmp_path: Path) -> None:
    rows = np.eye(20, dtype=int)[[3, 7]] | np.eye(20, dtype=int)[[3, 9]]
    home = suite(tmp_path / "wds_voc2007_multilabel", [saved(*row) for row in rows], "npy")
    write(home, {"classnames.txt": "\n".join(standard("voc2007").classes)})
    test = open_set("voc2007", folder=tmp_path)
    assert test.metric == "map_11_point"
    assert test.target is not None and test.target.dtype == bool
    assert test.target.tolist() == rows.astype(bool).tolist()


def test_a_suite_of_captions(tmp_path: Path) -> None:
    home = suite(tmp_path / "wds_flickr30k", ["a cat\na dog\n", "a sun", "x\ny\nz"], "txt")
    write(home, {"dataset_type.txt": "retrieval\n"})
    for test in (open_set("flickr30k", folder=tmp_path), open_set("mine", {"data": str(home)})):
        assert test.texts == ["a cat", "a dog", "a sun", "x", "y", "z"]
        assert test.text_group.tolist() == [0, 0, 1, 2, 2, 2]
        assert test.image_group.tolist() == [0, 1, 2]
        assert test.target is None and test.labels == [] and test.metric == "retrieval"
        refused(lambda test=test: test.split("train"), "no classes")  # type: ignore[misc]


def test_ones_own_suite_folder(tmp_path: Path) -> None:
    home = suite(tmp_path / "mine", ["1", "0", "1"], "cls")
    write(home, {"classnames.txt": "cat\ndog\n"})
    write(home, {"zeroshot_classification_templates.txt": "a {c}\nthe {c}\n"})
    test = open_set("mine", {"data": str(home)})
    assert test.labels == ["cat", "dog"] and test.templates == ("a {}", "the {}")
    assert test.target is not None and test.target.tolist() == [1, 0, 1]
    assert test.note == "" and not test.paper
    (home / "classnames.txt").unlink()
    refused(lambda: open_set("mine", {"data": str(home)}), "evaluate.sets.mine", "labels")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"classnames.txt": "cat\ndog\nsun"}, ["class 7", "s0000001.webp", "0…2"]),
        ({"classnames.txt": b"\xff"}, ["classnames.txt", "UTF-8"]),
        ({"classnames.txt": b"x" * (5 << 20)}, ["classnames.txt", "4 MiB"]),
        ({"test/nshards.txt": "two"}, ["nshards.txt", "number of tars"]),
        ({"test/nshards.txt": "9999999"}, ["nshards.txt", "number of tars"]),
        ({"test/nshards.txt": ""}, ["nshards.txt", "number of tars"]),
        ({"test/nshards.txt": "3"}, ["no file", "2.tar"]),
    ],
)
def test_a_damaged_suite_is_named(
    tmp_path: Path, content: dict[str, bytes | str], words: list[str]
) -> None:
    home = suite(tmp_path / "mine", ["0", "7"], "cls")
    write(home, {"classnames.txt": "cat\ndog"} | content)
    refused(lambda: open_set("mine", {"data": str(home)}), *words)


def test_a_class_that_is_not_a_number(tmp_path: Path) -> None:
    home = suite(tmp_path / "mine", ["0", "cat"], "cls")
    write(home, {"classnames.txt": "cat\ndog"})
    refused(
        lambda: open_set("mine", {"data": str(home)}),
        *("evaluate.sets.mine", "s0000001.webp", "text cannot be read", "take it out"),
    )


def test_folders_of_classes(tmp_path: Path) -> None:
    write(tmp_path, {"cifar10/train/cat/1.png": PNG, "cifar10/train/dog/1.png": PNG})
    write(tmp_path, {"cifar10/val/truck/1.png": PNG})
    write(tmp_path, {"cifar10/test/ship/1.png": PNG, "cifar10/test/cat/2.png": PNG})
    test = open_set("cifar10", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [3, 8]
    assert "left out" not in test.note
    write(tmp_path, {"cifar10/test/ship/2.heic": PNG, "cifar10/test/._1.png": PNG})
    note = open_set("cifar10", folder=tmp_path).note
    assert "2 of 4 files left out: unknown_ending 1, hidden 1" in note
    assert test.split("train").target.tolist() == [3, 5]
    assert test.split("validation").target.tolist() == [9]
    write(tmp_path, {"cifar10/test/spoon/2.png": PNG})
    refused(lambda: open_set("cifar10", folder=tmp_path), "'spoon'", "evaluate.sets.cifar10")


def test_folders_without_splits(tmp_path: Path) -> None:
    digits(tmp_path / "mnist", 7, 1, 7)
    test = open_set("mnist", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [1, 7, 7]
    refused(lambda: test.split("train"), "evaluate.sets.mnist.train")


def test_imagenets_folders_by_number_by_wnid_and_by_their_order(tmp_path: Path) -> None:
    wnids = standard("imagenet").folders
    write(tmp_path / "imagenet", {f"val/{wnids[i]}/1.JPEG": PNG for i in (999, 3, 657)})
    test = open_set("imagenet", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [3, 657, 999]
    assert test.split_name == "val"
    refused(lambda: test.split("validation"), "imagenet.validation")
    digits(tmp_path / "imagenet_v2", *range(1000))
    test = open_set("imagenet_v2", folder=tmp_path)
    folder_numbers = [int(Path(read_text(test.source, i)[1]).parent.name) for i in range(1000)]
    assert test.target is not None and test.target.tolist() == folder_numbers
    write(tmp_path / "imagenet_a", {"n01498041/1.jpg": PNG, "n12267677/1.jpg": PNG})
    test = open_set("imagenet_a", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [0, 199]
    assert test.subset is not None and test.subset.shape == (200,)
    assert test.labels[199] == "acorn"


def test_objectnets_other_classes_are_left_out(tmp_path: Path) -> None:
    names = ["alarm_clock", "air_freshener", "wok", "tongs", "binder_closed"]
    write(tmp_path / "objectnet", {f"images/{name}/1.png": PNG for name in names})
    test = open_set("objectnet", folder=tmp_path)
    assert len(test) == 3 and len(test.source) == 3
    assert test.target is not None
    assert [test.labels[i] for i in test.target] == ["alarm clock", "binder (closed)", "wok"]
    assert "wok" in read_text(test.source, 2)[1]
    assert test.subset is not None and test.subset.tolist()[0] == [409, 530]
    assert len({open_set("objectnet", folder=tmp_path).fingerprint for _ in range(3)}) == 1


def rows(path: Path, *values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(values[0]))
        writer.writeheader()
        writer.writerows(values)


def test_tables(tmp_path: Path) -> None:
    write(tmp_path / "cifar10", {"a.png": PNG, "b.png": PNG})
    cat_row = {"image": "a.png", "label": "cat"}
    rows(tmp_path / "cifar10/test.csv", cat_row, {"image": "b.png", "label": "9"})
    refused(lambda: open_set("cifar10", folder=tmp_path), "'9'")
    rows(tmp_path / "cifar10/test.csv", {**cat_row, "label": "3"}, {"image": "b.png", "label": "9"})
    rows(tmp_path / "cifar10/train.csv", cat_row)
    test = open_set("cifar10", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [3, 9]
    assert test.split("train").target.tolist() == [3]
    rows(tmp_path / "cifar10/test.csv", {"image": "a.png", "colour": "red"})
    refused(lambda: open_set("cifar10", folder=tmp_path), "evaluate.sets.cifar10", "tells a class")


def test_hateful_memes_as_they_come(tmp_path: Path) -> None:
    home = write(tmp_path / "hateful_memes", {"img/1.png": PNG, "img/2.png": PNG})
    lines = [{"id": i, "img": f"img/{i}.png", "label": i - 1, "text": "x"} for i in (1, 2)]
    write(home, {"dev.jsonl": "\n".join(map(json.dumps, lines))})
    write(home, {"test.jsonl": json.dumps({"id": 1, "img": "img/1.png", "text": "x"})})
    test = open_set("hateful_memes", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [0, 1]
    assert test.metric == "roc_auc" and test.split_name == "dev"


def test_groups_of_people(tmp_path: Path) -> None:
    home = write(tmp_path / "fairface", {"val/1.png": PNG, "val/2.png": PNG})
    people = [
        {"file": "val/1.png", "age": "3-9", "gender": "Male", "race": "Black"},
        {"file": "val/2.png", "age": "0-2", "gender": "Female", "race": "East Asian"},
    ]
    rows(home / "fairface_label_val.csv", *people)
    test = open_set("fairface", folder=tmp_path)
    assert test.groups == {
        "race": ["Black", "East Asian"],
        "gender": ["Male", "Female"],
        "age": ["3-9", "0-2"],
    }
    assert test.target is None and test.metric == "bias"
    values = {"data": f"{home}/fairface_label_val.csv", "metric": "bias", "groups": ["colour"]}
    refused(lambda: open_set("mine", values), "evaluate.sets.mine", "'colour'")


def test_a_prepared_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow_datasets")
    write(tmp_path, {"cifar10/3.0.2/features.json": "{}"})
    from clip_jax.data.sources.tfds import source

    requests = []

    class Made(Unseen):
        def __init__(self, spec: str, folder: str) -> None:
            requests.append((spec, folder))
            self.fingerprint = spec

        def __len__(self) -> int:
            return 2

        def opening_report(self) -> OpeningReport:
            return all_used(2, "examples")

        def text(self, i: int) -> Any:
            return {"label": ("frog", "deer")[i]}, f"tfds:{i}"

    monkeypatch.setattr(source, "TfdsSource", Made)
    test = open_set("cifar10", folder=tmp_path)
    assert test.target is not None and test.target.tolist() == [6, 4]
    assert test.split("train").target.tolist() == [6, 4]
    assert requests == [("cifar10:test", str(tmp_path)), ("cifar10:train", str(tmp_path))]


@pytest.mark.parametrize("name", ["cifar10", "birdsnap", "flickr30k", "fairface", "imagenet_v2"])
def test_a_set_that_is_missing_says_what_to_do(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    (tmp_path / "sets" / name).mkdir(parents=True)
    for folder in (tmp_path / "sets", ""):
        with pytest.raises(MissingDataset) as error:
            open_set(name, folder=folder)
        line = str(error.value)
        assert standard(name).title in line and standard(name).home in line and len(line) < 500
        assert (f"{folder}/{name}/" if folder else "config.evaluate.folder") in line
        assert "wds_" in line or not standard(name).wds


def test_ones_own_folder_of_classes(tmp_path: Path) -> None:
    write(tmp_path, {"red_cat/1.png": PNG, "dog/1.png": PNG, "dog/2.png": PNG})
    test = open_set("mine", {"data": str(tmp_path), "templates": ["a {}", "one {}"]})
    assert test.labels == ["dog", "red cat"] and test.templates == ("a {}", "one {}")
    assert test.target is not None and test.target.tolist() == [0, 0, 1]
    assert test.texts == [] and test.title == "mine" and test.metric == "accuracy"
    test = open_set("mine", {"data": str(tmp_path), "caption": "a {caption}", "title": "Mine"})
    assert test.texts == ["a dog", "a red cat"] and test.title == "Mine"
    assert test.image_group.tolist() == [0, 0, 1] and test.text_group.tolist() == [0, 1]


def test_ones_own_splits(tmp_path: Path) -> None:
    write(tmp_path, {"train/cat/1.png": PNG, "test/dog/1.png": PNG, "test/cat/1.png": PNG})
    test = open_set("mine", {"data": str(tmp_path)})
    assert test.target is not None and test.target.tolist() == [0, 1]
    assert test.split("train").target.tolist() == [0]
    more = write(tmp_path / "more", {"dog/1.png": PNG})
    test = open_set("mine", {"data": f"{tmp_path}/test", "train": str(more)})
    assert test.split("train").target.tolist() == [1]
    write(more, {"bird/1.png": PNG})
    refused(lambda: test.split("train"), "'bird'")


def test_several_captions_of_ones_own(tmp_path: Path) -> None:
    members = []
    for i, captions in enumerate((["a", "b"], ["c"])):
        members += [(f"{i}.png", PNG), (f"{i}.json", json.dumps({"said": captions}).encode())]
    tar = str(write_tar(tmp_path / "x.tar", members))
    for values in ({"metric": "retrieval"}, {}):
        values = {**values, "data": tar, "caption": "{said:each}"}
        if "metric" not in values:
            labels = write(tmp_path, {"l.json": '["a, b", "c"]'}) / "l.json"
            values |= {"labels": str(labels), "label": "said"}
        test = open_set("mine", values)
        assert test.texts == ["a", "b", "c"] and test.text_group.tolist() == [0, 0, 1]
    usual = {"templates": ("{}",), "caption": "{said}"}  # config.evaluate.caption
    assert open_dataset("mine", {"data": tar}, "", **usual).texts == ["a", "b", "c"]
    refused(
        lambda: open_set("mine", {"data": tar, "metric": "retrieval"}),
        *("0.png", "no caption", "evaluate.sets.mine.caption", "config.evaluate.caption"),
    )
    refused(
        lambda: open_set("mine", {"data": tar, "metric": "retrieval", "caption": "{x:each}"}),
        *("evaluate.sets.mine", "0.png", "no caption", "x"),
    )


def karpathy(folder: Path, *images: Mapping[str, Any], name: str = "dataset_flickr30k") -> Path:
    content = json.dumps({"images": images, "dataset": "made up"})
    return write(folder, {f"{name}.json": content})


def image(name: str, *captions: str, split: str = "test", **more: str) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": s} for s in captions], **more}


def test_karpathys_splits(tmp_path: Path) -> None:
    home = write(tmp_path / "flickr30k", {"flickr30k-images/1.jpg": PNG})
    write(home, {"flickr30k-images/2.jpg": PNG})
    karpathy(home, image("1.jpg", "a", "b"), image("9.jpg", "x", split="val"), image("2.jpg", "c"))
    test = open_set("flickr30k", folder=tmp_path)
    assert test.texts == ["a", "b", "c"] and test.text_group.tolist() == [0, 0, 1]
    assert test.note == "2 images, not the paper's 1,000"
    before = test.fingerprint
    (home / "flickr30k-images/2.jpg").write_bytes(b"other")
    assert open_set("flickr30k", folder=tmp_path).fingerprint != before
    home = write(tmp_path / "mscoco", {"val2014/7.jpg": PNG})
    karpathy(home, image("7.jpg", "a", filepath="val2014"), name="dataset_coco")
    assert open_set("mscoco", folder=tmp_path).texts == ["a"]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([image("../../etc/passwd", "x")], ["'../../etc/passwd'", "leaves"]),
        ([image("/etc/passwd", "x")], ["'/etc/passwd'", "leaves"]),
        ([image("passwd", "x", filepath="/etc")], ["leaves"]),
        ([image("1\0.jpg", "x")], ["leaves"]),
        ([image("3.jpg", "x")], ["3.jpg", "not in"]),
        ([image("1.jpg")], ["1.jpg", "no caption"]),
        ([{"split": "test"}], ["without filename"]),
        ([{"split": "test", "filename": "1.jpg", "sentences": [1]}], ["without filename"]),
        ([image("1.jpg", "x", split="train")], ["no image of the split 'test'"]),
        (["1.jpg"], ["no image of the split"]),
    ],
)
def test_damaged_captions_are_named(tmp_path: Path, images: list[Any], words: list[str]) -> None:
    karpathy(write(tmp_path / "flickr30k", {"1.jpg": PNG}), *images)
    refused(lambda: open_set("flickr30k", folder=tmp_path), "dataset_flickr30k.json", *words)


@pytest.mark.parametrize("content", ["[1]", '{"images": 3}', "{", "[" * 100_000, b"\xff"])
def test_invalid_caption_files_are_refused(tmp_path: Path, content: bytes | str) -> None:
    write(tmp_path / "flickr30k", {"1.jpg": PNG, "dataset_flickr30k.json": content})
    refused(lambda: open_set("flickr30k", folder=tmp_path), "dataset_flickr30k.json")


def test_the_fingerprint_changes_with_all_that_counts(tmp_path: Path) -> None:
    write(tmp_path, {"cat/1.png": PNG, "dog/1.png": PNG})
    (tmp_path / "l.json").write_text('["dog", "cat"]')
    base: dict[str, Any] = {"data": str(tmp_path)}
    changes: list[dict[str, Any]] = [
        {},
        {"templates": "a {}"},
        {"caption": "{label}"},
        {"metric": "mean_per_class"},
        {"labels": f"{tmp_path}/l.json", "label": "label"},
        {"groups": "label"},
    ]
    prints = [open_set("mine", base | change).fingerprint for change in changes]
    assert len(set(prints)) == len(changes)
    assert open_set("mine", base).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["evaluate.sets.mine", "no data given"]),
        ({"data": "/no/such"}, ["/no/such"]),
        ({"colour": 1}, ["evaluate.sets.mine.colour", "templates"]),
        ({"data": "HERE", "templates": ["cat"]}, ["'cat'", "{}"]),
        ({"data": "HERE", "templates": ["{} {}"]}, ["'{} {}'", "{}"]),
        ({"data": "HERE", "label": "colour"}, ["'colour'", "1.png"]),
        ({"data": "HERE", "labels": "HERE"}, ["mine.labels", "HERE"]),
        ({"data": "HERE", "metric": "acuracy"}, ["mine.metric", "'acuracy'", "mean_per_class"]),
    ],
)
def test_mistakes_in_a_set_of_ones_own(
    tmp_path: Path, values: dict[str, Any], words: list[str]
) -> None:
    home = str(write(tmp_path, {"cat/1.png": PNG}))
    values = {key: home if value == "HERE" else value for key, value in values.items()}
    refused(lambda: open_set("mine", values), *(home if word == "HERE" else word for word in words))


def test_a_metric_of_several_classes_gets_such_targets(tmp_path: Path) -> None:
    write(tmp_path, {"cat/1.png": PNG, "dog/1.png": PNG})
    test = open_set("mine", {"data": str(tmp_path), "metric": "map_11_point"})
    assert test.target is not None and test.target.tolist() == [[True, False], [False, True]]


def test_a_pipe_as_file_of_labels_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"cat/1.png": PNG})
    os.mkfifo(tmp_path / "l.json")
    values = {"data": str(tmp_path), "labels": f"{tmp_path}/l.json"}
    refused(lambda: open_set("mine", values), "mine.labels", "no file")


def test_a_tar_needs_labels_and_label(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("1.png", PNG), ("1.json", b'{"name": "cat"}')])
    labels = write(tmp_path, {"l.json": '["cat", "dog"]'}) / "l.json"
    refused(lambda: open_set("mine", {"data": str(tar)}), "no labels given")
    refused(lambda: open_set("mine", {"data": str(tar), "labels": str(labels)}), "no label given")
    values = {"data": str(tar), "label": "name", "caption": "{name}"}
    assert open_set("mine", values).labels == ["cat"]
    test = open_set("mine", values | {"labels": str(labels)})
    assert test.labels == ["dog", "cat"][::-1] and test.texts == ["cat"]
    assert read_labels(str(labels), "mine") == ["cat", "dog"]


def test_a_standard_set_from_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, {"deep/cat/1.png": PNG})
    test = open_set("cifar10", {"data": f"{tmp_path}/deep"})
    assert test.target is not None and test.target.tolist() == [3] and test.paper


def test_errors_are_the_users(tmp_path: Path) -> None:
    assert issubclass(MissingDataset, UserError)
    broken = write_tar(tmp_path / "x.tar", [("1.png", PNG), ("1.json", b"{")])
    values = {"data": str(broken), "label": "x"}
    refused(lambda: open_set("mine", values), "evaluate.sets.mine", "1.png", "take it out")
