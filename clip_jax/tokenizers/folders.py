"""Which tokenizer the folder of a published model holds."""

from __future__ import annotations

from pathlib import Path

from clip_jax.io.files import JsonObject
from clip_jax.tokenizers.vocab_files import nested_object, read_json

CLIP_VOCABULARY = 49_408

_BY_CLASS = {"CLIPTokenizer": "clip", "BertTokenizer": "wordpiece", "SiglipTokenizer": "siglip"}
_BY_MODEL = {"clip": "clip", "align": "wordpiece", "bert": "wordpiece", "siglip": "siglip"}
_VOCABULARIES = {"wordpiece": ("vocab.txt", "tokenizer.json"), "siglip": ("spiece.model",)}
# SentencePiece models that are read where there is no tokenizer.json, by class or model type.
_PIECES = {
    **dict.fromkeys(("T5Tokenizer", "MT5Tokenizer", "mt5"), "spiece.model"),
    **dict.fromkeys(
        ("XLMRobertaTokenizer", "xlm-roberta", "metaclip_2", "NllbTokenizer"),
        "sentencepiece.bpe.model",
    ),
}
# Classes of Gemma's tokenizer, which SigLIP 2 uses, and the files of its SentencePiece model.
_GEMMA = ("GemmaTokenizer", "Siglip2Tokenizer")
_GEMMA_PIECES = ("tokenizer.model", "spiece.model")
# Classes that say nothing about the algorithm.
_ANY_CLASS = ("", "None", "PreTrainedTokenizer", "TokenizersBackend")


def find_tokenizer(folder: Path) -> str | None:
    """Returns the name of the tokenizer in a Hugging Face or open_clip model folder, for `load`.

    The class in `tokenizer_config.json` decides first, then the model type in `config.json`, or,
    without a `config.json`, the model in `open_clip_config.json`.

    Args:
        folder: the model's files, any of which may be missing.

    Returns:
        `clip` if the folder's vocabulary is CLIP's own or the folder has none; `wordpiece:FOLDER`;
        `siglip:FILE`, a SentencePiece model of SigLIP or SigLIP 2; `huggingface:FOLDER` for any
        other that has a tokenizer.json, or a SentencePiece model of T5, XLM-RoBERTa or NLLB;
        or None if the tokenizer is another, or its vocabulary is missing.

    Raises:
        UserError: an existing file can't be read, is over 32 MiB or holds no JSON object.
    """
    folder = Path(folder)
    config = _settings(folder / "config.json")
    published = _settings(folder / "open_clip_config.json")
    named = str(_settings(folder / "tokenizer_config.json").get("tokenizer_class", ""))
    named = named.removesuffix("Fast")
    if published and not config:
        text = nested_object(published, "model_cfg", "text_cfg")
        kind = _open_clip_kind(text, named)
        other = bool(text.get("hf_tokenizer_name"))
    else:
        text = nested_object(config, "text_config")
        kind = _BY_CLASS.get(named)
        if named in _ANY_CLASS:
            kind = _BY_MODEL.get(str(config.get("model_type")))
        other = bool(config) or bool(named)
    has = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if kind == "clip":
        size = text.get("vocab_size", CLIP_VOCABULARY)
        if size == CLIP_VOCABULARY and _is_clip(folder):
            return "clip"
    elif kind is not None and has.intersection(_VOCABULARIES[kind]):
        return f"{kind}:{folder / 'spiece.model' if kind == 'siglip' else folder}"
    if other and "tokenizer.json" in has:
        return f"huggingface:{folder}"
    pieces = _PIECES.get(named) or _PIECES.get(str(config.get("model_type")))
    if other and kind is None and pieces in has:
        return f"huggingface:{folder}"
    if named in _GEMMA:
        return next((f"siglip:{folder / name}" for name in _GEMMA_PIECES if name in has), None)
    return None


def _settings(path: Path) -> JsonObject:
    return read_json(path) if path.is_file() else {}


def _open_clip_kind(text: JsonObject, named: str) -> str | None:
    """Returns the kind of tokenizer that the `text_cfg` of an open_clip model names, or None.

    A config that names no tokenizer of Hugging Face means CLIP's. SigLIP's is recognised by its
    cleaning and its pooling; the others pad and end rows differently.
    """
    if not text.get("hf_tokenizer_name"):
        return "clip" if text and not text.get("hf_model_name") else None
    options = nested_object(text, "tokenizer_kwargs")
    if options.get("clean") in ("canonicalize", "lower") and text.get("pool_type") != "eos":
        return "siglip"
    bert = named == "BertTokenizer" and options.get("strip_sep_token") is not True
    return "wordpiece" if bert else None


def _is_clip(folder: Path) -> bool:
    """Returns whether the vocabulary in a folder, if it holds one, is exactly CLIP's."""
    for name, keys in (("vocab.json", ()), ("tokenizer.json", ("model", "vocab"))):
        if (folder / name).is_file():
            from clip_jax.tokenizers.bpe import symbols

            vocabulary = nested_object(read_json(folder / name), *keys)
            return vocabulary == {symbol: i for i, symbol in enumerate(symbols())}
    return True
