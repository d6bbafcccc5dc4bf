"""Rows without the columns that no text reaches."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.tokenizers.packing import trim

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
