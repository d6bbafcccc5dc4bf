"""The ids are SiglipTokenizer's: live where transformers is installed, golden where it is not."""

from __future__ import annotations

import io
import json
import pickle
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer, load
from clip_jax.tokenizers.packing import pack
from clip_jax.tokenizers.siglip import SigLIP, canonical
from support import says

MODEL = Path(__file__).parents[1] / "golden" / "siglip.model"
CAPTIONS = [
    f"{opening} {colour} {animal} {place} {number}"
    for number, opening in enumerate(["a photo of a", "a drawing of the", "the emoji of a"])
    for colour in ["red", "green", "golden", "black white"]
    for animal in ["cat", "dogs house", "kangaroo", "café owl", "elephant"]
    for place in ["in the garden", "on a mountain", "near the sea"]
]
# By SiglipTokenizer of transformers 5.23 on the golden model.
GOLDEN = {
    "a photo of a cat": [8, 15, 36, 5, 11, 7, 10, 8, 3, 17, 9, 5],
    "A PHOTO, of  a\tCat!": [8, 15, 36, 5, 11, 7, 10, 8, 3, 17, 9, 5],
    "don't walk under_the-bridge": [
        *[26, 11, 13, 5, 3, 18, 9, 29, 32, 3, 19, 42, 16, 5, 6, 4, 52, 12, 44, 25, 4]
    ],
    "“the” café…": [3, 2, 5, 6, 4, 2, 3, 17, 9, 10, 2],
    "日本 & the <red> owl": [3, 2, 3, 5, 6, 4, 3, 35, 44, 7, 18, 29],
    "...": [],
    "": [],
}
HARD = [
    *[
        "A Photo of a Cat.",
        "don't",
        "black & white",
        "a,b",
        "a_b",
        "__",
        "...",
        "!",
        '"the"',
        "a-b",
    ],
    *[
        "’s",
        "…",
        "—",
        "É",
        "é",
        "e\u0301",
        "ﬁ",
        "Ａ",
        "İ",
        "Σ",
        "ΟΔΟΣ",
        "日本語",
        "😀",
        "👩‍👩‍👧",
        "½",
    ],
    *[
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\x0b",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\u200b",
    ],
    *[
        "▁",
        "▁▁",
        "▁a",
        "a▁",
        "\x00",
        "\xad",
        "\ufeff",
        "<",
        ">",
        "</s",
        "s>",
        "unk",
        "<pad>",
        "&amp;",
    ],
]
texts = st.one_of(
    st.lists(st.one_of(st.sampled_from(HARD), st.sampled_from(CAPTIONS)), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
).filter(lambda text: "</s>" not in text and "<unk>" not in text)


def train(path: Path, **changes: Any) -> Path:
    """A model laid out as SigLIP's c4_en: <pad> 0, </s> 1, <unk> 2 and no start."""
    model = io.BytesIO()
    layout = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **layout | changes,
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def tokenizer() -> SigLIP:
    return SigLIP(MODEL)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ours and transformers' tokenizer of one model."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("pair") / "spiece.model"
    train(path, model_type=request.param, byte_fallback=request.param == "bpe")
    return SigLIP(path), transformers.SiglipTokenizer(str(path))


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_ids(tokenizer: SigLIP, text: str) -> None:
    assert tokenizer.encode(text) == GOLDEN[text]


@settings(max_examples=200)
@given(texts)
@example("".join(HARD))
@example(" ".join(HARD))
def test_the_ids_are_those_of_transformers(pair: Any, text: str) -> None:
    ours, theirs = pair
    assert [*ours.encode(text), 1] == theirs(text).input_ids


@settings(max_examples=50)
@given(st.lists(texts, min_size=1, max_size=4))
def test_rows_are_those_of_transformers(pair: Any, several: list[str]) -> None:
    ours, theirs = pair
    expected = theirs(several, padding="max_length", truncation=True, max_length=64).input_ids
    assert ours(several, truncate=True).tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" A Cat,\tdon't\n- RUN! ", "a cat dont run"),
        ("snake_case ▁ x", "snakecase x"),
        ("“ÉTÉ”…", "“été”…"),
        (string.punctuation, ""),
    ],
)
def test_text_loses_case_and_ascii_punctuation(text: str, expected: str) -> None:
    assert canonical(text) == expected


