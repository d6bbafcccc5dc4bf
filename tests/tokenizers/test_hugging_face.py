"""The rows are open_clip's of each family, golden and live; damaged files are one line."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig, RobertaConfig
from clip_jax.tokenizers import find_tokenizer, hugging_face, load
from clip_jax.tokenizers.hugging_face import HuggingFace
from support import refused, says
from tools import golden_tokenizers
from tools.golden_tokenizers import CONTEXT, FAMILIES, TEXTS

pytest.importorskip("tokenizers")
GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers"
# start, end and padding, as in the published ones but for NLLB's language and BERT's start.
SPECIAL = {
    "roberta": (0, 2, 1),
    "xlm_roberta": (0, 2, 1),
    "mt5": (None, 1, 0),
    "gemma": (None, 1, 0),
    "siglip2": (None, 1, 0),
    "clipa": (2, 0, 0),
    "mt5_pieces": (None, 1, 0),
    "xlm_roberta_pieces": (0, 2, 1),
}


def folder_of(path: Path, family: str = "xlm_roberta", **settings: Any) -> Path:
    """A copy of a golden folder with other settings; None takes one out."""
    folder = shutil.copytree(GOLDEN / family, path / family)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_rows(family: str) -> None:
    name = find_tokenizer(GOLDEN / family)
    assert name == f"huggingface:{GOLDEN / family}"
    tokenizer = load(name)
    rows = json.loads((GOLDEN / family / "rows.json").read_text())
    np.testing.assert_array_equal(tokenizer(TEXTS, truncate=True), rows)
    assert tokenizer.context_length == CONTEXT
    assert np.max(rows) < tokenizer.vocab_size
    if family in SPECIAL:
        assert (tokenizer.sot_id, tokenizer.eot_id, tokenizer.pad_id) == SPECIAL[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_live_rows(family: str, tmp_path: Path) -> None:
    for library in ("torch", "transformers", "open_clip"):
        pytest.importorskip(library) if library != "open_clip" else None
    rows = golden_tokenizers.write(tmp_path, family)
    np.testing.assert_array_equal(HuggingFace(tmp_path)(TEXTS, truncate=True), rows)


def test_ids_and_texts_there_and_back() -> None:
    tokenizer = HuggingFace(GOLDEN / "roberta", 40)
    row = tokenizer("a café owl in the garden")[0]
    assert tokenizer.decode(row) == "a café owl in the garden"
    assert tokenizer.encode("a café owl in the garden") == list(row[1 : (row != 1).sum() - 1])
    with pytest.raises(ValueError, match="outside"):
        tokenizer.decode([10**6])
    refused(lambda: tokenizer("cat " * 100), "raise context_length")
    assert tokenizer("\ud800").shape == (1, 40)


def test_a_copy_needs_no_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    tokenizer = HuggingFace(folder, 24)
    sent = pickle.dumps(tokenizer)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(
        pickle.loads(sent)(TEXTS, truncate=True), tokenizer(TEXTS, truncate=True)
    )


def test_written_files_are_found_and_load(tmp_path: Path) -> None:
    tokenizer = HuggingFace(GOLDEN / "siglip2")
    tokenizer.write_open_clip(tmp_path)
    shutil.copy(GOLDEN / "siglip2" / "open_clip_config.json", tmp_path)
    name = find_tokenizer(tmp_path)
    assert name is not None
    np.testing.assert_array_equal(load(name)(TEXTS, True), tokenizer(TEXTS, True))


def test_transformers_alone_takes_texts_as_they_are(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "mt5", model_max_length=12)
    (folder / "open_clip_config.json").unlink()
    tokenizer = HuggingFace(folder)
    assert tokenizer.context_length == 12
    assert tokenizer.encode("Cat!") != HuggingFace(GOLDEN / "mt5").encode("Cat!")
    folder_of(tmp_path / "b", "mt5", model_max_length=10**30)
    (tmp_path / "b" / "mt5" / "open_clip_config.json").unlink()
    assert HuggingFace(tmp_path / "b" / "mt5").context_length == 77


def test_the_model_says_that_texts_are_in_lower_case(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "gemma", tokenizer_class="GemmaTokenizer", padding_side="right")
    (folder / "open_clip_config.json").unlink()
    as_they_are = HuggingFace(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    lower = HuggingFace(folder)
    assert as_they_are.encode("A Cat") != as_they_are.encode("a cat")
    assert lower.encode("A Cat") == as_they_are.encode("a cat")


def test_the_language_starts_a_text(tmp_path: Path) -> None:
    french = HuggingFace(GOLDEN / "nllb")
    english = HuggingFace(folder_of(tmp_path, "nllb", src_lang=None))
    assert french.sot_id == french._tokenizer.token_to_id("fra_Latn")
    assert english.sot_id == english._tokenizer.token_to_id("eng_Latn")
    assert french.encode("a cat") == english.encode("a cat")
    other = folder_of(tmp_path / "b", "nllb", src_lang="xyz")
    refused(lambda: HuggingFace(other), "no token 'xyz', which is its language")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(padding_side="left"), ["padding_side='left'"]),
        (dict(truncation_side="left"), ["truncation_side='left'"]),
        (dict(pad_token="\x1b[31m"), ["no token '\\x1b[31m'", "pad_token"]),
        (dict(pad_token=["<pad>"]), ["no token ['<pad>']"]),
        (dict(add_eos_token=False, add_bos_token=True), ["ends a text by no token"]),
    ],
)
def test_rows_of_another_form_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: list[str]
) -> None:
    folder = folder_of(tmp_path, **settings)
    with pytest.raises(UserError) as caught:
        HuggingFace(folder)
    assert says(caught.value, *words)


def test_gemma_pads_on_the_left_unless_its_files_say_otherwise(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "gemma", padding_side=None)
    refused(lambda: HuggingFace(folder), "padding_side='left'")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 9, "vocab": []}}',
        b'{"version": "1.0", "model": {"type": "\x1b[31m"}}',
        b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}',
    ],
)
def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(f"huggingface:{file}")
    assert says(caught.value, file) and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 99, b"\x0a\x03\x0a\x01a"])
def test_what_is_no_sentencepiece_model_is_one_line(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        HuggingFace(tmp_path)
    assert says(caught.value, tmp_path / name)


def test_tokens_after_the_pieces_of_t5(tmp_path: Path) -> None:
    three = HuggingFace(GOLDEN / "mt5_pieces")
    usual = HuggingFace(folder_of(tmp_path, "mt5_pieces", extra_ids=None))
    assert usual.vocab_size == three.vocab_size + 97
    assert usual.encode("<extra_id_0>") == [usual.vocab_size - 1]


def test_a_model_is_exported_as_steps(tmp_path: Path) -> None:
    tokenizer = HuggingFace(GOLDEN / "xlm_roberta_pieces")
    tokenizer.write_hugging_face(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    again = HuggingFace(tmp_path, CONTEXT)
    assert again.encode("a photo of a cat") == tokenizer.encode("a photo of a cat")


def test_a_file_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "MAX_BYTES", 1 << 20)
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate((1 << 20) + 1)
    refused(lambda: HuggingFace(tmp_path), "is larger than 1 MiB")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (dict(tokenizer_kwargs={"clean": "spotless"}), ["clean='spotless'", "whitespace, lower"]),
        (dict(tokenizer_mode="clips"), ["tokenizer_mode='clips'"]),
        (dict(context_length="many"), ["context_length", "'many'"]),
    ],
)
def test_what_open_clip_asks_for(tmp_path: Path, text: dict[str, Any], words: list[str]) -> None:
    folder = folder_of(tmp_path)
    values = {"model_cfg": {"text_cfg": {"hf_tokenizer_name": "x", **text}}}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        HuggingFace(folder)
    assert says(caught.value, *words)


def test_the_package_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(lambda: HuggingFace(GOLDEN / "mt5"), "pip install 'clip_jax[tokenizers]'")


def test_a_tower_takes_its_rows() -> None:
    tokenizer = HuggingFace(GOLDEN / "xlm_roberta")
    tower = RobertaConfig(vocab_size=tokenizer.vocab_size)
    tower.check_tokenizer("it", tokenizer)
    wrong = CLIPConfig(text=RobertaConfig(pad_id=0)).text
    refused(lambda: wrong.check_tokenizer("it", tokenizer), "pads with 1")


def test_the_languages_of_nllbs_pieces_are_listed(tmp_path: Path) -> None:
    silent = folder_of(tmp_path, "nllb_pieces", additional_special_tokens=None)
    refused(lambda: HuggingFace(silent), "additional_special_tokens")
    other = folder_of(tmp_path / "b", "nllb_pieces", tokenizer_class="XLMRobertaTokenizer")
    refused(lambda: HuggingFace(other), "no model of unigrams, as T5's and XLM-RoBERTa's")
