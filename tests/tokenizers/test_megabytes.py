"""Captions that nobody wrote: each becomes a row, in every tokenizer, soon enough to go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_jax import tokenizers

GOLDEN = Path(__file__).parents[1] / "golden" / "siglip.model"
PARTS = {
    "a letter": "a",
    "words": "a b ",
    "spaces": " ",
    "marks": "!",
    "accents": "\u0301",
    "emoji": "😀",
    "families": "👩\u200d",
    "ampersands": "&",
    "entities": "&amp;amp;",
    "mojibake": "Ã©",
    "a phrase in a letter": "\ufdfa",
    "half a pair": "\ud800",
    "pairs apart": "\ud83d\ude00",
    "an entity of half a pair": "&#xD800;",
    "nothing": "\0",
    "escapes": "\x1b[31m",
    "backwards": "\u202e",
    "special tokens": "<|endoftext|>[SEP]</s>",
    "han": "日",
    "sigma": "Σ",
    "lines": "\n\r\u2028",
}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> list[tokenizers.Tokenizer]:
    """One of each kind."""
    vocabulary = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##a\n!")
    names = ("clip", "sentencepiece:embedded:emoji/emoji.model", f"siglip:{GOLDEN}")
    return [tokenizers.load(name) for name in (*names, f"wordpiece:{vocabulary}")]


@pytest.mark.parametrize("kind", PARTS)
def test_a_megabyte_is_a_row(every: list[tokenizers.Tokenizer], kind: str) -> None:
    for text in (PARTS[kind], PARTS[kind] * (1_000_000 // len(PARTS[kind]))):
        for tokenizer in every:
            (row,) = tokenizer(text, truncate=True)
            assert row.shape == (tokenizer.context_length,)
            assert tokenizer.eot_id in row and 0 <= row.min() <= row.max() < tokenizer.vocab_size
            np.testing.assert_array_equal(row, tokenizer(text, truncate=True)[0])
