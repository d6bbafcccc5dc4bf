"""The ids are BertTokenizer's, live where transformers is installed and golden where it is not."""

from __future__ import annotations

import json
import pickle
import string
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer, load
from clip_jax.tokenizers import wordpiece as wordpiece_module
from clip_jax.tokenizers.wordpiece import WordPiece
from support import says

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_lowercase + string.digits + "σοςé日ﬁ漢"
VOCABULARY = [
    *SPECIALS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *string.punctuation,
    *["the", "cat", "##ing", "un", "##aff", "##able", "photo", "cafe", "ABC", "É", "—", "。"],
]
# By BertTokenizer of transformers 5.23 on this vocabulary.
GOLDEN = {
    "The cat, unaffable!": [123, 124, 102, 126, 127, 128, 91],
    "CAFÉ cafe\u0301 café": [130, 130, 130],
    "ΟΣ οσ ΟΔΟΣ": [42, 84, 42, 84, 1],
    "a\U0002b820b a\U0002b920b": [1, 5, 1, 6],
    "a photo of 日本漢cat。": [5, 129, 19, 53, 45, 1, 47, 124, 134],
    "x" * 100: [28] + [71] * 99,
    "x" * 101: [1],
    "catting [SEP] [cls] x[MASK]y [PAD]": [124, 67, 125, 3, 113, 7, 59, 66, 115, 28, 4, 29, 0],
    "can't $9.99 a_b": [7, 48, 61, 97, 24, 94, 40, 104, 40, 83, 5, 117, 6],
    "cat\0\u200bs\x0bthe\x85 \ufffdcat\ttheo\u3000cat\u00a0cat": [
        *[124, 66, 67, 55, 52, 124, 123, 62, 124, 124]
    ],
    "İa ﬁ Ａ": [13, 48, 46, 1],
    "😀 ❤\ufe0f cat — “the”": [1, 1, 124, 133, 1, 123, 1],
    "##ing [[UNK]]": [93, 93, 13, 61, 54, 113, 1, 115],
    "unaffablez unaffé": [126, 127, 128, 73, 126, 127, 52],
    "한": [1],
    "": [],
}
WITH_CASE = {
    "ABC abc É é e\u0301 THE the": [131, 5, 49, 50, 132, 44, 1, 1, 123],
    "CAFÉ": [1],
    "Σ σ 日日 [SEP]": [1, 41, 45, 45, 3],
}
HARD = [
    *["the", "Cat", "unaffable", "photo.", "can't", "CAFÉ", "cafe\u0301", "naïve", "ÅÉÎ", "ΟΣ"],
    *["日本語", "漢cat", "한국어", "ไทย", "हिन्दी", "İstanbul", "ﬁsh", "ǅ", "ẞ", "½", "٣"],
    *["😀", "👩‍👩‍👧", "🇫🇷", "❤️", "—", "…", "“the”", "。", "¿que?", "$9.99", "a_b", "^~`|"],
    *["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "[cls]", "[[SEP]]", "##ing", "##", "[", "]"],
    *["x" * 100, "x" * 101, "the" * 33, "the" * 34, "é" * 100, "e\u0301" * 60, "日" * 120],
    *["\x00", "\x07", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\x85", "\xad", "\u200b", "\u200d"],
    *["\ufeff", "\ufffd", "\ue000", "\U0010fffd", "\u0301", "\u0345", "\u037e", "\u2000"],
    *[
        " ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u2028",
        "\u2029",
        "\u3000",
        "\u1680",
        "豈",
        "\U0002f800",
    ],
]
# transformers' categories are those of Unicode 9. What Unicode 3.2 had, but for what became
# something else since then, all agree on.
AGREED = [
    chr(i)
    for i in range(0x110000)
    if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Cs")
    and i not in (0x166D, 0x1734, 0x1885, 0x1886)
]
texts = st.lists(
    st.one_of(st.sampled_from(HARD), st.sampled_from(AGREED), st.sampled_from(VOCABULARY)),
    max_size=12,
).map("".join)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False, "strip_accents": None},
]


def write(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    """A folder with the vocabulary above."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> WordPiece:
    return WordPiece(folder)


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_ids(tokenizer: WordPiece, text: str) -> None:
    assert tokenizer.encode(text) == GOLDEN[text]


@pytest.mark.parametrize("text", WITH_CASE)
def test_golden_ids_with_case(tmp_path: Path, text: str) -> None:
    tokenizer = WordPiece(write(tmp_path, {"do_lower_case": False}))
    assert tokenizer.encode(text) == WITH_CASE[text]


@pytest.fixture(scope="module", params=OPTIONS, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ours and transformers' tokenizer of one folder."""
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path_factory.mktemp("pair"), request.param)
    return WordPiece(folder), transformers.BertTokenizer.from_pretrained(folder)


