"""The class of a pair is found by its name, a similar name, or its number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.class_index import ClassIndex
from clip_jax.data.example import PairError
from clip_jax.data.rows import class_of

LABELS = ["golden retriever", "C", "C++", "7", "crane", "crane"]
FOLDERS = [["n02099601"], [], [], [], ["n02012849"], ["n03126707"]]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("golden retriever", 0),
        ("Golden_Retriever", 0),
        (" golden retriever ", 0),
        ("n02099601", 0),
        ("C", 1),
        ("C++", 2),
        ("c", None),  # two classes are alike but for signs
        (7, 3),  # a class has that name
        ("7", 3),
        (0, 0),
        (2.0, 2),
        ("5", 5),
        (6, None),
        (-1, None),
        ("crane", None),  # two classes have that name
        ("n03126707", 5),
        ("", None),
        (True, None),
        (None, None),
        (["C"], None),
        (0.5, None),
        (1.5, None),
        (float("inf"), None),
        ("٣", None),  # a digit, but not of ours
    ],
)
def test_values_name_classes(value: object, number: int | None) -> None:
    assert ClassIndex(LABELS, FOLDERS).find(value) == number


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True))
def test_every_label_without_outer_spaces_finds_its_own_class(labels: list[str]) -> None:
    labels = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    index = ClassIndex(labels)
    assert [index.find(label) for label in labels] == list(range(len(labels)))
    unnumbered = ClassIndex(labels, numbered=False)
    assert [unnumbered.find(label) for label in labels] == list(range(len(labels)))


def test_the_class_of_a_pair_says_what_is_wrong() -> None:
    index = ClassIndex(["cat", "dog"])
    assert class_of({"meta": {"kind": "Dog"}}, "pair 3", "meta.kind", index) == 1
    for text, words in (
        ({"caption": "a dog"}, ["pair 3", "lacks the field 'label'", "caption"]),
        ({"label": ["dog"]}, ["pair 3", "['dog']", "not the name of a class"]),
        ({"label": "bird"}, ["pair 3", "'bird' is none of the 2 classes"]),
    ):
        with pytest.raises(PairError) as caught:
            class_of(text, "pair 3", "label", index)
        assert all(word in str(caught.value) for word in words)
        assert caught.value.reason == "text"
