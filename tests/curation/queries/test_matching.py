"""Queries in captions, by MetaCLIP's rule."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.curation.queries.matching import Matcher, normalize

QUERIES = ["cat", "a cat", "New York", "3 . 5", "!", "ab", "b", "a b", "été"]


def reference(text: str) -> list[int]:
    """The rule as MetaCLIP states it, word for word."""
    spaced = f" {text} "
    for mark in ",.;:?!`":
        spaced = spaced.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        spaced = spaced.replace(blank, " ")
    return [i for i, query in enumerate(QUERIES) if f" {query} " in spaced]


def found(texts: list[str | None]) -> list[list[int]]:
    starts, numbers = Matcher(QUERIES).find(texts)
    return [numbers[a:b].tolist() for a, b in itertools.pairwise(starts)]


def test_queries_stand_between_spaces_and_marks() -> None:
    assert found(["a cat!", "cats", "Cat", "concat", None, "", "cat,cat\ncat"]) == [
        *([0, 1, 4], [], [], [], [], [], [0])
    ]
    assert found(["in New\tYork.", "3.5 m", "x a b ab"]) == [[2], [3], [5, 6, 7]]


def test_marks_get_spaces() -> None:
    assert normalize("a,b:c?`d") == " a , b : c ?  ` d "
    assert normalize("(a) 'b' \"c\" d-e\r\n") == " (a) 'b' \"c\" d-e   "


def test_scripts_without_spaces() -> None:
    texts: list[str | None] = ["一只红猫。", "a 猫 b", "catнета", "กินแมวแล้ว"]
    queries = ["红猫", "猫", "cat", "แมว"]
    starts, numbers = Matcher(queries).find(texts)
    assert (starts.tolist(), numbers.tolist()) == ([0, 0, 1, 1, 1], [1])
    starts, numbers = Matcher(queries, without_spaces=True).find(texts)
    assert (starts.tolist(), numbers.tolist()) == ([0, 2, 3, 3, 4], [0, 1, 1, 3])


@settings(deadline=None)
@given(st.lists(st.text("abc tNewYork,.!35\n é", max_size=30), max_size=5))
def test_the_automaton_finds_what_the_rule_finds(texts: list[str]) -> None:
    assert found(texts) == [reference(text) for text in texts]
