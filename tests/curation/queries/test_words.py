"""Words of any script, and what parts them."""

import sys
import types

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.curation.queries.words import (
    BREAK,
    joined,
    segmenter_of,
    split_characters,
    split_words,
)
from clip_jax.errors import UserError


def words(text):
    """The words of a text; a bar where two of them do not touch."""
    tokens = split_words(text, split_characters)
    text = " ".join("|" if token == BREAK else token for token in tokens)
    while "| |" in text:
        text = text.replace("| |", "|")
    return text.strip("| ")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The red fox, isn't it?", "The red fox | isn't it"),
        ("a well-known\nfox_den  3.14 and 42nd", "a well | known | fox | den 3 | 14 and 42nd"),
        ("'quoted' rock 'n' ''x'' the dogs' l’été", "quoted | rock | n | x | the dogs | l’été"),
        ("straße Ünïcode naı̈ve", "straße Ünïcode naı̈ve"),
        ("हिन्दी में किताब। नई", "हिन्दी में किताब | नई"),
        ("می‌خواهم کتاب", "می‌خواهم کتاب"),
        ("빨간 여우는 달린다", "빨간 여우는 달린다"),
        ("赤いテレビ、です", "赤 い テレビ | で す"),
        ("iPhone手机 ok", "iPhone | 手 机 | ok"),
        ("กำลัง ดี", "กำ ลั ง | ดี"),
        ("a\0b", "a | b"),
        ("", ""),
        ("—'— '", ""),
    ],
)  # fmt: skip
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=60))
def test_words_are_letters_marks_and_digits(text):
    tokens = split_words(text, split_characters)
    for token in tokens:
        if token != BREAK:
            assert regex.fullmatch(r"[\p{L}\p{M}\p{N}'’\u200c\u200d]+", token)
            assert token[0] not in "'’" and token[-1] not in "'’"
    assert sorted("".join(c for c in text if c.isalnum())) == sorted(
        "".join(c for token in tokens for c in token if c.isalnum())
    )


def test_bigrams_of_scripts_without_spaces_are_joined():
    assert joined("red", "fox") == "red fox"
    assert joined("赤", "い") == "赤い" and joined("テレビ", "局") == "テレビ局"
    assert joined("빨간", "여우") == "빨간 여우"


def test_a_segmenter_of_the_users(monkeypatch):
    module = types.ModuleType("my_segmenter")
    module.pairs = lambda run: [run[i : i + 2] for i in range(0, len(run), 2)]
    module.fails = lambda run: 1 / 0
    module.wrong = lambda run: [1]
    monkeypatch.setitem(sys.modules, "my_segmenter", module)
    pairs = segmenter_of("my_segmenter:pairs")
    assert split_words("x 手机电 y", pairs) == ["x", BREAK, "手机", "电", BREAK, "y"]
    with pytest.raises(UserError, match=r"--segmenter=my_segmenter:fails on '手机' fails: ZeroDiv"):
        split_words("手机", segmenter_of("my_segmenter:fails"))
    with pytest.raises(UserError, match="must return strings"):
        split_words("手机", segmenter_of("my_segmenter:wrong"))
    with pytest.raises(UserError, match="no segmenter has this name"):
        segmenter_of("nothing")
