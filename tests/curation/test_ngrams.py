"""Frequent words and pairs of words."""

import numpy as np

from clip_jax.curation import ngrams
from clip_jax.curation.hashing import text_hash


def test_words_and_pairs_are_told_apart() -> None:
    starts, values = ngrams.hashes(["A dog", None, "dog", "dog a"])
    assert starts.tolist() == [0, 3, 3, 4, 7]
    assert values[:2].tolist() == [text_hash("a"), text_hash("dog")]
    assert values[3] == values[1]
    assert values[2] not in (values[0], values[1], values[6])  # "a dog" is not "dog a"


def test_captions_with_rare_ones_are_found() -> None:
    texts = ["a dog"] * 3 + ["a cat"] * 2 + ["a yak", "", None]
    starts, values = ngrams.hashes(texts)
    distinct, counts = ngrams.counted(values, np.ones(len(values), np.int64))
    assert sorted(counts.tolist()) == [1, 1, 2, 2, 3, 3, 6]
    histogram = {1: 2, 2: 2, 3: 2, 6: 1}
    # the five most frequent are a, dog, a dog, cat, a cat
    assert [ngrams.least_count(histogram, most) for most in (7, 6, 5, 4, 1)] == [1, 2, 2, 3, 4]
    frequent = distinct[counts >= ngrams.least_count(histogram, 5)]
    expected = [False] * 5 + [True, False, False]
    assert ngrams.has_rare(starts, values, frequent).tolist() == expected
    assert ngrams.has_rare(starts, values, frequent[:0]).tolist() == [True] * 6 + [False] * 2
