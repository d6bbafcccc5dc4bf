"""Standard sets that TensorFlow Datasets prepared: labels by name and number, several, captions."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.evaluation.datasets import Dataset, MissingDataset, open_dataset, standard
from clip_jax.evaluation.evaluators import zero_shot
from support import encoded, picture, refused

tfds = pytest.importorskip("tensorflow_datasets")


class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of some rows, the same in each split."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: dict[str, Any] = {}  # noqa: RUF012
    ROWS: list[dict[str, Any]] = []  # noqa: RUF012

    def _info(self) -> Any:
        features = {"image": tfds.features.Image(), **self.FEATURES}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples() for split in ("train", "test")}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, row in enumerate(self.ROWS):
            yield i, {"image": io.BytesIO(encoded(picture(i))), **row}


def prepare(folder: Path, name: str, features: dict[str, Any], *rows: dict[str, Any]) -> None:
    members = {"FEATURES": features, "ROWS": list(rows), "name": name, "__module__": __name__}
    builder = type("Toy", (Toy,), members, skip_registration=True)
    builder(data_dir=folder, file_format="array_record").download_and_prepare()


def as_configuration(folder: Path, name: str) -> None:
    """Moves what is prepared to where a configuration of that name would lie."""
    (folder / name).mkdir()
    (folder / "1.0.0").rename(folder / name / "1.0.0")


def open_set(name: str, folder: object) -> Dataset:
    return open_dataset(name, {}, str(folder), templates=("{}",), caption="{caption}")


def test_labels_by_their_names(tmp_path: Path) -> None:
    names = [name.upper() for name in standard("cifar10").classes[::-1]]
    label = tfds.features.ClassLabel(names=names)
    prepare(tmp_path, "cifar10", {"label": label}, {"label": 9}, {"label": "CAT"}, {"label": 0})
    test = open_set("cifar10", tmp_path)
    assert test.target is not None and test.target.tolist() == [0, 3, 9]
    assert test.labels == list(standard("cifar10").classes) and test.split_name == "test"
    assert test.split("train").target.tolist() == [0, 3, 9]
    assert test.source[1].image == encoded(picture(1))
    refused(lambda: test.split("validation"), "cifar10.validation")


def test_labels_that_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = tfds.features.ClassLabel(num_classes=2)
    prepare(tmp_path, "patch_camelyon", {"label": label}, {"label": 1}, {"label": 0}, {"label": 1})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for folder in (tmp_path, "", tmp_path / "sets"):
        test = open_set("pcam", folder)
        assert test.target is not None and test.target.tolist() == [1, 0, 1]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(MissingDataset):
        open_set("pcam", "")


def test_captions_of_a_list(tmp_path: Path) -> None:
    captions = tfds.features.Sequence({"text": tfds.features.Text()})
    rows = ({"captions": [{"text": t} for t in texts]} for texts in (["a", "b"], ["c"]))
    prepare(tmp_path, "coco_captions", {"captions": captions}, *rows)
    as_configuration(tmp_path / "coco_captions", "2014")
    test = open_set("mscoco", tmp_path)
    assert test.texts == ["a", "b", "c"] and test.text_group.tolist() == [0, 0, 1]
    assert test.target is None and test.metric == "retrieval"


def test_several_labels_of_a_picture(tmp_path: Path) -> None:
    label = tfds.features.ClassLabel(names=standard("voc2007").classes)
    several = {"labels": tfds.features.Sequence(label)}
    prepare(tmp_path, "voc", several, {"labels": ["cat", "dog"]}, {"labels": ["bus"]})
    as_configuration(tmp_path / "voc", "2007")
    test = open_set("voc2007", tmp_path)
    assert test.target is not None and test.target.shape == (2, 20)
    shown = [[test.labels[i] for i in row.nonzero()[0]] for row in test.target]
    assert shown == [["cat", "dog"], ["bus"]]
    assert test.counts is None


def test_difficult_objects_are_left_out(tmp_path: Path) -> None:
    """As VOC's rules say: such a picture is neither right nor wrong for the class."""
    label = tfds.features.Sequence(tfds.features.ClassLabel(names=standard("voc2007").classes))
    several = {"labels": label, "labels_no_difficult": label}
    rows = (["cat", "dog"], ["cat"]), (["bus"], []), (["dog"], ["dog"])
    examples = ({"labels": shown, "labels_no_difficult": easy} for shown, easy in rows)
    prepare(tmp_path, "voc", several, *examples)
    as_configuration(tmp_path / "voc", "2007")
    test = open_set("voc2007", tmp_path)
    assert test.counts is not None and test.counts.shape == (3, 20)
    left_out = [[test.labels[i] for i in (~row).nonzero()[0]] for row in test.counts]
    assert left_out == [["dog"], ["bus"], []]
    result = zero_shot.score_features(np.eye(3, dtype=np.float32), np.zeros((20, 3)), 1.0, test)
    shares = {row.label: row.n for row in result.per_class(test.labels) if row.n}
    assert shares == {"cat": 1, "dog": 1}
    everything = dataclasses.replace(test, counts=None)
    assert everything.fingerprint != test.fingerprint
