"""Templates over what is written about a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data import captions
from clip_jax.errors import UserError
from support import says

TEXT = {"name": "cat", "keywords": ["pet", "purr", "whiskers"], "n": 3, "none": None, "of": []}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a photo of a {name}.", "a photo of a cat."),
        ("{name}, {keywords}", "cat, pet, purr, whiskers"),
        ("{n} {name}s", "3 cats"),
        ("no field", "no field"),
        ("{{{name}}}", "{cat}"),
        ("{of}", ""),
        ("", ""),
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
    found = captions.fill("{k}", {"k": items}, "x", rng(seed))
    chosen = found.split(", ")
    assert 1 <= len(chosen) == len(set(chosen))
    assert set(chosen) <= set(map(str, items))
    assert found == captions.fill("{k}", {"k": items}, "x", rng(seed))


def test_every_item_count_order_and_template_occurs() -> None:
    rng = np.random.default_rng(0)
    some = [captions.fill("{keywords}", TEXT, "x", rng) for _ in range(500)]
    assert len(set(some)) == 3 + 6 + 6
    assert {s.count(",") for s in some} == {0, 1, 2}
    templates = ("{name}", "a {name}", "the {name}")
    drawn = {captions.sample(templates, TEXT, "x", rng) for _ in range(100)}
    assert drawn == {"cat", "a cat", "the cat"}


@pytest.mark.parametrize("field", ["colour", "none", ""])
def test_a_missing_field_is_named(field: str) -> None:
    template = f"a {{{field}}}"
    with pytest.raises(UserError) as error:
        captions.fill(template, TEXT, "x.tar:7.png")
    assert says(error.value, "x.tar:7.png", template, repr(field), "name, keywords, n")


@pytest.mark.parametrize("template", ["{name", "name}", "{name!r}", "{name:>9}", "{name:{n}}", "{"])
def test_a_template_that_is_none_is_named(template: str) -> None:
    for use in (captions.fields, lambda t: captions.fill(t, TEXT, "x")):
        with pytest.raises(UserError) as error:
            use(template)
        assert says(error.value, template)


def test_fields_come_in_order() -> None:
    assert captions.fields("{b} and {a} and {b}") == ["b", "a", "b"]


def test_a_text_of_many_fields_makes_no_long_line() -> None:
    text: dict[str, Any] = {f"field_{i}": i for i in range(1000)}
    with pytest.raises(UserError) as error:
        captions.fill("{caption}", text, "x")
    assert says(error.value, "field_0")