def test_transformers_reads_the_written_files(pair: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = pickle.loads(pickle.dumps(pair[0]))
    ours.write_hugging_face(tmp_path / "a" / "b")
    for kind in ("SiglipTokenizer", "AutoTokenizer"):
        theirs = getattr(transformers, kind).from_pretrained(tmp_path / "a" / "b")
        assert type(theirs).__name__ == "SiglipTokenizer"
        assert (theirs.model_max_length, theirs.pad_token_id, theirs.eos_token_id) == (64, 1, 1)
        for text in HARD:
            assert theirs(text).input_ids == [*ours.encode(text), 1], text


def test_protocol_and_special_ids(tokenizer: SigLIP) -> None:
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.context_length) == (54, 64)
    assert (tokenizer.sot_id, tokenizer.eot_id, tokenizer.pad_id) == (None, 1, 1)


def test_rows_end_in_the_end_piece() -> None:
    tokenizer = load(f"siglip:{MODEL}", 8)
    ids = tokenizer.encode("cat cat cat")
    assert len(ids) > 8
    rows = tokenizer(["A cat!", "", "cat cat cat"], truncate=True)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[8, 3, 17, 9, 5, 1, 1, 1], [1] * 8, [*ids[:7], 1]]
    assert np.array_equal(rows[:1], pack(tokenizer, "a cat"))
    with pytest.raises(UserError, match=rf"takes {len(ids) + 1} tokens.*context_length 8"):
        tokenizer("cat cat cat")


def test_seven_tokens_and_the_end_fit_in_eight_places(tokenizer: SigLIP) -> None:
    text = "a a a a a a a"
    assert load(f"siglip:{MODEL}", 8)(text).tolist() == [[*tokenizer.encode(text), 1]]


def test_decode(tokenizer: SigLIP) -> None:
    assert tokenizer.decode(tokenizer("A CAT, in the garden!")[0]) == "a cat in the garden"
    assert tokenizer.decode([8, 1, 8]) == "a", "the end ends the text"
    for token in (-1, 54):
        with pytest.raises(ValueError, match=rf"{token} is outside \[0, 54\)"):
            tokenizer.decode([token])


def test_a_pickle_does_not_need_the_file(tmp_path: Path) -> None:
    path = tmp_path / "moved.model"
    path.write_bytes(MODEL.read_bytes())
    pickled = pickle.dumps(SigLIP(path, 20))
    path.unlink()
    copy = pickle.loads(pickled)
    assert isinstance(copy, SigLIP)
    assert (copy.context_length, copy.sot_id, copy.eot_id, copy.pad_id) == (20, None, 1, 1)
    assert copy.vocab_size == 54
    assert copy.encode("A CAT!") == [8, 3, 17, 9, 5]


def test_a_model_without_an_end_is_named(tmp_path: Path) -> None:
    path = train(tmp_path / "endless.model", eos_id=-1)
    with pytest.raises(UserError) as error:
        load(f"siglip:{path}")
    assert says(error.value, path, "has no end piece", "sentencepiece:PATH.model")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.model'.*No such file"):
        load(f"siglip:{tmp_path / 'none.model'}")
    (tmp_path / "text.model").write_text("not a model at all")
    with pytest.raises(UserError, match=r"text\.model' is not a SentencePiece model"):
        load(f"siglip:{tmp_path / 'text.model'}")


def test_beside_open_clips_config_texts_are_cleaned_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(MODEL.read_bytes())
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {"model_cfg": {"text_cfg": text}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    plain, cleaned = SigLIP(MODEL), SigLIP(tmp_path / "spiece.model")
    assert cleaned.encode("a_cat") == plain.encode("a cat") != plain.encode("a_cat")
    assert pickle.loads(pickle.dumps(cleaned)).encode("a_cat") == plain.encode("a cat")
