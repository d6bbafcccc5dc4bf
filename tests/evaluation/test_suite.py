"""The evaluations of a config: names, numbers, pictures, and mistakes in what it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_jax.config.schema import Evaluate
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets import read_labels
from clip_jax.evaluation.evaluators import EVALUATORS, load_evaluators
from clip_jax.evaluation.results import SuiteResults, table, write_sheets
from clip_jax.evaluation.suite import Suite
from support import Letters, TarFactory, encoded, picture, says, write_tar

LABELS = ["cat", "dog", "sun"]


class Perfect:
    """An encoder that knows what pictures and texts are about: their first letter."""

    def __init__(self) -> None:
        self.texts: list[np.ndarray] = []

    @staticmethod
    def _features(letter: str) -> np.ndarray:
        return np.eye(128, dtype=np.float32)[ord(letter)]

    def images(self, source: Source, preprocess: Any, **_: Any) -> np.ndarray:
        return np.stack([self._features(source[i].text["name"][0]) for i in range(len(source))])

    def tokens(self, tokens: np.ndarray) -> np.ndarray:
        self.texts.append(tokens)
        return np.stack([self._features(chr(row[1])) for row in tokens])


Config = dict[str, Any]


@pytest.fixture
def config(tar_factory: TarFactory, tmp_path: Path) -> Config:
    tar = tar_factory(
        pairs=6, fields=lambda i: {"name": LABELS[i % 3], "keywords": ["x", str(i)], "id": i % 3}
    )
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(LABELS))
    options = {"data": str(tar), "labels": str(labels), "label": "name"}
    return {
        "every": 1,
        "batch_size": 8,
        "pictures": 4,
        "templates": ("{}", "{} here"),
        "caption": "{name}",
        "suite": ("zero_shot", "retrieval"),
        "standard": (),
        "folder": "",
        "keep_features": False,
        "sets": {"one": options, "two": dict(options)},
    }


def suite_of(config: Config, names: str = "", sets: str = "") -> Suite:
    evaluators = load_evaluators(names or config["suite"])
    options: Any = {"explicit": bool(names), "sets": sets}
    return Suite(Evaluate(**config), Letters(), Preprocess(8), evaluators, **options)


def evaluate(config: Config, encoder: Any) -> SuiteResults:
    return suite_of(config).evaluate(encoder, 100.0)


def run(config: Config, encoder: Any) -> dict[str, float]:
    return evaluate(config, encoder).metrics()


NAMES = [
    *(f"zero_shot/one/top{k}" for k in (1, 5)),
    *(
        f"retrieval/one/{way}/r{k}"
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    ),
]


def test_a_perfect_model_gets_everything_right(config: Config) -> None:
    metrics = run(config, Perfect())
    assert list(metrics) == [*NAMES, *(name.replace("one", "two") for name in NAMES)]
    assert set(metrics.values()) == {1.0}


def test_a_model_that_knows_nothing_gets_nothing(config: Config) -> None:
    class Blank(Perfect):
        def images(self, source: Source, preprocess: Any, **_: Any) -> np.ndarray:
            return np.ones((len(source), 128), np.float32)

    metrics = run(config, Blank())
    assert {metrics[n] for n in NAMES if "/r10" not in n and "5" not in n} == {0.0}


def test_a_classifier_serves_all_sets_with_its_labels(config: Config, tmp_path: Path) -> None:
    def classifiers(encoder: Perfect) -> int:
        return sum(len(rows) == 2 * len(LABELS) for rows in encoder.texts)

    encoder, suite = Perfect(), suite_of(config)
    suite.evaluate(encoder, 1.0)
    assert classifiers(encoder) == 1
    suite.evaluate(encoder, 1.0)
    assert classifiers(encoder) == 2, "other parameters, another classifier"

    (tmp_path / "turned.json").write_text(json.dumps(LABELS[::-1]))
    config["sets"]["two"]["labels"] = str(tmp_path / "turned.json")
    encoder = Perfect()
    assert set(run(config, encoder).values()) == {1.0}
    assert classifiers(encoder) == 2


def test_sheets_of_pictures(config: Config, tmp_path: Path) -> None:
    write_sheets(evaluate(config, Perfect()), tmp_path / "sheets")
    for name in ("one", "two"):
        with Image.open(tmp_path / "sheets" / f"{name}.png") as image:
            assert image.size == (1080, 2 * 152 + 34)
    config["pictures"] = 0
    write_sheets(evaluate(config, Perfect()), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    config["pictures"] = 100
    write_sheets(evaluate(config, Perfect()), tmp_path / "all")
    with Image.open(tmp_path / "all" / "one.png") as image:
        assert image.size == (1080, 2 * 152 + 34)


def test_a_suite_of_nothing_is_false(config: Config) -> None:
    assert suite_of(config)
    assert not suite_of({**config, "sets": {}})


def test_sets_are_chosen_by_name_path_and_group(config: Config) -> None:
    def names(words: str) -> list[str]:
        results = suite_of(config, sets=words).evaluate(Perfect(), 1.0)
        return list(results.document()["sets"])

    assert names("") == ["one", "two"]
    assert names("two") == ["two"]
    assert names(" two , one") == ["two", "one"]
    assert names("one,two,one") == ["one", "two"]
    path = config["sets"]["one"]["data"]
    config["sets"]["two"]["data"] = "/not/there.tar"
    assert names(f"two={path}") == ["two"]


def test_evaluators_are_chosen_by_name() -> None:
    def names(words: str | list[str]) -> tuple[str, ...]:
        return tuple(evaluator.name for evaluator in load_evaluators(words))

    assert names(["retrieval", "zero_shot"]) == names("retrieval, zero_shot")
    assert names(["retrieval", "zero_shot"]) == ("zero_shot", "retrieval")
    assert names(["all"]) == EVALUATORS.names
    assert len(EVALUATORS.names) == 12
    assert names([]) == ()
    with pytest.raises(UserError) as error:
        load_evaluators(["zero_shot", "linear_prob"], "--suite")
    assert says(error.value, "--suite=linear_prob", "did you mean linear_probe?")


@pytest.mark.parametrize(
    ("suite", "words"), [("bias", "fairface"), ("robustness", "ImageNet"), ("few_shot", "train")]
)
def test_an_evaluator_that_suits_no_set_is_reported(config: Config, suite: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        suite_of(config, suite)
    assert says(error.value, words)
    mixed = suite_of(config, f"zero_shot,{suite}")
    assert suite in mixed.missing[0].set
    assert words in mixed.missing[0].why
    missing = mixed.evaluate(Perfect(), 1.0).document()["missing"]
    assert missing == [{"set": item.set, "why": item.why} for item in mixed.missing]


def test_table() -> None:
    lines = table({"zero_shot/a/top1": 0.123456, "retrieval/a/r10": 1.0, "mine/a/mean": 130.25})
    assert lines == (
        "  zero_shot/a/top1   12.35%\n  retrieval/a/r10   100.00%\n  mine/a/mean         130.25"
    )
    no_shares = table({"perplexity/a/words_loss": 0.5, "captioning/a/cider": 0.25})
    assert "0.5\n" in no_shares and no_shares.endswith("0.25")
    assert table({}) == ""


Change = Callable[[dict[str, Any], Path], Any]


def labels_file(content: str | bytes) -> Change:
    def change(values: dict[str, Any], folder: Path) -> None:
        path = folder / "wrong.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        values["labels"] = str(path)

    return change


def key(**values: Any) -> Change:
    return lambda old, folder: old.update(values)


def no_key(name: str) -> Change:
    return lambda old, folder: old.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (labels_file("[1, "), ["wrong.json", "not JSON"]),
        (labels_file("[" * 100_000), ["wrong.json", "not JSON"]),
        (labels_file(b"\xff\xfe"), ["wrong.json", "not JSON"]),
        (labels_file("3"), ["wrong.json", "list of distinct names", "'one'"]),
        (labels_file("[]"), ["wrong.json", "list"]),
        (labels_file('["cat", "dog", "cat"]'), ["wrong.json", "distinct"]),
        (labels_file('{"other": ["cat"]}'), ["wrong.json", "'one'"]),
        (labels_file('["cat", "dog"]'), ["evaluate.sets.one", "'sun'", "000002.png", "wrong.json"]),
        (key(labels="/no/labels.json"), ["evaluate.sets.one.labels", "/no/labels.json"]),
        (key(labels="/"), ["evaluate.sets.one.labels", "/"]),
        (key(label="colour"), ["'colour'", "000000.png", "name"]),
        (key(label="keywords"), ["evaluate.sets.one", "'x, 0'"]),
        (key(data="/no/such.tar"), ["/no/such.tar"]),
        (key(data=""), ["evaluate.sets.one", "no data"]),
        (no_key("data"), ["evaluate.sets.one", "no data"]),
        (no_key("label"), ["evaluate.sets.one", "no label"]),
    ],
)
def test_mistakes_are_one_line_errors(
    config: Config, tmp_path: Path, change: Change, words: list[str]
) -> None:
    change(config["sets"]["one"], tmp_path)
    with pytest.raises(UserError) as error:
        suite_of(config)
    assert says(error.value, *words)


def test_a_caption_that_asks_too_much_is_named(config: Config) -> None:
    config["caption"] = "{colour}"
    with pytest.raises(UserError) as error:
        suite_of(config)
    assert says(error.value, "'colour'", "000000.png")


def test_labels_by_the_name_of_the_set(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"one": ["é", "b"], "two": ["c"]}), encoding="utf-8")
    assert read_labels(str(path), "one") == ["é", "b"]
    assert read_labels(str(path), "two") == ["c"]


class Decoding(Perfect):
    """`Perfect` that reads the pictures as `Encoder` does."""

    def images(self, source: Source, preprocess: Any, **_: Any) -> np.ndarray:
        for i in range(len(source)):
            decode(source[i].image, source[i].name)
        return super().images(source, preprocess)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("1.png", encoded(picture(1))[:-200], "truncated"),
        ("1.png", b"", "has no bytes"),
        ("1.png", b"<html>", "none of"),
        ("1.json", b'{"name": ', "text cannot be read"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named_with_its_set(
    config: Config, tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    members = {}
    for i in range(3):
        members[f"{i}.png"] = encoded(picture(i))
        members[f"{i}.json"] = json.dumps({"name": LABELS[i]}).encode()
    members[name] = content
    config["sets"]["two"]["data"] = str(write_tar(tmp_path / "x.tar", list(members.items())))
    with pytest.raises(UserError) as error:
        run(config, Decoding())
    assert says(error.value, "evaluate.sets.two", "x.tar:1.png", why, "take it out")
