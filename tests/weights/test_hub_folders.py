"""Folders in the layouts of released repositories load without further words.

The weights are tiny; the configs have the keys, the forms and the neighbours of the released files.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import sentencepiece

import clip_jax
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.tokenizers import bpe, load
from clip_jax.weights import export, library
from support import picture

GOLDEN = Path(__file__).parents[1] / "golden"
VOCABULARIES = GOLDEN / "tokenizers"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
TEXTS = ["a photo of a cat", "A Drawing of the dogs!", ""]
OLD_PIXELS = {
    "crop_size": 8,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": 3,
    "size": 8,
}
SIGLIP_PIXELS = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_processor_type": "SiglipImageProcessor",
    "image_std": HALF,
    "processor_class": "SiglipProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 9, "width": 9},
}
SPECIAL = {"content": "</s>", "lstrip": True, "normalized": False, "rstrip": True}
SIGLIP_WORDS = {
    "added_tokens_decoder": {"1": {**SPECIAL, "single_word": False, "special": True}},
    "additional_special_tokens": [],
    "clean_up_tokenization_spaces": True,
    "do_lower_case": True,
    "eos_token": "</s>",
    "model_input_names": ["input_ids"],
    "model_max_length": 64,
    "pad_token": "</s>",
    "processor_class": "SiglipProcessor",
    "sp_model_kwargs": {},
    "tokenizer_class": "SiglipTokenizer",
    "unk_token": "<unk>",
}
GEMMA_WORDS = {
    "add_bos_token": False,
    "add_eos_token": True,
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<eos>",
    "extra_special_tokens": {},
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "padding_side": "right",
    "processor_class": "SiglipProcessor",
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}


def written(folder: Path, config: CLIPConfig, to: str, **text: Any) -> CLIPConfig:
    """A folder of random weights and their config, without preprocessing and tokenizer."""
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, **text))
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        return np.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)

    parameters = jax.tree.map(draw, variables(abstract_model(config)))
    export.write(folder, parameters, config, to)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    for name in ("README.md", ".gitattributes", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(b"x")
    return config


def golden(family: str) -> CLIPConfig:
    return library.find_weights(GOLDEN / "models" / family).config


def put(folder: Path, **files: Any) -> None:
    """Writes JSON files, or copies files: `a__json={…}` is a.json."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, Path):
            path.write_bytes(content.read_bytes())
        else:
            path.write_text(json.dumps(content))


def check(folder: Path, tokenizer: str, length: int, **pixels: Any) -> Any:
    """The folder's preprocessing and tokenizer, and that the model runs on what they give."""
    found = library.find_weights(folder)
    for key, wanted in pixels.items():
        assert getattr(found.preprocess, key) == pytest.approx(wanted), key
    assert found.tokenizer == tokenizer and not found.assumptions
    model, preprocess, tokenize = clip_jax.load(str(folder))
    rows = tokenize(TEXTS, truncate=True)
    assert rows.shape == (3, length)
    output = model(preprocess(picture(0, (31, 21)))[None], rows)
    assert np.isfinite(output.logits_per_image).all()
    return tokenize


def test_openais_clip(tmp_path: Path) -> None:
    """openai/clip-vit-base-patch32."""
    written(
        tmp_path, golden("hugging_face_clip"), "hugging_face", vocab_size=49408, context_length=16
    )
    special = {"__type": "AddedToken", "content": "<|endoftext|>", "normalized": True}
    load("clip").write_hugging_face(tmp_path)
    put(
        tmp_path,
        preprocessor_config__json=OLD_PIXELS,
        special_tokens_map__json={"eos_token": special, "pad_token": "<|endoftext|>"},
        tokenizer_config__json={
            "unk_token": special,
            "eos_token": special,
            "pad_token": "<|endoftext|>",
            "add_prefix_space": False,
            "errors": "replace",
            "do_lower_case": True,
            "name_or_path": "./clip_ViT_B_32/",
        },
        tokenizer__json={"model": {"vocab": {s: i for i, s in enumerate(bpe.symbols())}}},
    )
    check(tmp_path, "clip", 16, size=8, resize="shortest", interpolation="bicubic", mean=CLIP_MEAN)


def test_laions_clip(tmp_path: Path) -> None:
    """laion/CLIP-ViT-B-32-laion2B-s34B-b79K holds the model for both libraries."""
    config = golden("open_clip_gelu")
    for to in ("hugging_face", "open_clip"):
        written(tmp_path, config, to, vocab_size=49408, context_length=16)
    load("clip").write_hugging_face(tmp_path)
    put(
        tmp_path,
        preprocessor_config__json={
            **OLD_PIXELS,
            "crop_size": {"height": 8, "width": 8},
            "do_convert_rgb": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_processor_type": "CLIPFeatureExtractor",
            "size": {"shortest_edge": 8},
        },
    )
    check(tmp_path, "clip", 16, size=8, resize="shortest", interpolation="bicubic", std=CLIP_STD)
    assert library.find_weights(tmp_path).config.activation == "gelu"


