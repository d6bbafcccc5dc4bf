"""Templates over what is written about a picture."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data import captions
from clip_jax.errors import UserError
from support import refused, says

TEXT = {"name": "cat", "keywords": ["pet", "purr", "whiskers"], "n": 3, "none": None, "of": []}
TEXT |= {"meta": {"title": "Tom", "by": {"a.b": "Jo"}}, "meta.by": "x", "some": [None, 1]}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a photo of a {name}.", "a photo of a cat."),
        ("{name}, {keywords}", "cat, pet, purr, whiskers"),
        ("{n} {name}s", "3 cats"),
        ("no field", "no field"),
        ("{{{name}}}", "{cat}"),
        ("{of}", ""),
        ("{of:all}.", "."),
        ("", ""),
        ("{meta.title} by {meta.by}", "Tom by x"),
        ("{keywords:all}", "pet purr whiskers"),
        ("{keywords:one} {keywords:each}", "pet pet"),
        ("{name:one} {name:each} {name:all}", "cat cat cat"),
        ("{some}, {some:one}, {some:all}", "1, 1, 1"),
        ("{keywords:sentence} {n:sentence}", "pet 3"),
    ],
)
def test_fill(template: str, expected: str) -> None:
    assert captions.fill(template, TEXT, "x") == expected


@given(st.dictionaries(st.sampled_from(["a", "b.c", "d[0]", "é"]), st.text(), min_size=1))
def test_values_are_taken_as_they_are(text: dict[str, str]) -> None:
    for name, value in text.items():
        assert captions.fill(f"<{{{name}}}>", text, "x") == f"<{value}>"


@given(st.integers(0, 2**32), st.lists(st.integers(), min_size=1, max_size=6, unique=True))
def test_a_list_gives_some_of_its_items(seed: int, items: list[int]) -> None:
    rng = np.random.default_rng
    caption = captions.fill("{k}", {"k": items}, "x", rng(seed))
    chosen = caption.split(", ")
    assert 1 <= len(chosen) == len(set(chosen))
    assert set(chosen) <= set(map(str, items))
    assert caption == captions.fill("{k}", {"k": items}, "x", rng(seed))


def test_every_item_count_order_and_template_occurs() -> None:
    rng = np.random.default_rng(0)
    some = [captions.fill("{keywords}", TEXT, "x", rng) for _ in range(500)]
    assert len(set(some)) == 3 + 6 + 6
    assert {s.count(",") for s in some} == {0, 1, 2}
    templates = ("{name}", "a {name}", "the {name}")
    drawn = {captions.sample(templates, TEXT, "x", rng) for _ in range(100)}
    assert drawn == {"cat", "a cat", "the cat"}


def test_one_of_a_list_is_any_and_each_comes_in_turn() -> None:
    rng = np.random.default_rng(0)
    ones = {captions.fill("{keywords:one}", TEXT, "x", rng) for _ in range(50)}
    assert ones == {"pet", "purr", "whiskers"}
    before = rng.bit_generator.state
    turns = [captions.fill("{keywords:each}", TEXT, "x", rng, turn) for turn in range(5, 11)]
    assert turns == ["whiskers", "pet", "purr"] * 2
    captions.fill("{keywords:all}", TEXT, "x", rng)
    assert rng.bit_generator.state == before, "chance has no part in it"
    assert captions.sample(("{keywords:each}",), TEXT, "x", rng, turn=4) == "purr"


@pytest.mark.parametrize(
    "sentences",
    [
        ["好！！", "太好了？！", "他说：「你好。」", "然后走了。"],
        ["Dr. Smith and Mrs. Lee, e.g. here.", "They smile."],
        ["1. A cat.", "2. A dog.", "It is 3.5 m. tall.", "No. 5 wins.", "... a dog.", "Yes."],
        ["1. Cat 2. Dog"],
        ["... 5!"],
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences: list[str]) -> None:
    assert captions.sentences(" ".join(sentences)) == sentences
    if "好！！" in sentences:
        assert captions.sentences("".join(sentences)) == sentences


def test_a_sentence_is_one_of_those_of_the_text() -> None:
    text = 'No effusion. Is "it" clear? 心影正常。肺部清晰！ Size 1.5 cm (old.) Stable…\n- a line '
    expected = ["No effusion.", 'Is "it" clear?', "心影正常。", "肺部清晰！"]
    assert captions.sentences(text) == [*expected, "Size 1.5 cm (old.)", "Stable…", "- a line"]
    assert captions.sentences(" \n ") == []
    rng = np.random.default_rng(0)
    fields = {"report": text, "several": ["One. Two.", "Three."], "blank": "  "}
    drawn = {captions.fill("{report:sentence}", fields, "x", rng) for _ in range(100)}
    assert drawn == set(captions.sentences(text))
    drawn = {captions.fill("{several:sentence}", fields, "x", rng) for _ in range(50)}
    assert drawn == {"One.", "Two.", "Three."}
    before = rng.bit_generator.state
    assert captions.fill("{blank:sentence}", fields, "x", rng) == "  "
    assert rng.bit_generator.state == before
    with pytest.raises(UserError, match="sentence"):
        captions.fields("{report:sentences}")


def draws(templates: tuple[str, ...], weights: tuple[float, ...] = ()) -> dict[str, int]:
    rng = np.random.default_rng(1)
    counts = Counter(captions.sample(templates, TEXT, "x", rng, weights) for _ in range(2000))
    return {caption: round(count / 200) for caption, count in counts.items()}


def test_templates_are_drawn_by_weight_among_those_that_make_a_caption() -> None:
    assert draws(("a", "b")) == {"a": 5, "b": 5}
    assert draws(("a", "b"), (4, 1)) == {"a": 8, "b": 2}
    assert draws(("{gone}", "a", "{none}", "b", "{of}"), (9, 0.4, 9, 0.1, 9)) == {"a": 8, "b": 2}
    assert draws(("{gone}", "a", "b")) == {"a": 5, "b": 5}


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_one_draw_suffices_when_its_template_can_be_filled(seed: int, count: int) -> None:
    ours, plain = (np.random.default_rng(seed) for _ in range(2))
    templates = tuple(f"{i}: {{keywords}}" for i in range(count))
    caption = captions.sample((*templates,), TEXT, "x", ours)
    assert caption == captions.fill(templates[plain.integers(count)], TEXT, "x", plain)
    assert ours.bit_generator.state == plain.bit_generator.state


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"a": ""}, ["empty"]),
        ({"a": " \n"}, ["empty"]),
        ({"a": "x" * 1_000_001}, ["1,000,000 characters"]),
        ({"b": "x"}, ["'{a}'", "there are: b"]),
        ({"a": None}, ["'{a}'", "none"]),
    ],
)
def test_without_a_caption_the_first_reason_is_reported(
    text: dict[str, Any], words: list[str]
) -> None:
    def sample() -> None:
        captions.sample(("{a}",) * 3, text, "x.tar:7.png", np.random.default_rng(0))

    refused(sample, "x.tar:7.png", *words)


@pytest.mark.parametrize("field", ["colour", "none", "", "meta.of", "name.x", "meta.by.a"])
def test_a_missing_field_is_named(field: str) -> None:
    template = f"a {{{field}}}"
    with pytest.raises(UserError) as error:
        captions.fill(template, TEXT, "x.tar:7.png")
    assert says(error.value, "x.tar:7.png", template, repr(field), "name, keywords, n")


@pytest.mark.parametrize(
    "template", ["{name", "name}", "{name!r}", "{name:>9}", "{name:{n}}", "{", "{name:two}"]
)
def test_an_invalid_template_is_named(template: str) -> None:
    for use in (captions.fields, lambda t: captions.fill(t, TEXT, "x")):
        with pytest.raises(UserError) as error:
            use(template)
        assert says(error.value, template)


@pytest.mark.parametrize("way", ["one", "each"])
def test_an_empty_list_gives_no_caption(way: str) -> None:
    refused(lambda: captions.fill(f"{{of:{way}}}", TEXT, "x"), "'of'")


def test_fields_come_in_order() -> None:
    assert captions.fields("{b} and {a} and {b}") == ["b", "a", "b"]
    assert captions.fields("{a:each}{b.c}") == ["a", "b.c"]


def test_a_text_of_many_fields_makes_no_long_line() -> None:
    text: dict[str, Any] = {f"field_{i}": i for i in range(1000)}
    with pytest.raises(UserError) as error:
        captions.fill("{caption}", text, "x")
    assert says(error.value, "field_0")
