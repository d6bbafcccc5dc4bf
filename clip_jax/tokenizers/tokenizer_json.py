"""The parts of a tokenizer.json, the file of Hugging Face's `tokenizers`: from text to ids."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.io.files import JsonObject

GENERIC = "PreTrainedTokenizerFast"  # the class that follows a tokenizer.json as it is
_SPACES = [{"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}]
_ENDS = [{"type": "Strip", "strip_left": True, "strip_right": True}]
_LOWER = [{"type": "Lowercase"}]
_UNDERSCORES = [{"type": "Replace", "pattern": {"String": "_"}, "content": " "}]
_MARKS = "".join(f"\\{mark}" for mark in string.punctuation if mark != "_")
_NO_MARKS = [{"type": "Replace", "pattern": {"Regex": f"[{_MARKS}]"}, "content": ""}]
# As `usage.CLEANINGS`, but for mojibake and HTML entities, which no step repairs.
_CLEANINGS: dict[str, list[JsonObject]] = {
    "": [],
    "case": _LOWER,
    "whitespace": [*_SPACES, *_ENDS],
    "lower": [*_SPACES, *_ENDS, *_LOWER],
    "canonicalize": [*_UNDERSCORES, *_NO_MARKS, *_LOWER, *_SPACES, *_ENDS],
}


def cleaned(normalizer: JsonObject | None, clean: str) -> JsonObject | None:
    """Returns the normalizer that first cleans a text.

    Args:
        normalizer: the steps that follow; None for none.
        clean: a name of `usage.CLEANINGS`, or `case`, which only folds case.
    """
    steps = _CLEANINGS[clean]
    if not steps:
        return normalizer
    last = [normalizer] if normalizer else []
    return {"type": "Sequence", "normalizers": [*steps, *last]}


def template(names: Iterable[str], ids: Mapping[str, int]) -> JsonObject:
    """Returns the step that surrounds a text with tokens.

    Args:
        names: the tokens in order, with an empty name for the text itself.
        ids: the ids of the tokens.
    """
    names = list(names)
    row: list[JsonObject] = [
        {"SpecialToken": {"id": name, "type_id": 0}}
        if name
        else {"Sequence": {"id": "A", "type_id": 0}}
        for name in names
    ]
    return {
        "type": "TemplateProcessing",
        "single": row,
        "pair": [*row, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names if name
        },
    }


def added_tokens(tokens: Mapping[str, bool], ids: Mapping[str, int]) -> list[JsonObject]:
    """Returns the tokens that are found in a text before any step, ordered by id.

    Args:
        tokens: whether each is a special token, by its text.
        ids: the ids of the tokens.
    """
    plain: dict[str, Any] = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return [
        {"id": ids[name], "content": name, **plain, "special": tokens[name]}
        for name in sorted(tokens, key=ids.__getitem__)
    ]


def settings(context_length: int, **special: str | None) -> JsonObject:
    """Returns the tokenizer_config.json by which transformers follows a tokenizer.json as it is.

    Args:
        context_length: the width of the rows.
        special: the special tokens by their names in transformers, such as `pad_token`; None for
            those that there are not.
    """
    return {
        "tokenizer_class": GENERIC,
        "model_max_length": context_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **{key: token for key, token in special.items() if token is not None},
    }
