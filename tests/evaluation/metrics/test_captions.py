"""BLEU-4 and CIDEr-D against pycocoevalcap 1.2 and sacrebleu 2.6.0."""

from __future__ import annotations

import numpy as np
import pytest

from clip_jax.evaluation.metrics.captions import bleu4, cider_d, words

REFERENCES = [
    ["a cat sits on a red mat", "a red mat with a cat on it", "cat on the mat"],
    ["two dogs run across the green field", "dogs running in a field"],
    [
        "a man rides a bicycle down the street",
        "a person on a bike in the city",
        "man riding a bike on a street",
        "a cyclist",
    ],
    [
        "a bowl of fruit on the table",
        "fruit in a bowl",
        "apples and pears in a bowl on a wooden table",
    ],
]
WRITTEN = [
    "a cat sits on the mat on a mat",
    "two dogs run in the field",
    "a man riding a bike down the street in the city",
    "a bowl of apples on a table",
]


def test_scores_are_those_of_other_packages() -> None:
    written = [words(text) for text in WRITTEN]
    references = [[words(text) for text in true] for true in REFERENCES]
    cider = [2.450004072012621, 2.4450027710936704, 1.9767965145705955, 2.1696249292315906]
    np.testing.assert_allclose(cider_d(written, references), cider, rtol=1e-9)
    assert bleu4(written, references) == pytest.approx(0.37802370116633, rel=1e-9)
    short = ["a cat on a mat", "two dogs run", "a man rides a bike", "fruit in a bowl on a table"]
    assert bleu4([words(text) for text in short], references) == pytest.approx(0.6325247553)


def test_captions_that_share_nothing_score_zero() -> None:
    references = [[words(text) for text in true] for true in REFERENCES]
    other, same = [words("x y z")] * 4, [true[0] for true in references]
    assert bleu4(other, references) == 0 and cider_d(other, references) == [0] * 4
    assert bleu4(same, references) == 1
    assert min(cider_d(same, [[text] for text in same])) == pytest.approx(10)


def test_words_are_those_of_the_penn_treebank() -> None:
    assert words("Don't stop: the dog's black-and-white ball, 2.5 cm!") == (
        *("do", "n't", "stop", "the", "dog", "'s", "black-and-white", "ball", "2.5", "cm"),
    )