def test_siglip(tmp_path: Path) -> None:
    """google/siglip-base-patch16-224."""
    model = GOLDEN / "siglip.model"
    size = load(f"siglip:{model}").vocab_size
    written(
        tmp_path, golden("hugging_face_siglip"), "hugging_face", vocab_size=size, context_length=64
    )
    put(
        tmp_path,
        preprocessor_config__json=SIGLIP_PIXELS,
        tokenizer_config__json=SIGLIP_WORDS,
        special_tokens_map__json={"eos_token": SPECIAL, "pad_token": SPECIAL},
        spiece__model=model,
    )
    check(tmp_path, f"siglip:{tmp_path / 'spiece.model'}", 64, size=9, resize="squash", mean=HALF)


def test_siglip2(tmp_path: Path) -> None:
    """google/siglip2-base-patch16-224: Gemma's tokenizer.json, on texts in lower case."""
    vocabulary = VOCABULARIES / "gemma" / "tokenizer.json"
    size = load(f"huggingface:{vocabulary.parent}").vocab_size
    written(
        tmp_path, golden("hugging_face_siglip"), "hugging_face", vocab_size=size, context_length=64
    )
    put(
        tmp_path,
        preprocessor_config__json={**SIGLIP_PIXELS, "resample": 2},
        tokenizer_config__json=GEMMA_WORDS,
        tokenizer__json=vocabulary,
    )
    tokenize = check(
        tmp_path, f"huggingface:{tmp_path}", 64, size=9, resize="squash", interpolation="bilinear"
    )
    np.testing.assert_array_equal(tokenize("A Photo"), tokenize("a photo"))
    assert tokenize("a photo")[0, -1] == tokenize.pad_id != tokenize.eot_id


def test_siglip2_without_a_tokenizer_json(tmp_path: Path) -> None:
    """Gemma's SentencePiece model alone gives SentencePiece's ids of lower-case text."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a cat", "a drawing of the dogs", "two owls"]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        minloglevel=2,
    )
    (tmp_path / "tokenizer.vocab").unlink()
    size = load(f"siglip:{tmp_path / 'tokenizer.model'}").vocab_size
    written(
        tmp_path, golden("hugging_face_siglip"), "hugging_face", vocab_size=size, context_length=64
    )
    put(tmp_path, preprocessor_config__json=SIGLIP_PIXELS, tokenizer_config__json=GEMMA_WORDS)
    tokenize = check(tmp_path, f"siglip:{tmp_path / 'tokenizer.model'}", 64, resize="squash")
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ids = model.encode("a photo of a cat")
    assert tokenize("A photo of a CAT")[0].tolist() == [*ids, 1, *[0] * (63 - len(ids))]


@pytest.mark.parametrize("files", ["tokenizer.json", "sentencepiece.bpe.model"])
def test_metaclip2(files: str, tmp_path: Path) -> None:
    """facebook/metaclip-2-worldwide-huge-quickgelu."""
    vocabulary = VOCABULARIES / (
        "xlm_roberta" if files == "tokenizer.json" else "xlm_roberta_pieces"
    )
    tokenizer = load(f"huggingface:{vocabulary}")
    written(
        tmp_path,
        golden("hugging_face_metaclip2"),
        "hugging_face",
        vocab_size=tokenizer.vocab_size,
        context_length=16,
        eos_id=tokenizer.eot_id,
    )
    put(
        tmp_path,
        preprocessor_config__json={
            **OLD_PIXELS,
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 8},
            "crop_size": {"height": 8, "width": 8},
        },
        tokenizer_config__json={
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "mask_token": "<mask>",
            "model_max_length": 77,
            "pad_token": "<pad>",
            "sep_token": "</s>",
            "tokenizer_class": "XLMRobertaTokenizer",
            "unk_token": "<unk>",
        },
        **{files.replace(".", "__"): vocabulary / files},
    )
    tokenize = check(tmp_path, f"huggingface:{tmp_path}", 16, resize="shortest", mean=CLIP_MEAN)
    expected = load(f"huggingface:{vocabulary}", 16)(TEXTS, truncate=True)
    np.testing.assert_array_equal(tokenize(TEXTS, truncate=True), expected)


@pytest.mark.parametrize(
    "pixels",
    [
        # timm/PE-Core-…, apple/MobileCLIP-…-OpenCLIP
        {"mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": "squash"},
        {
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
            "interpolation": "bilinear",
            "resize_mode": "shortest",
        },
    ],
)
def test_open_clips_repositories(pixels: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path, golden("open_clip_gelu"), "open_clip", vocab_size=49408, context_length=16)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = pixels
    put(tmp_path, open_clip_config__json=config)
    load("clip").write_hugging_face(tmp_path)
    check(
        tmp_path,
        "clip",
        16,
        mean=pixels["mean"],
        std=pixels["std"],
        interpolation="bilinear",
        resize=pixels["resize_mode"],
    )
