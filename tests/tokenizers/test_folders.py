"""Which tokenizer a published model's folder holds, and what is said of files that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clip_jax.errors import UserError
from clip_jax.tokenizers import find_tokenizer, load, vocab_files
from clip_jax.tokenizers.bpe import BPE, symbols
from clip_jax.tokenizers.siglip import SigLIP
from clip_jax.tokenizers.wordpiece import WordPiece
from support import says

MODEL = Path(__file__).parents[1] / "golden" / "siglip.model"
CLIP = {symbol: i for i, symbol in enumerate(symbols())}
OPEN_CLIP_SIGLIP = {
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}


def model(folder: Path, **contents: Any) -> Path:
    """A folder with files: `a__json={…}` is a.json."""
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    return folder


def open_clip(**text: Any) -> dict[str, Any]:
    return {"model_cfg": {"embed_dim": 512, "text_cfg": text}, "preprocess_cfg": {}}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        # transformers' models
        ({"config__json": {"model_type": "clip"}}, "clip"),
        ({"config__json": {"model_type": "clip"}, "vocab__json": CLIP}, "clip"),
        ({"tokenizer_config__json": {"tokenizer_class": "CLIPTokenizerFast"}}, "clip"),
        (
            {
                "config__json": {"model_type": "clip", "text_config": {"vocab_size": 49408}},
                "tokenizer__json": {"model": {"type": "BPE", "vocab": CLIP}},
            },
            "clip",
        ),
        (
            {
                "config__json": {"model_type": "align"},
                "tokenizer_config__json": {"tokenizer_class": "BertTokenizer"},
                "vocab__txt": "[PAD]",
            },
            "wordpiece:{}",
        ),
        ({"config__json": {"model_type": "align"}, "tokenizer__json": {}}, "wordpiece:{}"),
        (
            {"tokenizer_config__json": {"tokenizer_class": "BertTokenizerFast"}, "vocab__txt": ""},
            "wordpiece:{}",
        ),
        (
            {
                "config__json": {"model_type": "siglip"},
                "tokenizer_config__json": {"tokenizer_class": "SiglipTokenizer"},
                "spiece__model": "",
            },
            "siglip:{}/spiece.model",
        ),
        (
            {
                "config__json": {"model_type": "siglip"},
                "tokenizer_config__json": {"tokenizer_class": "PreTrainedTokenizerFast"},
                "spiece__model": "",
            },
            "siglip:{}/spiece.model",
        ),
        # open_clip's
        ({"open_clip_config__json": open_clip(context_length=77, vocab_size=49408)}, "clip"),
        ({"open_clip_config__json": open_clip(width=512), "vocab__json": CLIP}, "clip"),
        (
            {"open_clip_config__json": open_clip(**OPEN_CLIP_SIGLIP), "spiece__model": ""},
            "siglip:{}/spiece.model",
        ),
        (
            {
                "open_clip_config__json": open_clip(hf_tokenizer_name="x"),
                "config__json": {"model_type": "clip"},
            },
            "clip",
        ),
        # any other with a tokenizer.json
        (
            {"open_clip_config__json": open_clip(hf_tokenizer_name="x"), "tokenizer__json": {}},
            "huggingface:{}",
        ),
        (
            {"open_clip_config__json": open_clip(**OPEN_CLIP_SIGLIP), "tokenizer__json": {}},
            "huggingface:{}",
        ),
        (
            {
                "config__json": {"model_type": "siglip"},
                "tokenizer_config__json": {"tokenizer_class": "GemmaTokenizerFast"},
                "tokenizer__json": {},
            },
            "huggingface:{}",
        ),
        ({"config__json": {"model_type": "xlm-roberta"}, "tokenizer__json": {}}, "huggingface:{}"),
        ({"config__json": {"model_type": "mt5"}, "spiece__model": ""}, "huggingface:{}"),
        (
            {
                "open_clip_config__json": open_clip(hf_tokenizer_name="x"),
                "tokenizer_config__json": {"tokenizer_class": "MT5Tokenizer"},
                "spiece__model": "",
            },
            "huggingface:{}",
        ),
        ({"config__json": {"model_type": "siglip"}, "tokenizer__json": {}}, "huggingface:{}"),
        (
            {"config__json": {"model_type": "clip"}, "tokenizer__json": {"model": []}},
            "huggingface:{}",
        ),
        ({"config__json": {"model_type": "metaclip_2"}, "tokenizer__json": {}}, "huggingface:{}"),
        (
            {"config__json": {"model_type": "metaclip_2"}, "sentencepiece__bpe__model": ""},
            "huggingface:{}",
        ),
        # SentencePiece models of SigLIP 2
        (
            {
                "config__json": {"model_type": "siglip"},
                "tokenizer_config__json": {"tokenizer_class": "GemmaTokenizerFast"},
                "tokenizer__model": "",
            },
            "siglip:{}/tokenizer.model",
        ),
        (
            {
                "config__json": {"model_type": "siglip"},
                "tokenizer_config__json": {"tokenizer_class": "Siglip2Tokenizer"},
                "spiece__model": "",
            },
            "siglip:{}/spiece.model",
        ),
        # none of them
        ({}, None),
        ({"config__json": {"model_type": "xlm-roberta"}, "spiece__model": ""}, None),
        ({"config__json": {}}, None),
        ({"config__json": {"model_type": ["clip"]}}, None),
        ({"config__json": {"model_type": "clip"}, "vocab__json": {"a": 0}}, None),
        ({"config__json": {"model_type": "clip"}, "vocab__json": dict(CLIP, a=7)}, None),
        ({"config__json": {"model_type": "clip", "text_config": {"vocab_size": 9}}}, None),
        ({"config__json": {"model_type": "align"}}, None),
        ({"open_clip_config__json": open_clip(**OPEN_CLIP_SIGLIP)}, None),
        ({"open_clip_config__json": open_clip(hf_tokenizer_name="bert"), "vocab__txt": ""}, None),
        ({"open_clip_config__json": open_clip(vocab_size=64000)}, None),
        ({"open_clip_config__json": {"model_cfg": None}}, None),
    ],
)
def test_find_tokenizer(tmp_path: Path, contents: dict[str, Any], expected: str | None) -> None:
    name = find_tokenizer(model(tmp_path, **contents))
    assert name == (expected and expected.format(tmp_path))


def test_a_missing_folder_holds_no_tokenizer(tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path / "none") is None


def test_written_tokenizers_are_found_and_load(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat"]
    (tmp_path / "words.txt").write_text("\n".join(words))
    for tokenizer in (BPE(20), WordPiece(tmp_path / "words.txt", 20), SigLIP(MODEL, 20)):
        folder = tmp_path / type(tokenizer).__name__
        tokenizer.write_hugging_face(folder)
        name = find_tokenizer(folder)
        assert name is not None
        again = load(name, 20)
        assert type(again) is type(tokenizer)
        assert again("A cat").tolist() == tokenizer("A cat").tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not JSON"]),
        ("\ufeff", ["is not JSON"]),
        ("[" * 100_000, ["is not JSON"]),
        ("[]", ["holds list, not a JSON object"]),
        ("null", ["holds NoneType, not a JSON object"]),
    ],
)
def test_a_file_that_is_not_a_json_object_is_named(
    tmp_path: Path, content: str, words: list[str]
) -> None:
    for name in ("config.json", "tokenizer_config.json", "open_clip_config.json"):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        path = folder / name
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError) as error:
            find_tokenizer(folder)
        assert says(error.value, path, *words)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(UserError) as error:
        find_tokenizer(tmp_path)
    assert says(error.value, tmp_path / "config.json", "is not JSON")


def test_a_file_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab_files, "MAX_BYTES", 1 << 20)
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
        assert len(vocab_files.read_file(path)) == 1 << 20
        file.truncate((1 << 20) + 1)
    for name in (f"wordpiece:{path}", f"siglip:{path}", f"sentencepiece:{path}"):
        with pytest.raises(UserError) as error:
            load(name)
        assert says(error.value, path, "is larger than 1 MiB")
