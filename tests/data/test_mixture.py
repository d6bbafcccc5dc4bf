"""Which pair stands where: every source evenly, every epoch exactly, for ever."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import grain
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_jax.data import mixture
from clip_jax.data.filters import Selected
from clip_jax.data.mixture import Mixture, PairPosition, Part
from clip_jax.data.sources.tars import TarSource
from support import TarFactory, refused


def mixed(*sizes: tuple[int, int]) -> Mixture:
    """Of sources of so many pairs, so many rows each."""
    return Mixture([Part(f"{k}", range(pairs), rows) for k, (pairs, rows) in enumerate(sizes)])  # type: ignore[arg-type]


def places(mixture_: Mixture, count: int, seed: int) -> list[PairPosition]:
    return [mixture_.place(position, seed) for position in range(count)]


def test_a_single_source_keeps_the_order_that_it_always_had() -> None:
    alone, named = Mixture.from_source(range(10)), mixed((10, 10))  # type: ignore[arg-type]
    expected = [4, 7, 0, 8, 2, 5, 3, 6, 1, 9, 0, 6, 9, 1, 8, 7, 5, 4, 3, 2]
    assert [alone.place(p, 3).pair for p in range(20)] == expected
    assert places(named, 20, 3) == places(alone, 20, 3), "nothing to mix it with"
    assert Mixture.from_source(named) is named


@given(st.integers(1, 10**10), st.integers(0, 2**32 - 1), st.integers(0, 2**50))
def test_a_single_source_has_grains_shuffle_of_each_epoch(
    pairs: int, seed: int, position: int
) -> None:
    epoch, at = divmod(position, pairs)
    shuffled = grain.experimental.index_shuffle(
        at, max_index=pairs - 1, seed=(seed + 0x9E3779B1 * epoch) % 2**32, rounds=4
    )
    assert Mixture.from_source(range(pairs)).place(position, seed) == PairPosition(
        0, epoch, shuffled
    )  # type: ignore[arg-type]


# grain's shuffle of a few takes milliseconds: it walks in 65,536 until it meets one of them
SIZES = st.lists(st.tuples(st.integers(30, 90), st.integers(1, 90)), min_size=1, max_size=4)


@settings(max_examples=15)
@given(SIZES, st.integers(0, 2**32 - 1))
@example([(1, 2), (2, 1), (3, 4)], 0)
def test_every_epoch_of_every_source_has_each_pair_once(
    sizes: list[tuple[int, int]], seed: int
) -> None:
    mixture_, epochs = mixed(*sizes), 3
    assert (len(mixture_), mixture_.pairs) == (sum(r for _, r in sizes), sum(n for n, _ in sizes))
    rows = places(mixture_, epochs * len(mixture_), seed)
    for epoch in range(epochs):
        of_epoch = rows[epoch * len(mixture_) : (epoch + 1) * len(mixture_)]
        assert Counter(row.part for row in of_epoch) == {k: r for k, (_, r) in enumerate(sizes)}
    for k, (pairs, count) in enumerate(sizes):
        counts = Counter(row[1:] for row in rows if row.part == k)
        full_epochs, rest = divmod(epochs * count, pairs)
        assert set(counts.values()) == {1}, "no pair comes twice in an epoch of its source"
        assert Counter(epoch for epoch, _ in counts) == Counter(
            {**dict.fromkeys(range(full_epochs), pairs), **({full_epochs: rest} if rest else {})}
        )


def test_a_mixture_is_shuffled_as_a_whole_and_anew_every_epoch() -> None:
    mixture_ = mixed((500, 500), (900, 500))
    rows = places(mixture_, 2000, 7)
    for first in range(0, 2000, 100):
        assert 30 < sum(row.part for row in rows[first : first + 100]) < 70
    parts = [row.part for row in rows]
    assert parts[:1000] != parts[1000:]
    assert parts != [row.part for row in places(mixture_, 2000, 8)]
    orders = [
        tuple(row.pair for row in rows if (row.part, row.epoch) == (0, epoch)) for epoch in (0, 1)
    ]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    alike = places(mixed((500, 250), (500, 250)), 500, 7)
    one, two = ({row.pair for row in alike if row.part == part} for part in (0, 1))
    assert 80 < len(one & two) < 170, "each has an order of its own"


@given(
    st.integers(0, 10**12),
    st.lists(st.floats(1e-3, 1e3) | st.integers(1, 10), min_size=1, max_size=9),
)
def test_rows_are_shared_by_weight_to_within_one(total: int, weights: list[float]) -> None:
    rows = mixture.split_rows(total, weights)
    assert sum(rows) == total
    for count, weight in zip(rows, weights, strict=True):
        assert abs(count - Fraction(weight) * total / sum(map(Fraction, weights))) < 1


@pytest.mark.parametrize(
    ("total", "weights", "rows"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [3.0, 1.0], [8, 2]),  # 7.5 and 2.5
        (7, [0.1, 0.2, 0.4], [1, 2, 4]),
        (0, [1, 2], [0, 0]),
    ],
)
def test_the_largest_remainders_round_up(total: int, weights: list[float], rows: list[int]) -> None:
    assert mixture.split_rows(total, weights) == rows


@pytest.fixture
def two(tar_factory: TarFactory) -> dict[str, dict[str, Any]]:
    def fields(i: int) -> dict[str, Any]:
        return {"title": f"title {i}", "score": i}

    return {
        "small": {"data": str(tar_factory("small.tar", pairs=4))},
        "large": {"data": str(tar_factory("large.tar", pairs=6, fields=fields))},
    }


def open_lines(mix: dict[str, dict[str, Any]], **data: Any) -> tuple[Mixture, list[str]]:
    lines: list[str] = []
    data = {"train": "", "mix": mix, "captions": ("{caption}",), **data}
    return mixture.open_mixture(data, lines.append), lines


def with_keys(mix: dict[str, dict[str, Any]], **keys: Any) -> dict[str, dict[str, Any]]:
    """Values of each key for `small` and `large`; None: not given."""
    names = ("small", "large")
    for (key, values), (k, name) in itertools.product(keys.items(), enumerate(names)):
        mix[name] |= {key: values[k]} if values[k] is not None else {}
    return mix


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        ({}, {"small": 4, "large": 6}),
        ({"epochs": (2.0, 0.5)}, {"small": 8, "large": 3}),
        ({"weight": (3, 1)}, {"small": 7, "large": 3}),
    ],
)
def test_a_config_names_what_is_mixed(
    two: dict[str, dict[str, Any]], keys: dict[str, Any], rows: dict[str, int]
) -> None:
    mix = with_keys(two, captions=(None, ("{title}", "a {title}")), **keys)
    mix["large"]["caption_weights"] = (3, 1)
    mixture_, lines = open_lines(mix)
    assert not lines
    assert [part.name for part in mixture_.parts] == ["large", "small"], "by name, however written"
    assert {part.name: part.rows for part in mixture_.parts} == rows
    large, small = mixture_.parts
    assert (small.templates, small.weights) == (("{caption}",), ())
    assert (large.templates, large.weights) == (("{title}", "a {title}"), (3, 1))
    again = pickle.loads(pickle.dumps(mixture_))
    assert places(again, 50, 1) == places(mixture_, 50, 1)


def test_a_filter_is_of_one_source_or_of_all(two: dict[str, dict[str, Any]]) -> None:
    mix = with_keys(two, captions=(None, "{title}"), filter=(None, {"least": {"score": 4}}))
    mixture_, lines = open_lines(mix, filter={"min_characters": 1})
    large, small = (part.source for part in mixture_.parts)
    assert isinstance(large, Selected) and isinstance(small, Selected) and not lines
    assert (len(large), large.left_out) == (2, {"score": 4})
    assert (len(small), small.left_out) == (4, {})
    assert len(mixture_) == mixture_.pairs == 6
    del mix["large"]["filter"]
    assert isinstance(open_lines(mix)[0].parts[0].source, TarSource)


def test_a_template_that_the_first_pairs_do_not_fill_is_reported(
    two: dict[str, dict[str, Any]],
) -> None:
    large = two["large"]["data"]
    data = {"train": large, "captions": ("{titel}", "{title}"), "caption_weights": ()}
    mixture_, (line,) = open_lines({}, **data)
    assert "'{titel}'" in line and [part.name for part in mixture_.parts] == [""]
    refused(lambda: open_lines({}, **data | {"captions": ("{titel}",)}), large, "'titel'", "title")


def test_a_share_of_no_row_is_refused(two: dict[str, dict[str, Any]]) -> None:
    refused(
        lambda: open_lines(with_keys(two, weight=(1, 1e-9), captions=(None, "{title}"))),
        "config.data.mix.large.weight=1e-09",
        "no row",
    )


def test_neither_one_source_nor_several(tmp_path: Path) -> None:
    refused(lambda: open_lines({}), "config.data.train", "config.data.mix")