@settings(max_examples=200)
@given(texts)
@example("".join(HARD))
@example(" ".join(HARD))
def test_the_ids_are_those_of_transformers(pair: Any, text: str) -> None:
    ours, theirs = pair
    expected = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == expected
    assert ours.encode(text) == expected, "a second call answers from the cache"


def test_every_character_is_classified_as_by_transformers(pair: Any) -> None:
    ours, theirs = pair
    # Between letters a character is a letter, a mark, a space or nothing. Of the many letters and
    # private characters each sixteenth, the first of every block among them.
    many = ("Lo", "Co")
    some = [c for c in AGREED if ord(c) % 16 == 0 or unicodedata.category(c) not in many]
    between = [f"a{character}b" for character in some]
    expected = theirs(between, add_special_tokens=False, return_attention_mask=False).input_ids
    assert len(between) > 10_000
    assert [t for t, ids in zip(between, expected, strict=True) if ours.encode(t) != ids] == []


@settings(max_examples=50)
@given(st.lists(texts, min_size=1, max_size=4))
def test_rows_are_those_of_transformers(pair: Any, several: list[str]) -> None:
    ours, theirs = pair
    expected = theirs(several, padding="max_length", truncation=True, max_length=64).input_ids
    assert ours(several, truncate=True).tolist() == expected


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transformers_reads_the_written_files(tmp_path: Path, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = WordPiece(write(tmp_path / "in", options), 32)
    ours.write_hugging_face(tmp_path / "out")
    for kind in ("BertTokenizer", "BertTokenizerFast", "AutoTokenizer"):
        theirs = getattr(transformers, kind).from_pretrained(tmp_path / "out")
        assert (len(theirs), theirs.model_max_length) == (ours.vocab_size, 32)
        for text in HARD:
            assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text
    theirs.save_pretrained(tmp_path / "theirs")
    again = WordPiece(tmp_path / "theirs" / "tokenizer.json")
    assert (again.tokens, again.options, again.specials) == (
        *(ours.tokens, ours.options, ours.specials),
    )


def test_written_files_read_back(tmp_path: Path) -> None:
    special = {"cls_token": "the", "mask_token": {"content": "cat", "lstrip": False}}
    options = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    first = WordPiece(write(tmp_path / "in", special | options))
    first.write_hugging_face(tmp_path / "a" / "b")
    second = WordPiece(tmp_path / "a" / "b" / "vocab.txt")
    assert second.__getstate__() == first.__getstate__()
    assert second.sot_id == VOCABULARY.index("the")


def test_protocol_and_special_ids(tokenizer: WordPiece) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.context_length) == (len(VOCABULARY), 64)
    assert (tokenizer.sot_id, tokenizer.eot_id, tokenizer.pad_id) == (2, 3, 0)


def test_rows_are_cls_ids_sep_and_padding(folder: Path) -> None:
    tokenizer = load(f"wordpiece:{folder}", 6)
    rows = tokenizer(["the cat", ""])
    assert rows.dtype == np.int32
    assert rows.tolist() == [[2, 123, 124, 3, 0, 0], [2, 3, 0, 0, 0, 0]]
    with pytest.raises(UserError, match="takes 7 tokens, more than context_length 6"):
        tokenizer("cat " * 5)
    assert tokenizer("cat " * 5, truncate=True).tolist() == [[2, 124, 124, 124, 124, 3]]


def test_the_longest_special_token_wins(tmp_path: Path) -> None:
    special = {"cls_token": "cat", "mask_token": "c"}
    assert WordPiece(write(tmp_path, special)).encode("caterc") == [124, 9, 65, 7]


def test_decode(tokenizer: WordPiece) -> None:
    assert tokenizer.decode(tokenizer("The CATTING, unaffable")[0]) == "the catting , unaffable"
    assert tokenizer.decode([2, 124, 3, 123]) == "cat", "the end ends the text"
    assert tokenizer.decode([1, 67]) == "[UNK]t"
    for token in (-1, len(VOCABULARY)):
        with pytest.raises(ValueError, match=rf"{token} is outside \[0, {len(VOCABULARY)}\)"):
            tokenizer.decode([token])


