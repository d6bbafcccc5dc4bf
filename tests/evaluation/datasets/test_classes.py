"""Classes by name, by folder and by number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.datasets.classes import Classes, ClassName, plain
from support import refused

LABELS = ["hot dog", "F-16A/B", "lake or sea"]


def named(*values: object) -> list[ClassName]:
    return [ClassName(value, f"{i}.jpg") for i, value in enumerate(values)]


def test_names_folders_and_synonyms() -> None:
    classes = Classes(LABELS, ["n01", "n02", "SeaLake"], {"hot dog": ("frankfurter",)})
    targets = classes.targets(named("Hot_Dog", "n02", "sea_lake", "Frankfurter", "f16ab"))
    assert targets.tolist() == [0, 1, 2, 0, 1]
    assert targets.dtype == np.int64 and classes.note == ""


def test_folders_of_other_names_count_by_their_order() -> None:
    classes = Classes([f"class {i}" for i in range(12)])
    assert classes.targets(named("10", "2", "12", *map(str, range(1, 13)))).tolist()[:3] == [
        9,
        1,
        11,
    ]
    assert classes.note == ""
    classes = Classes(LABELS)
    assert classes.targets(named("c", "a", "b", "a")).tolist() == [2, 0, 1, 0]
    assert "order of their folders" in classes.note


def test_some_numbers_count_from_zero() -> None:
    assert Classes(LABELS).targets(named(2, 0, 2)).tolist() == [2, 0, 2]
    assert Classes(["3", "4", "5"]).targets(named(5, 3)).tolist() == [2, 0], (
        "names that are numbers"
    )
    refused(lambda: Classes(LABELS).targets(named(0, 3)), "1.jpg", "class 3", "0…2")


def test_numbers_count_in_the_order_of_the_files_names() -> None:
    classes = Classes(LABELS, numbered=["Lake or Sea", "hot-dog", "F 16 A B"])
    assert classes.targets(named(0, 1, 2)).tolist() == [2, 0, 1]
    assert classes.labels == LABELS and not classes.note
    twice = ["missile", "missile", "crane"]
    assert Classes(twice, numbered=twice).targets(named(1, 0)).tolist() == [1, 0]
    refused(lambda: classes.targets(named(0, -1)), "1.jpg", "class -1")


def test_other_class_names_take_the_place_of_those_known() -> None:
    classes = Classes(LABELS, numbered=["x", "y"])
    assert classes.labels == ["x", "y"] and "2 class names" in classes.note
    assert classes.targets(named(1, 0)).tolist() == [1, 0]
    refused(lambda: classes.targets(named(2)), "class 2", "0…1")


def test_an_unknown_name_is_reported_with_its_place() -> None:
    refused(lambda: Classes(LABELS).targets(named("hot dog", "cat")), "'cat'", "1.jpg", "3 classes")
    refused(lambda: Classes(["a", "a!", "b"]).targets(named("a", "b")), "'a'")


def test_several_classes_of_a_picture() -> None:
    classes = Classes(LABELS, numbered=["F-16A/B", "hot dog", "lake or sea"])
    targets = classes.targets(named([1, 0, 0], ["hot dog", "lake or sea"], [], [2]))
    assert targets.dtype == bool
    assert targets.tolist() == [
        [False, True, False],
        [True, False, True],
        [False, False, False],
        [False, False, True],
    ]
    refused(lambda: classes.targets(named([1, 0, 0], ["cat"])), "'cat'", "1.jpg")
    refused(lambda: classes.targets(named([1, 0, 0], [5])), "class 5", "1.jpg")


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), min_size=1))
def test_any_order_of_names_leads_to_the_same_classes(order: list[int], values: list[int]) -> None:
    labels = [f"the {c}" for c in "abcdef"]
    classes = Classes(labels, numbered=[labels[i].upper() for i in order])
    assert classes.targets(named(*values)).tolist() == [order[value] for value in values]


@given(st.text())
def test_plain_names_are_unchanged(name: str) -> None:
    assert plain(plain(name)) == plain(name) or not plain(name).isascii()
    assert plain(name.replace("_", " ")) == plain(name.replace(" ", "").replace("_", ""))


@pytest.mark.parametrize("value", ["hot dog", 1, "HOT-DOG"])
def test_knows(value: object) -> None:
    assert Classes(LABELS).knows(value) and not Classes(LABELS).knows("cat")
