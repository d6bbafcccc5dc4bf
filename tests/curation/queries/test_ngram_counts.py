"""Counts of words and bigrams, and mutual information, against plain references."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics  # 460 kB of English that every Python ships: its own reference

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.curation.queries.ngram_counts import NgramCounter, select_bigrams
from clip_jax.curation.queries.saved_counts import add_saved_counts, save_counts
from clip_jax.curation.queries.words import BREAK, split_characters, split_words

TEXT = "\n".join(topics.topics.values())


def reference(tokens):
    words = Counter(token for token in tokens if token != BREAK)
    bigrams = Counter(pair for pair in pairwise(tokens) if BREAK not in pair)
    return words, bigrams


def reference_pmi(words, bigrams):
    """NLTK's formula, as MetaCLIP uses it: BigramAssocMeasures.pmi."""
    total = sum(words.values())
    return {
        (a, b): math.log2(n * total) - math.log2(words[a] * words[b])
        for (a, b), n in bigrams.items()
    }


def counts_of(counter):
    bigrams = Counter()
    for keys, counts in counter.bigrams():
        assert np.all(np.diff(keys.astype(object)) > 0)
        bigrams.update(dict(zip(counter.texts(keys), counts.tolist(), strict=True)))
    return Counter(dict(counter.words())), bigrams


@pytest.mark.parametrize("memory", [1 << 30, 40 * 3000])
def test_counts_of_a_real_text_are_exact(tmp_path, memory):
    counter = NgramCounter(tmp_path, memory)
    everything = []
    for start in range(0, len(TEXT), 20_000):
        tokens = split_words(TEXT[start : start + 20_000], split_characters)
        counter.add(tokens)
        everything += [*tokens, BREAK]
    words, bigrams = reference(everything)
    assert counts_of(counter) == (words, bigrams)
    assert counter.total == words.total() > 60_000
    assert bool(counter.stored) == (memory < 1 << 30)
    assert list(tmp_path.iterdir()) == []  # nothing is left of a process that is killed
    assert counts_of(counter)[1] == bigrams  # a second time

    expected = reference_pmi(words, bigrams)
    selected, left_out = select_bigrams(counter, 8.0, 3)
    assert {(b.first, b.second): b.count for b in selected} == {
        pair: n for pair, n in bigrams.items() if n >= 3 and expected[pair] >= 8
    }
    assert len(selected) > 300
    for b in selected:
        assert b.pmi == pytest.approx(expected[b.first, b.second], rel=1e-12)
    assert [b.pmi for b in selected] == sorted((b.pmi for b in selected), reverse=True)
    assert sum(left_out.values()) + len(selected) == len(bigrams)


@pytest.mark.parametrize("memory", [1 << 30, 40 * 3000])
def test_saved_counts_are_added(tmp_path, memory):
    first, both = NgramCounter(tmp_path, memory), NgramCounter(tmp_path, memory)
    tokens = split_words(TEXT[:100_000], split_characters)
    first.add(tokens)
    save_counts(first, tmp_path / "counts")
    more = ["zebra", *tokens[::-1]]
    both.add(more)
    add_saved_counts(both, tmp_path / "counts")
    words, bigrams = reference([*tokens, BREAK, *more])
    assert counts_of(both) == (words, bigrams)


TOKENS = st.lists(st.sampled_from([BREAK, *"abcd"]), max_size=12)


@settings(max_examples=60)
@given(st.lists(TOKENS, max_size=6), st.integers(1, 400))
def test_counts_do_not_depend_on_memory(tmp_path_factory, blocks, memory):
    counter = NgramCounter(tmp_path_factory.mktemp("runs"), memory)
    words, bigrams = Counter(), Counter()
    for tokens in blocks:
        counter.add(tokens)
        more = reference(tokens)
        words.update(more[0])
        bigrams.update(more[1])
    assert counts_of(counter) == (words, bigrams)


def test_counts_of_files_are_added(tmp_path):
    counter = NgramCounter(tmp_path, 40)
    counter.add(["a", "b", "a", "b"])
    counter.add_word("b", 2**40)
    counter.add_bigrams([("a", "b"), ("b", "z"), ("a", "b")], [5, 7, 2**40])
    words, bigrams = counts_of(counter)
    assert words == {"a": 2, "b": 2 + 2**40}
    assert bigrams == {("a", "b"): 7 + 2**40, ("b", "a"): 1, ("b", "z"): 7}
    selected, left_out = select_bigrams(counter, -100.0, 1)
    assert len(selected) == 2 and left_out["with a word of no count"] == 1


def test_the_highest_information_is_that_of_words_seen_only_together():
    counter = NgramCounter(Path())
    counter.add(["x", "y"])
    counter.add(["the", BREAK] * 1022)
    (bigram,), _ = select_bigrams(counter, 0.0, 1)
    assert bigram.pmi == pytest.approx(10)  # log2(1024)
