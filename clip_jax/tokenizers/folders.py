"""Tokenizers in the folders of published models: which one a folder holds, its files in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_jax import files
from clip_jax.errors import UserError

LARGEST_FILE = 32 << 20
CLIP_VOCABULARY = 49_408

_BY_CLASS = {"CLIPTokenizer": "clip", "BertTokenizer": "wordpiece", "SiglipTokenizer": "siglip"}
_BY_MODEL = {"clip": "clip", "align": "wordpiece", "bert": "wordpiece", "siglip": "siglip"}
# Classes that say nothing about the algorithm.
_ANY_CLASS = ("", "None", "PreTrainedTokenizer", "TokenizersBackend")


def find(folder: Path) -> str | None:
    """The name, as for `load`, of the tokenizer in a Hugging Face or open_clip model folder.

    What a file says counts more than what it implies: the class in `tokenizer_config.json`, then
    the model in `config.json`, or, where there is none, the one in `open_clip_config.json`.

    Args:
        folder: where the model's files lie; any of them may be missing.

    Returns:
        `clip`, where the folder's vocabulary is CLIP's own or the folder has none;
        `wordpiece:FOLDER`, `siglip:FOLDER/spiece.model`; or None, where the tokenizer is none of
        these or lacks its vocabulary.

    Raises:
        UserError: a file that is there can't be read, is over 32 MiB or holds no JSON object.
    """
    folder = Path(folder)
    config = _settings(folder / "config.json")
    published = _settings(folder / "open_clip_config.json")
    if published and not config:
        text = inside(published, "model_cfg", "text_cfg")
        kind = _open_clip_kind(text)
    else:
        text = inside(config, "text_config")
        named = str(_settings(folder / "tokenizer_config.json").get("tokenizer_class", ""))
        named = named.removesuffix("Fast")
        kind = _BY_CLASS.get(named)
        if named in _ANY_CLASS:
            kind = _BY_MODEL.get(str(config.get("model_type")))
    if kind == "clip":
        size = text.get("vocab_size", CLIP_VOCABULARY)
        return "clip" if size == CLIP_VOCABULARY and _is_clip(folder) else None
    if kind == "wordpiece" and any((folder / n).is_file() for n in ("vocab.txt", "tokenizer.json")):
        return f"wordpiece:{folder}"
    if kind == "siglip" and (folder / "spiece.model").is_file():
        return f"siglip:{folder / 'spiece.model'}"
    return None


def read(path: Path) -> bytes:
    """A file's bytes; UserError where it can't be read or is over 32 MiB."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(
            f"{str(path)!r} is larger than {LARGEST_FILE >> 20} MiB: that is no tokenizer's file"
        )
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where it can't be read or holds anything else."""
    try:
        value = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{str(path)!r} is not JSON: {reason}") from error
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r} holds {type(value).__name__}, not a JSON object")
    return value


def inside(value: Any, *keys: str) -> dict[str, Any]:
    """The object under `keys`; an empty one where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, with the folders that it needs; UserError where not."""
    try:
        with files.whole(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object for people to read; UserError where it can't be written."""
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _open_clip_kind(text: dict[str, Any]) -> str | None:
    """The kind of tokenizer that the `text_cfg` of an open_clip model means.

    It names one of Hugging Face's or means CLIP's. SigLIP's is known by its cleaning; the others
    pad and end rows in ways of their own.
    """
    if not text.get("hf_tokenizer_name"):
        return "clip" if text and not text.get("hf_model_name") else None
    return "siglip" if inside(text, "tokenizer_kwargs").get("clean") == "canonicalize" else None


def _is_clip(folder: Path) -> bool:
    """Whether the vocabulary in a folder, if it holds one, is CLIP's to the last entry."""
    for name, keys in (("vocab.json", ()), ("tokenizer.json", ("model", "vocab"))):
        if (folder / name).is_file():
            from clip_jax.tokenizers.bpe import symbols

            found = inside(read_json(folder / name), *keys)
            return found == {symbol: i for i, symbol in enumerate(symbols())}
    return True