def test_load_takes_a_file_or_its_folder(folder: Path) -> None:
    for path in (folder, folder / "vocab.txt"):
        tokenizer = load(f"wordpiece:{path}")
        assert isinstance(tokenizer, WordPiece)
        assert tokenizer.context_length == 64


def test_a_pickle_does_not_need_the_files(tmp_path: Path) -> None:
    folder = write(tmp_path, {"do_lower_case": False})
    pickled = pickle.dumps(WordPiece(folder, 20))
    for path in folder.iterdir():
        path.unlink()
    copy = pickle.loads(pickled)
    assert copy.context_length == 20
    assert copy.encode("ABC the [SEP]") == [131, 123, 3]


def test_the_cache_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece_module, "_CACHED_CHUNKS", 10)
    tokenizer = WordPiece(folder)
    words = [f"c{n}" for n in range(50)]
    assert tokenizer.encode(" ".join(words)) == [
        i for word in words for i in tokenizer.encode(word)
    ]
    assert 0 < len(tokenizer._words) <= 10
    tokenizer._words.clear()
    tokenizer.encode("x" * 1000)
    assert len(tokenizer._words) == 0, "one long chunk must not be kept"


def test_a_long_text_without_spaces_is_quick_enough_to_finish(tokenizer: WordPiece) -> None:
    assert tokenizer.encode("the," * 50_000) == [123, 102] * 50_000
    assert tokenizer.encode("x" * 1_000_000) == [1]


def hugging_face(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of the vocabulary above; `model__x` changes x of its model."""
    content: dict[str, Any] = {
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in enumerate(SPECIALS)],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": False,
        },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in reversed([*enumerate(VOCABULARY)])},
        },
    }
    for name, value in changes.items():
        *inside, last = name.split("__")
        (content[inside[0]] if inside else content)[last] = value
    return content


def test_a_tokenizer_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(hugging_face()))
    tokenizer = WordPiece(path)
    assert tokenizer.tokens == tuple(VOCABULARY)
    for text, ids in WITH_CASE.items():
        assert tokenizer.encode(text) == ids
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load(f"wordpiece:{tmp_path}").encode("CAT") == [124], "the settings have the last word"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not JSON"]),
        ("[]", ["holds list, not a JSON object"]),
        ("{}", ["holds a None tokenizer, not a WordPiece one"]),
        (hugging_face(model={"type": "BPE", "vocab": {"a": 0}}), ["holds a BPE tokenizer"]),
        (hugging_face(model__vocab=[]), ["not a WordPiece one"]),
        (hugging_face(model__vocab={"a": 0}), ["has no [CLS], [PAD], [SEP], [UNK]"]),
        (hugging_face(model__vocab={"a": 1, "b": 1}), ["are not 0 to 1, each once"]),
        (hugging_face(model__vocab={"a": 0, "b": "1"}), ["are not 0 to 1, each once"]),
        (hugging_face(model__continuing_subword_prefix="@@"), ["otherwise than BERT", "##"]),
        (hugging_face(normalizer={"type": "NFC"}), ["otherwise than BERT", "BertNormalizer"]),
        (hugging_face(added_tokens=[{"content": "<a>"}]), ["adds <a>", "not supported"]),
    ],
)
def test_an_invalid_tokenizer_json_is_refused(
    tmp_path: Path, content: Any, words: list[str]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        WordPiece(tmp_path)
    assert says(error.value, path, *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_lower_case": "yes"}, ["do_lower_case='yes'", "true or false"]),
        ({"strip_accents": 1}, ["strip_accents=1", "true or false"]),
        ({"sep_token": 3}, ["sep_token=3", "must be a token"]),
        ({"pad_token": ""}, ["pad_token=''", "must be a token"]),
        ({"cls_token": {"content": "<s>"}}, ["has no <s>"]),
        ({"added_tokens_decoder": {"200": {"content": "<b>"}}}, ["adds <b>"]),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        WordPiece(write(tmp_path, settings))
    assert says(error.value, tmp_path, *words)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.txt'.*No such file"):
        load(f"wordpiece:{tmp_path / 'none.txt'}")
    with pytest.raises(UserError, match=r"holds no tokenizer\.json and no vocab\.txt"):
        load(f"wordpiece:{tmp_path}")
    (tmp_path / "vocab.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"vocab\.txt' is not UTF-8 text"):
        load(f"wordpiece:{tmp_path}")
    (tmp_path / "vocab.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"vocab\.txt' has no \[CLS\].*no vocabulary of BERT"):
        load(f"wordpiece:{tmp_path}")


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(VOCABULARY).encode())
    assert WordPiece(tmp_path).tokens == tuple(VOCABULARY)
