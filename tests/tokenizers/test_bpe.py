"""The ids are OpenAI's, the short cuts change nothing, and rows are packed as CLIP's."""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import json
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer, load
from clip_jax.tokenizers import bpe as bpe_module
from clip_jax.tokenizers.bpe import (
    BPE,
    EOT,
    FIRST_MERGE,
    MERGES_FILE,
    SOT,
    symbols,
    vocabulary,
    write_hugging_face,
)
from clip_jax.tokenizers.cleaning import clean

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "bpe_ids.json").read_text(encoding="ascii")
)
OPENAI = {
    "Hello World!": [3306, 1002, 256],
    "a photo of a cat.": [320, 1125, 539, 320, 2368, 269],
    "it's don't we're I'm": [585, 568, 847, 713, 649, 982, 328, 880],
    "naïve café — “quotes” …": [1097, 35689, 563, 15304, 2005, 257, 5808, 257, 959],
    "&amp;amp; &lt;b&gt;": [261, 283, 321, 285],
    "日本語 テスト 😀": [39121, 44353, 34002, 508, 2429, 228, 32421, 486, 7334],
    "2021 3.14": [273, 271, 273, 272, 274, 269, 272, 275],
    "<|endoftext|> x <|STARTOFTEXT|>": [49407, 343, 49406],
    "Ａｂｃ ﬁsh": [5334, 2759],
    "sâ€™il": [338, 262, 958],
    "": [],
}

FRAGMENTS = [
    *["cat", "Dog's", "it'll", "I'M", "the", "antidisestablishmentarianism", "aaaa", "42", "3.14"],
    *["&", "& ", "&amp;", "&amp;lt;", "&lt", "&#39;", "&#x1F600;", "&#28;", "&EACUTE;", "&notit;"],
    *["&\t", "&\r", "&\n#", "&\f", "<b>", "</w>", "<|endoftext|>", "<|StartOfText|>", "<|", "|>"],
    *[
        "\x00",
        "\x07",
        "\x0b",
        "\x1b",
        "\x1b[31m",
        "\x1c",
        "\x1f",
        "\x7f",
        "\x85",
        "\ud83d",
        "\ufeff",
    ],
    *[" ", "  ", "\t", "\n", "\r\n", "\f", "\u00a0", "\u2028", "\u3000", "\u200b"],
    *[
        "é",
        "Ã©",
        "â€™",
        "’s",
        "'ſ",
        "ﬁ",
        "Ａ",
        "İ",
        "Σ",
        "日本語",
        "ไทย",
        "😀",
        "👩‍👩‍👧",
        "½",
        "e\u0301",
    ],
]
texts = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.text(st.characters(max_codepoint=255), max_size=40),
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join),
)


