"""Sums by key do not depend on what fits into memory."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.curation.queries import sorted_runs
from clip_jax.curation.queries.sorted_runs import SortedRuns

KEYS = st.integers(0, 30) | st.integers((1 << 64) - 9, (1 << 64) - 2)
BLOCKS = st.lists(st.tuples(st.lists(KEYS, max_size=9), st.none() | st.integers(1, 1 << 50)))


@settings(max_examples=100)
@given(BLOCKS, st.integers(1, 20), st.integers(1, 3))
def test_sums(tmp_path_factory, blocks, capacity, most_runs):
    runs, expected = SortedRuns(tmp_path_factory.getbasetemp(), capacity), Counter()
    before, sorted_runs._MAX_RUNS = sorted_runs._MAX_RUNS, most_runs
    try:
        for keys, count in blocks:
            counts = None if count is None else np.full(len(keys), count)
            runs.add(np.array(keys, np.uint64), counts)
            expected.update({key: keys.count(key) * (count or 1) for key in set(keys)})
        for _ in range(2):
            merged = list(runs.merged())
            keys = [key for block, _ in merged for key in block.tolist()]
            assert keys == sorted(expected)
            counts = [count for _, block in merged for count in block.tolist()]
            assert dict(zip(keys, counts, strict=True)) == expected
    finally:
        sorted_runs._MAX_RUNS = before


def test_blocks_fit_into_the_buffer(tmp_path):
    capacity = 1000
    runs = SortedRuns(tmp_path, capacity)
    rng = np.random.default_rng(0)
    for _ in range(150):  # over 64 runs, so that they are merged on the way
        runs.add((rng.zipf(1.2, 900) % 50_000).astype(np.uint64) << np.uint64(32))
        runs.add(rng.integers(0, 1 << 63, 600, np.uint64))
    assert runs.stored > 50 * capacity
    assert max(len(keys) for keys, _ in runs.merged()) <= capacity
