"""Filters: exact, in order, found once, whatever is broken."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import pickle
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax.data import filters
from clip_jax.data.example import Pair, PairError
from clip_jax.data.filter_conditions import Filter
from clip_jax.data.filters import Selected, described
from clip_jax.io import files
from support import encoded, picture, refused


@functools.cache
def encoded_picture(width: int, height: int, seed: int = 0) -> bytes:
    return encoded(picture(seed, (width, height)))


@dataclasses.dataclass
class Made:
    """Pairs given outright; None cannot be read. Counts what is read of it."""

    pairs: list[tuple[bytes, dict[str, Any]] | None]
    name: str = ""
    read: Counter[int] = dataclasses.field(default_factory=Counter, compare=False)

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.pairs}"

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Pair:
        assert type(i) is int and 0 <= i < len(self)
        self.read[i] += 1
        pair = self.pairs[i]
        if pair is None:
            raise PairError("unreadable", f"pair {i} cannot be read")
        return Pair(*pair, f"pair {i}")


def select(source: Made, templates: tuple[str, ...] = ("{caption}",), **options: Any) -> Selected:
    return Selected(source, Filter.from_dict(options), templates, threads=2)


def numbers(selected: Selected) -> list[int]:
    """Of the pairs that are left, in order."""
    return selected.numbers.tolist()


SIZES = [(10, 20), (20, 10), (30, 30), (9, 9), (100, 10), (10, 101)]


@pytest.mark.parametrize(
    ("options", "expected", "left_out"),
    [
        ({"min_side": 10}, [0, 1, 2, 4, 5], {"size": 1}),
        ({"min_side": 10, "max_side": 100}, [0, 1, 2, 4], {"size": 2}),
        ({"max_aspect": 2}, [0, 1, 2, 3], {"aspect": 2}),
        ({"max_aspect": 10.0}, [0, 1, 2, 3, 4], {"aspect": 1}),
        ({"max_aspect": 1, "min_side": 10}, [2], {"size": 1, "aspect": 4}),
    ],
)
def test_by_the_sides_of_a_picture(
    options: dict[str, Any], expected: list[int], left_out: dict[str, int]
) -> None:
    selected = select(Made([(encoded_picture(*size), {}) for size in SIZES]), **options)
    assert (numbers(selected), selected.left_out) == (expected, left_out)


def test_no_more_of_a_picture_than_its_header_is_read() -> None:
    source = Made([(encoded_picture(20, 20)[:60], {})])  # a PNG's sizes are in its first 24 bytes
    with mock.patch.object(Image.Image, "load", side_effect=AssertionError):
        assert numbers(select(source, min_side=20)) == [0] and source.read == {0: 1}
        refused(lambda: select(source, min_side=21), "config.data.filter", "size 1")


TEXTS: list[dict[str, Any]] = [
    {"caption": "a cat"},
    {"caption": " cat ", "title": "a cat, at home"},
    {"title": "cats"},
    {"caption": ""},
    {"caption": None, "tags": ["pet", "purr"]},
    {"none": 1},
]


@pytest.mark.parametrize(
    ("templates", "options", "expected"),
    [
        (("{caption}",), {"min_characters": 4}, [0, 2, 4, 5]),
        (("{caption}", "{title}"), {"min_characters": 5}, [0, 4, 5]),
        (("{caption}", "{title}"), {"max_characters": 3}, [1, 3, 4, 5]),
        (("{caption}", "{title}", "{tags}"), {"min_characters": 5}, [0, 4, 5]),
        (("{tags:one}", "{caption}"), {"min_characters": 4}, [0, 2, 5]),
    ],
)
def test_by_the_characters_of_the_first_template_that_can_be_filled(
    templates: tuple[str, ...], options: dict[str, Any], expected: list[int]
) -> None:
    selected = select(Made([(b"", text) for text in TEXTS]), templates, **options)
    assert numbers(selected) == expected, "of which no template makes a caption is left in"
    assert selected.left_out == {"caption": len(TEXTS) - len(expected)}


def test_by_fields_that_are_numbers() -> None:
    values = [0.3, 0.29, "0.3", " 1e0 ", "much", None, math.nan, True, [1], 10**400, math.inf]
    source = Made([(b"", {"similarity": value}) for value in values] + [(b"", {})])
    selected = select(source, least={"similarity": 0.3})
    assert numbers(selected) == [0, 2, 3, 10]
    assert selected.left_out == {"similarity": 1, "similarity/missing": 7}
    assert numbers(select(source, most={"similarity": 0.3})) == [0, 1, 2]
    assert numbers(select(source, least={"similarity": 0.3}, most={"similarity": 1})) == [0, 2, 3]


def test_the_first_reason_counts() -> None:
    both = {"least": {"a": 1, "b": 1}}
    source = Made(
        [(b"", {"b": 0}), (b"", {"a": 0, "b": 0}), (b"", {"a": 1}), (b"", {"a": 1, "b": 1})]
    )
    selected = select(source, **both)
    assert selected.left_out == {"a": 1, "a/missing": 1, "b/missing": 1}
    assert described(selected) == "3 of 4: a 1, a/missing 1, b/missing 1"
    assert described(select(source, most={"b": 9})) == "1 of 4: b/missing 1"


def test_broken_pairs_stay_in_and_are_counted_when_drawn() -> None:
    image, text = encoded_picture(20, 20), {"caption": "a cat", "n": 1}
    source = Made([None, (b"no picture", text), (b"", text), (image[:20], text), (image, text)])
    everything = {"min_side": 20, "max_aspect": 2, "min_characters": 3, "least": {"n": 1}}
    selected = select(source, **everything, duplicates=-1)
    assert (len(selected), selected.left_out) == (5, {})
    with pytest.raises(PairError, match="pair 0 cannot be read"):
        selected[0]
    strict = select(source, min_characters=6)
    assert (len(strict), strict.left_out) == (1, {"caption": 4}), "what can be judged is"


# what a picture shows (None: it cannot be read) and whether the pair meets the other conditions
CONTENTS = st.lists(
    st.tuples(st.sampled_from([*range(4), *range(4), None]), st.sampled_from([True, True, False])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=200)
@given(CONTENTS, st.sampled_from([-1, 0, 1, 2, 3, 5, 100]), st.integers(1, 6), st.integers(1, 9))
def test_duplicates_are_those_within_the_window(
    contents: list[tuple[int | None, bool]], window: int, block: int, step: int
) -> None:
    pairs = [
        None if content is None else (f"picture {content}".encode(), {"n": int(fine)})
        for content, fine in contents
    ]
    expected, meets = [], []
    for i, pair in enumerate(pairs):
        near = range(max(0, i - window) if window >= 0 else 0, i)
        again = pair is not None and any(pairs[j] == pairs[i] for j in near if j in meets)
        if pair is not None and pair[1]["n"]:
            meets.append(i)
        if pair is None or (pair[1]["n"] and not again):
            expected.append(i)
    source = Made([*pairs, None])  # so that one is left
    with mock.patch.multiple(filters, _BLOCK=block, _CHUNK=step):
        selected = select(source, duplicates=window, least={"n": 1})
    assert numbers(selected) == [*expected, len(contents)]
    repeated = len(meets) - len([i for i in expected if i in meets])
    assert selected.left_out.get("duplicate", 0) == repeated
    assert len(selected) + sum(selected.left_out.values()) == len(source)


def many_pairs(name: str) -> Made:
    return Made([(b"", {"n": i % 3}) for i in range(1000)], name)


def test_the_pass_is_made_once_and_mapped_into_memory() -> None:
    source, lines = many_pairs("once"), list[str]()
    with mock.patch.multiple(filters, _BLOCK=64):
        first = Selected(source, Filter(least={"n": 2.0}), threads=4, say=lines.append)
    assert numbers(first) == list(range(2, 1000, 3))
    assert 5 < len(lines) <= 100 and "of 1,000 pairs" in lines[0]
    source.read.clear()
    again = select(source, least={"n": 2})
    assert not source.read and again.left_out == first.left_out == {"n": 667}
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.numbers, np.memmap)
    assert [again[i].name for i in (0, 1, 332)] == ["pair 2", "pair 5", "pair 998"]
    assert len(pickle.dumps(again)) < len(pickle.dumps(source)) + 1000
    assert numbers(pickle.loads(pickle.dumps(again))) == numbers(first)
    with pytest.raises(IndexError):
        again[len(again)]


class Dies(Made):
    """Ends the process that reads its last pair."""

    def __getitem__(self, i: int) -> Pair:
        if i == len(self) - 1:
            os._exit(9)
        return super().__getitem__(i)


def test_processes_select_the_same_pairs_and_a_dead_one_is_reported() -> None:
    pairs = [(b"x" * (i % 300), {"n": i % 3}) for i in range(1000)]
    pair_filter = Filter.from_dict({"least": {"n": 1}, "duplicates": 300})
    ours, theirs = (
        Selected(Made([*pairs], name), pair_filter, processes=n) for name, n in (("t", 0), ("p", 2))
    )
    assert numbers(ours) == numbers(theirs) and ours.left_out == theirs.left_out
    assert 0 < ours.left_out["duplicate"] < 600
    refused(lambda: Selected(Dies([*pairs], "d"), pair_filter, processes=1), "config.data.workers")


def test_the_pass_is_repeated_when_data_or_filter_change() -> None:
    prints = {
        select(many_pairs("a"), most={"n": 1}).fingerprint,
        select(many_pairs("b"), most={"n": 1}).fingerprint,
    }
    prints |= {
        select(many_pairs("a"), most={"n": 0}).fingerprint,
        select(many_pairs("a"), min_side=1).fingerprint,
    }
    by_caption = [
        select(many_pairs("a"), (t,), min_characters=1).fingerprint for t in ("{n}", "{n}{n}")
    ]
    assert len(prints | {*by_caption}) == 6
    other = select(many_pairs("a"), ("{n}",), most={"n": 1}).fingerprint
    assert other in prints, "templates matter where characters are counted"


def cached(selected: Selected) -> Path:
    return files.cache_folder("selection") / f"{selected.fingerprint}.pairs"


@pytest.mark.parametrize("end", [".pairs", ".json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"n": "x"}', b'{"n": 5}', None])
def test_a_damaged_cache_is_made_anew(end: str, content: bytes | None) -> None:
    path = cached(select(many_pairs("damaged"), most={"n": 1})).with_suffix(end)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    again = select(many_pairs("damaged"), most={"n": 1})
    expected = [i for i in range(1000) if i % 3 < 2]
    assert (numbers(again), again.left_out) == (expected, {"n": 333})


def test_it_is_kept_where_indices_are(tmp_path: Path) -> None:
    pair_filter, source = Filter.from_dict({"most": {"n": 1}}), many_pairs("shared")
    for place in (str(tmp_path / "index"), str(tmp_path / "index"), "beside", "s3://bucket/index"):
        assert len(Selected(source, pair_filter, cache=place)) == 667
    ends = {path.suffix for path in (tmp_path / "index").iterdir()}
    assert ends == {".pairs", ".json"} and set(source.read.values()) == {2}, "once in each place"


def test_a_pass_that_is_interrupted_leaves_nothing() -> None:
    source, before = many_pairs("stopped"), {*files.cache_folder("selection").glob("*")}
    started = threading.Event()

    class Stops(Made):
        def __getitem__(self, i: int) -> Pair:
            started.set()
            if i == 900:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        select(Stops(source.pairs, source.name), most={"n": 1})
    assert started.is_set() and before == {*files.cache_folder("selection").glob("*")}
    assert len(select(source, most={"n": 1})) == 667


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = many_pairs("held")
    selected = select(source, most={"n": 0}, duplicates=1)
    assert set(source.read.values()) == {1}
    assert (
        numbers(pickle.loads(pickle.dumps(selected)))
        == numbers(selected)
        == list(range(0, 1000, 3))
    )


def test_a_cache_that_is_removed_while_in_use_is_named() -> None:
    selected = select(many_pairs("removed"), most={"n": 1})
    sent = pickle.dumps(selected)
    cached(selected).unlink()
    refused(lambda: pickle.loads(sent), cached(selected), "start again")


def test_a_filter_that_leaves_nothing_is_a_one_line_error_now_and_later() -> None:
    for _ in range(2):
        refused(
            lambda: select(many_pairs("none"), least={"n": 3}),
            "config.data.filter",
            "1,000 of 1,000: n",
        )


def test_an_animated_picture_and_a_bomb_are_no_trouble() -> None:
    file = io.BytesIO()
    frames = [picture(i, (30, 20)) for i in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    bomb = bytearray(encoded_picture(20, 20))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    selected = select(Made([(file.getvalue(), {}), (bytes(bomb), {})]), max_side=25)
    assert numbers(selected) == [1], "counted when it is drawn: Pillow does not open it"
