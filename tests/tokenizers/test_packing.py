"""Rows without the columns that no text reaches, and without some of their tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.tokenizers import packing
from clip_jax.tokenizers.packing import drop, trim

START, END = 98, 99


def row(ids: list[int], width: int) -> list[int]:
    ids = [START, *ids[: width - 2], END]
    return ids + [0] * (width - len(ids))


@given(
    st.integers(3, 40).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 97), max_size=width).map(lambda ids: row(ids, width)),
            min_size=1,
            max_size=4,
        )
    ),
    st.integers(1, 50),
)
def test_all_texts_stay_whole_and_nothing_else_does(texts: list[list[int]], multiple: int) -> None:
    rows = np.array(texts, np.int32)
    cut = trim(rows, multiple)
    longest = max(text.index(END) for text in texts) + 1
    assert np.array_equal(cut, rows[:, : cut.shape[1]])
    assert cut.shape[1] >= longest
    assert cut.shape[1] == rows.shape[1] or cut.shape[1] % multiple == 0
    assert cut.shape[1] - longest < multiple


@given(
    st.lists(st.integers(1, 97), max_size=9),
    st.integers(0, 3),
    st.floats(0, 0.999),
    st.integers(0, 2**32 - 1),
)
def test_dropped_tokens_leave_a_row_of_the_rest(
    ids: list[int], padding: int, rate: float, seed: int
) -> None:
    row = np.array([START, *ids, END, *[7] * padding], np.int32)
    dropped = drop(row, rate, 7, np.random.default_rng(seed))
    assert dropped.shape == row.shape and dropped.dtype == row.dtype
    end = int(dropped.argmax())
    assert dropped[0] == START and dropped[end] == END and (dropped[end + 1 :] == 7).all()
    rest = iter(ids)
    assert all(any(token == other for other in rest) for token in dropped[1:end]), "in order"
    assert bool(ids) == (end > 1), "never empty"


@given(
    st.lists(st.integers(2, 97), max_size=9),
    st.integers(1, 3),
    st.floats(0, 0.999),
    st.integers(0, 2**32 - 1),
)
def test_rows_without_start_may_lose_their_first_and_last_ids(
    ids: list[int], padding: int, rate: float, seed: int
) -> None:
    row = np.array([*ids, *[1] * padding], np.int32)
    dropped = drop(row, rate, 1, np.random.default_rng(seed), has_start=False)
    left = [int(token) for token in dropped if token != 1]
    assert (dropped[len(left) :] == 1).all()
    rest = iter(ids)
    assert all(any(token == other for other in rest) for token in left), "in order"
    assert bool(ids) == bool(left), "never empty"


def test_every_place_of_a_row_without_start_is_dropped_alike() -> None:
    row = np.array([10, 11, 12, 13, 1], np.int32)
    rng = np.random.default_rng(0)
    left = np.concatenate([drop(row, 0.5, 1, rng, has_start=False) for _ in range(1000)])
    shares = [np.mean(left == token) * len(row) for token in row[:-1]]
    assert all(0.45 < share < 0.6 for share in shares)


def test_the_end_need_not_be_the_largest_id() -> None:
    rows = np.array([[2, 50, 60, 3, 0, 0, 0, 0], [2, 0, 3, 0, 0, 0, 0, 0]], np.int32)
    assert trim(rows, 1).tolist() == [[2, 50, 60, 3], [2, 0, 3, 0]]
    assert drop(rows[0], 0.9999, 0, np.random.default_rng(0)).tolist() in (
        [[2, 50, 3, 0, 0, 0, 0, 0], [2, 60, 3, 0, 0, 0, 0, 0]]
    )
    assert trim(np.where(rows == 0, 9, rows), 1, pad_id=9).shape == (2, 4)


def test_the_share_of_dropped_tokens() -> None:
    rng = np.random.default_rng(0)
    row = np.array([START, *range(1, 41), END], np.int32)
    left = [drop(row, 0.25, 0, rng).argmax() - 1 for _ in range(200)]
    assert 29 < np.mean(left) < 31
    assert (drop(row, 0.0, 0, rng) == row).all()


class Places:
    """A tokenizer that gives a character's code as its id, and remembers how much it was given."""

    context_length, sot_id, eot_id, pad_id, vocab_size = 4, 1, 2, 0, 1 << 21
    longest = 0

    def encode(self, text: str) -> list[int]:
        self.longest = max(self.longest, len(text))
        return list(map(ord, text))


def test_only_the_start_of_a_very_long_text_is_encoded() -> None:
    tokenizer = Places()
    most = packing.CHARACTERS * 4
    for text in ("x" * most, "x" * 10**6, " " * 10**6 + "xx" + "\t" * 10**6, "xx \n y" * 10**5):
        assert packing.pack(tokenizer, text, truncate=True).tolist() == [[1, 120, 120, 2]]
        assert tokenizer.longest <= most
    with pytest.raises(UserError, match="takes 1000002 tokens"):
        packing.pack(tokenizer, "x" * 10**6)


class Numbers:
    """A tokenizer of texts of numbers."""

    vocab_size, context_length, sot_id, eot_id, pad_id = 100, 6, START, END, 0

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]


LONG = list(range(1, 21))


def shortened(way: str, seed: int, ids: list[int] = LONG) -> list[int]:
    shorten = packing.shortener(way, np.random.default_rng(seed))
    text = " ".join(map(str, ids))
    return packing.pack(Numbers(), text, truncate=True, shorten=shorten)[0].tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["block", "random", "shuffle"])
def test_any_tokens_of_a_long_text_can_stay_between_start_and_end(way: str) -> None:
    rows = [shortened(way, seed) for seed in range(200)]
    assert all(row[0] == START and row[-1] == END for row in rows)
    kept = [row[1:-1] for row in rows]
    assert all(len(set(ids)) == 4 for ids in kept)
    assert {place for ids in kept for place in ids} == set(LONG)
    assert rows == [shortened(way, seed) for seed in range(200)], "by the seed alone"
    assert all(ids == sorted(ids) for ids in kept) == (way != "shuffle")
    assert all(ids[-1] - ids[0] == 3 for ids in kept) == (way == "block")


@pytest.mark.parametrize("way", ["truncate", "block", "random", "shuffle"])
def test_a_text_that_fits_stays_as_it_is(way: str) -> None:
    assert shortened(way, 0, [3, 1, 2, 4]) == [START, 3, 1, 2, 4, END]
    assert shortened(way, 0, [3]) == [START, 3, END, 0, 0, 0]


def test_truncation_keeps_the_first_tokens() -> None:
    assert shortened("truncate", 0) == [START, 1, 2, 3, 4, END]