@functools.cache
def published_ranks() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Symbol → id and pair → rank by the published recipe, nothing taken from clip_jax."""
    lines = gzip.decompress(MERGES_FILE.read_bytes()).decode().split("\n")
    pairs = [(line.split()[0], line.split()[1]) for line in lines[1:48895]]
    symbols = list(map(spelling, [*range(33, 127), *range(161, 173), *range(174, 256)]))
    symbols += [chr(256 + n) for n in range(68)]
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += ["".join(pair) for pair in pairs] + ["<|startoftext|>", "<|endoftext|>"]
    return (
        {symbol: i for i, symbol in enumerate(symbols)},
        {pair: rank for rank, pair in enumerate(pairs)},
    )


def spelling(byte: int) -> str:
    unprintable = [*range(33), *range(127, 161), 173]
    return chr(256 + unprintable.index(byte)) if byte in unprintable else chr(byte)


def cleaned_slowly(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return str(regex.sub(r"\s+", " ", text)).strip()


def encoded_slowly(text: str) -> list[int]:
    """The published algorithm at its plainest: no short cut, no cache, whole passes."""
    ids, ranks = published_ranks()
    words = regex.findall(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        cleaned_slowly(text).lower(),
        regex.IGNORECASE,
    )
    encoded = []
    for word in words:
        if word in ("<|startoftext|>", "<|endoftext|>"):
            encoded.append(ids[word])
            continue
        parts = [spelling(byte) for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda p: ranks.get(p, 1 << 30))
            if best not in ranks:
                break
            merged = []
            i = 0
            while i < len(parts):
                width = 2 if tuple(parts[i : i + 2]) == best else 1
                merged.append("".join(parts[i : i + width]))
                i += width
            parts = merged
        encoded += [ids[part] for part in parts]
    return encoded


@pytest.fixture(scope="module")
def tokenizer() -> BPE:
    return BPE()


@pytest.mark.parametrize("text", OPENAI)
def test_openai_golden_ids(tokenizer: BPE, text: str) -> None:
    assert tokenizer.encode(text) == OPENAI[text]


def test_released_golden_ids(tokenizer: BPE) -> None:
    assert len(GOLDEN["texts"]) > 300
    wrong = [entry for entry in GOLDEN["texts"] if tokenizer.encode(entry["text"]) != entry["ids"]]
    assert wrong == []


def test_the_merges_are_the_released_ones() -> None:
    assert hashlib.sha256(MERGES_FILE.read_bytes()).hexdigest() == GOLDEN["merges_sha256"]


def test_protocol_and_special_ids(tokenizer: BPE) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.context_length) == (49408, 77)
    assert (tokenizer.sot_id, tokenizer.eot_id, tokenizer.pad_id) == (49406, 49407, 0)


def test_merge_ids_can_serve_as_priorities() -> None:
    merges = vocabulary().merges
    assert sorted(merges.values()) == list(range(FIRST_MERGE, SOT))
    assert all(left < merged and right < merged for (left, right), merged in merges.items())


@settings(max_examples=300, deadline=None)
@given(texts)
@example("a &amp b")
@example("line\r\nbreak &\rend &")
@example("\x1b[0mred\x1b")
@example("file\x1cend")
@example("tab\x0bend")
def test_clean_equals_the_published_cleaning(text: str) -> None:
    assert clean(text) == cleaned_slowly(text)


@settings(max_examples=300, deadline=None)
@given(texts)
@example("a" * 300)
@example("日" * 90 + "ab" * 80)
def test_encode_equals_the_published_algorithm(text: str) -> None:
    tokenizer = BPE()
    expected = encoded_slowly(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode(text) == expected, "a second call answers from the cache"


@settings(max_examples=200, deadline=None)
@given(texts)
def test_decode_gives_the_cleaned_text_up_to_spaces(text: str) -> None:
    text = text.replace("|", "/")
    tokenizer = BPE()
    ids = tokenizer.encode(text)
    assert all(0 <= i < SOT for i in ids)
    assert "".join(tokenizer.decode(ids).split()) == "".join(clean(text).lower().split())


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_module, "_CACHED_CHUNKS", 10)
    tokenizer = BPE()
    words = [f"w{n}" for n in range(50)]
    vocabulary().clear()
    assert tokenizer.encode(" ".join(words)) == [i for w in words for i in encoded_slowly(w)]
    assert 0 < len(vocabulary()) <= 10
    vocabulary().clear()
    tokenizer.encode("x" * 1000)
    assert len(vocabulary()) == 0, "one long chunk must not be kept"


def test_a_long_text_without_spaces_is_quick_enough_to_finish(tokenizer: BPE) -> None:
    text = "abcdefghijklmnopqrstuvwxyz" * 4000
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text


def test_rows_are_start_ids_end_zeros(tokenizer: BPE) -> None:
    rows = tokenizer(["Hello World!", ""])
    assert rows.dtype == np.int32
    assert rows.shape == (2, 77)
    assert rows[0].tolist() == [SOT, 3306, 1002, 256, EOT] + [0] * 72
    assert rows[1].tolist() == [SOT, EOT] + [0] * 75
    assert np.array_equal(tokenizer("Hello World!"), rows[:1])
    assert tokenizer([]).shape == (0, 77)


def test_the_longest_text_that_fits_and_one_token_more() -> None:
    tokenizer = BPE(8)
    assert tokenizer("cat " * 6).tolist() == [[SOT] + [2368] * 6 + [EOT]]
    with pytest.raises(UserError, match=r"takes 9 tokens, more than context_length 8.*truncate"):
        tokenizer(["cat", "cat " * 7])
    assert tokenizer("cat " * 7, truncate=True).tolist() == [[SOT] + [2368] * 6 + [EOT]]


def test_a_packed_row_decodes_to_its_caption(tokenizer: BPE) -> None:
    assert tokenizer.decode(tokenizer("A photo of a CAT")[0]) == "a photo of a cat"


def test_decode_replaces_a_truncated_character(tokenizer: BPE) -> None:
    ids = tokenizer.encode("ไทย 𝔘")
    assert "\ufffd" in tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("token", [-1, 49408])
def test_decode_refuses_ids_out_of_range(tokenizer: BPE, token: int) -> None:
    with pytest.raises(ValueError, match=rf"{token} is outside \[0, 49408\)"):
        tokenizer.decode([token])


def test_the_vocabulary_is_spelled_as_published() -> None:
    ids, _ = published_ranks()
    assert symbols() == sorted(ids, key=ids.__getitem__)


def test_transformers_reads_the_written_files(tokenizer: BPE, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BPE(32).write_hugging_face(tmp_path / "a" / "b")
    unchanged = ["A photo of a CAT.", "it's DON'T we're", "naïve café —", "日本語 テスト 😀 ไทย"]
    unchanged += ["2021 3.14", "  white \t space\n", "<|endoftext|> x", "ΟΔΟς", "x" * 300, "", "!"]
    assert [text for text in unchanged if clean(text) != " ".join(text.split())] == []
    for kind in ("CLIPTokenizer", "CLIPTokenizerFast", "AutoTokenizer"):
        theirs = getattr(transformers, kind).from_pretrained(tmp_path / "a" / "b")
        assert type(theirs).__name__.startswith("CLIPTokenizer")
        assert (len(theirs), theirs.model_max_length) == (49408, 32)
        for text in unchanged:
            ids = tokenizer.encode(text)
            assert theirs(text).input_ids == [SOT, *ids, EOT], text
        padded = theirs("a cat", padding="max_length", truncation=True).input_ids
        assert padded == [SOT, 320, 2368, *[EOT] * 29], "padding is the end"
        cut = theirs("cat " * 40, padding="max_length", truncation=True).input_ids
        assert [cut] == BPE(32)("cat " * 40, truncate=True).tolist()


def test_the_files_written_for_others(tmp_path: Path) -> None:
    write_hugging_face(tmp_path)
    names = ["merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    ids, ranks = published_ranks()
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == ids
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["#version: 0.2", *(" ".join(pair) for pair in ranks)]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] == 77
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*vocab\.json'"):
        write_hugging_face(tmp_path / "file")
    with pytest.raises(UserError, match="context_length is 2"):
        write_hugging_face(tmp_path, 2)


def test_a_value_that_is_not_text_is_named(tokenizer: BPE) -> None:
    with pytest.raises(UserError, match="must be a str, not bytes: b'cat'"):
        tokenizer([b"cat"])  # type: ignore[list-item]
    for wrong in (None, 5, b"cat"):
        with pytest.raises(UserError, match=f"list of texts, not {type(wrong).__name__}"):
            tokenizer(wrong)  # type: ignore[arg-type]


def test_texts_of_a_generator_are_a_list(tokenizer: BPE) -> None:
    texts = ["a cat", "a dog"]
    assert np.array_equal(tokenizer(text for text in texts), tokenizer(texts))  # type: ignore[arg-type]


def test_pickles_are_small_and_share_the_vocabulary(tokenizer: BPE) -> None:
    pickled = pickle.dumps(BPE(16))
    assert len(pickled) < 200
    copy = pickle.loads(pickled)
    assert copy.context_length == 16
    assert vars(copy).keys() == {"context_length"}  # the vocabulary is the process's
    assert copy.encode("a cat") == tokenizer.encode("a cat")


def test_load_by_name() -> None:
    assert isinstance(load("clip"), BPE)
    assert load("clip", 32)("cat").shape == (1, 32)
    for name in ("clop", "clip:", "sentencepiece", "sentencepiece:", "wordpiece:", "siglip", ""):
        with pytest.raises(UserError, match=f"unknown tokenizer '{name}'") as error:
            load(name)
        forms = ("'clip'", "'sentencepiece:PATH.model'", "'wordpiece:PATH'", "'siglip:PATH.model'")
        assert all(form in str(error.value) for form in forms)


@pytest.mark.parametrize("length", [2, 0, -1, True, 7.5])
def test_a_context_too_short_is_refused(length: Any) -> None:
    with pytest.raises(UserError, match="context_length"):
        load("clip", length)


def test_importing_the_package_is_cheap() -> None:
    check = (
        "import sys, clip_jax.tokenizers; "
        "print(*sorted({'numpy', 'jax', 'regex', 'ftfy', 'sentencepiece'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
