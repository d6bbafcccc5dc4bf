"""What a config names as data: every mistake is one line with its key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clip_jax.data import mixture_config
from clip_jax.data.filter_conditions import Filter
from support import refused

GOOD: dict[str, Any] = {"data": "a.tar"}


def entries_of(mix: dict[str, Any], **data: Any) -> dict[str, mixture_config.Entry]:
    return mixture_config.entries({"train": "", "mix": mix, "captions": ("{caption}",), **data})


def test_an_entry_inherits_the_options_of_config_data() -> None:
    entries = entries_of(
        {"b": GOOD, "a": GOOD | {"captions": "{title}", "filter": {"max_side": 9}, "root": "/x"}},
        captions=["{x}", "{y}"],
        caption_weights=[1, 2],
        filter={"min_side": 3},
        image="column",
        root="/own",
    )
    assert list(entries) == ["a", "b"]
    a, b = entries["a"], entries["b"]
    assert (b.captions, b.caption_weights, b.filter) == (("{x}", "{y}"), (1, 2), Filter(3))
    assert (a.captions, a.caption_weights) == (("{title}",), ())
    assert (a.filter, a.root, a.image) == (Filter(max_side=9), "/x", "column")
    assert (b.root, b.image) == ("/own", "column")


def test_a_single_source_has_no_name() -> None:
    (name, entry), *more = entries_of({}, train="x.csv", image="i", root="r").items()
    assert (name, entry.data, entry.image, entry.root, more) == ("", "x.csv", "i", "r", [])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["data"]),
        ({"data": ""}, ["data"]),
        (3, ["data"]),
        (GOOD | {"weights": 3}, [".weights", "weight, epochs"]),
        (GOOD | {"weight": 0}, [".weight=0", "above 0"]),
        (GOOD | {"weight": "much"}, [".weight='much'"]),
        (GOOD | {"weight": True}, [".weight=True"]),
        (GOOD | {"epochs": math.inf}, [".epochs=inf"]),
        (GOOD | {"epochs": 1, "weight": 1}, ["weight and epochs"]),
        (GOOD | {"captions": ()}, [".captions", "empty"]),
        (GOOD | {"captions": ("{x",)}, [".captions", "{x"]),
        (GOOD | {"captions": ("{x:two}",)}, [".captions", "{x:two}", "{name:each}"]),
        (GOOD | {"captions": 3}, [".captions=3"]),
        (GOOD | {"caption_weights": (1, 2)}, [".caption_weights=(1, 2)", "1 templates"]),
        (GOOD | {"caption_weights": (0,)}, [".caption_weights=(0,)", "above 0"]),
        (GOOD | {"caption_weights": 1}, [".caption_weights=1"]),
        (GOOD | {"root": 3}, [".root=3"]),
        (GOOD | {"data": ["a.tar"]}, [".data=['a.tar']"]),
        (GOOD | {"filter": {"side": 3}}, [".filter.side", "min_side"]),
        (GOOD | {"filter": 3}, [".filter=3"]),
    ],
)
def test_a_wrong_entry_is_one_line(values: Any, words: list[str]) -> None:
    refused(lambda: entries_of({"mine": values}), "config.data.mix.mine", *words)


@pytest.mark.parametrize("other", [{"weight": 1}, {}, {"epochs": 2, "weight": 3}])
def test_shares_are_of_one_kind(other: dict[str, Any]) -> None:
    mix = {"one": GOOD | {"epochs": 1}, "other": GOOD | other}
    refused(lambda: entries_of(mix), "config.data.mix.other", "weight and epochs")


def test_train_or_mix() -> None:
    refused(
        lambda: entries_of({"a": GOOD}, train="b.tar"),
        "config.data.train='b.tar'",
        "config.data.mix",
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_side": -1}, ["min_side=-1", "at least 0"]),
        ({"min_side": 1.5}, ["min_side=1.5", "whole"]),
        ({"max_side": True}, ["max_side=True"]),
        ({"min_side": 9, "max_side": 8}, ["min_side=9", "max_side=8"]),
        ({"max_aspect": 0.5}, ["max_aspect=0.5", "at least 1"]),
        ({"max_aspect": math.nan}, ["max_aspect=nan"]),
        ({"min_characters": 9, "max_characters": 8}, ["min_characters=9", "max_characters=8"]),
        ({"duplicates": -2}, ["duplicates=-2", "at least -1"]),
        ({"least": 0.3}, ["least=0.3", "field"]),
        ({"least": {"x": "0.3"}}, ["least={'x': '0.3'}"]),
        ({"most": {"x": math.nan}}, ["most={'x': nan}"]),
        ({"least": {"x": 2}, "most": {"x": 1}}, ["least.x=2", "most.x=1"]),
        ({"most": {f"{i}": 1 for i in range(51)}}, ["most", "51", "50"]),
    ],
)
def test_a_wrong_filter_is_one_line(values: dict[str, Any], words: list[str]) -> None:
    words[0] = f"config.data.filter.{words[0]}"
    refused(lambda: entries_of({}, train="x", filter=values), *words)
    (first, *_), key = words, "config.data.mix.a.filter"
    moved = first.replace("config.data.filter", key)
    refused(lambda: entries_of({"a": GOOD | {"filter": values}}), moved)
