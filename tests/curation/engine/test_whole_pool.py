"""Rules that compare a pair with all others, on rows of several chunks."""

import numpy as np

from clip_jax.curation.engine import whole_pool
from clip_jax.curation.engine.job import Rows


def rows(chunk: int, key: list[int], other: list[int], place: list[int] | None = None) -> Rows:
    places = np.array(range(len(key)) if place is None else place, np.uint32)
    return Rows((0, chunk), np.array(key, np.uint64), np.array(other, np.uint64), places)


def marks(found) -> dict[int, list[int]]:
    result: dict[int, list[int]] = {}
    for (_, chunk), (reason, places) in found:
        assert reason == "why"
        result.setdefault(chunk, []).extend(places.tolist())
    return result


def test_repeated_pairs_keep_the_first_of_the_pool_in_any_order_of_arrival() -> None:
    parts = [rows(9, [5, 6], [0, 0], [3, 4]), rows(2, [6, 7, 6], [0, 0, 0])]
    for order in (parts, parts[::-1]):
        assert marks(whole_pool.repeated(order, "why")) == {2: [2], 9: [4]}


def test_texts_are_counted_once_for_each_image() -> None:
    # text 1 has the images 1, 2, 3; text 2 has the image 1 four times
    parts = [rows(0, [1, 2, 1, 2], [1, 1, 2, 1]), rows(1, [2, 1, 2], [1, 3, 1])]
    assert marks(whole_pool.with_many_others(parts, "why", 2)) == {0: [0, 2], 1: [1]}
    assert marks(whole_pool.with_many_others(parts, "why", 3)) == {}


def test_near_ones_are_compared_within_a_band() -> None:
    parts = [rows(0, [1, 1, 2], [0b0000, 0b1111, 0b0001]), rows(1, [1, 2], [0b0001, 0b0011])]
    assert marks(whole_pool.near(parts, "why", 1)) == {1: [0, 1]}
