"""SentencePiece models of transformers' T5, XLM-RoBERTa and NLLB as a tokenizer.json.

transformers turns such a model into steps of the package `tokenizers`, whose ids are not always
SentencePiece's: a character without a piece is unknown to it, where mT5's model spells it in bytes.
open_clip's models see the former.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.tokenizers.sentencepiece_steps import CONTROL, USER_DEFINED, merges, parsed
from clip_jax.tokenizers.tokenizer_json import added_tokens, template

T5_FILE = "spiece.model"
XLM_FILE = "sentencepiece.bpe.model"
FILES = (T5_FILE, XLM_FILE)
_XLM = ("<s>", "<pad>", "</s>", "<unk>")  # in place of the model's first three pieces, fairseq's:
_FAIRSEQ = ["<unk>", "<s>", "</s>"]
_XLM_MASK = "<mask>"  # after its last
_T5_EXTRA = 100  # tokens after T5's pieces if no file says their number


def tokenizer_json(model: bytes, file: str, settings: JsonObject, where: str) -> bytes:
    """Returns the tokenizer.json that transformers makes of a SentencePiece model.

    Args:
        model: the content of the file.
        file: its usual name, one of `FILES`.
        settings: tokenizer_config.json: T5's number of tokens after the pieces, NLLB's languages.
        where: the file in messages.

    Raises:
        UserError: it is no model of SentencePiece, or not one of this family.
    """
    proto = parsed(model, where)
    nllb = file == XLM_FILE and str(settings.get("tokenizer_class")).startswith("Nllb")
    if (proto.trainer_spec.model_type == proto.trainer_spec.BPE) != nllb:
        kind = "BPE, as NLLB's" if nllb else "unigrams, as T5's and XLM-RoBERTa's"
        raise UserError(f"{where} is no model of {kind}: no other kind is supported here")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if file == XLM_FILE:
        if [piece for piece, _ in pieces[:3]] != _FAIRSEQ:
            raise UserError(f"{where} does not begin with {', '.join(_FAIRSEQ)}, as XLM-RoBERTa's")
        last = [*(_languages(settings, where) if nllb else []), _XLM_MASK]
        first, rest = ([(name, 0.0) for name in names] for names in (_XLM, last))
        vocabulary = [*first, *pieces[3:], *rest]
        special, unknown, row = [*_XLM, *last], _XLM.index("<unk>"), ["<s>", "", "</s>"]
    else:
        extra_ids = settings.get("extra_ids")
        count = extra_ids if type(extra_ids) is int and 0 <= extra_ids <= 1000 else _T5_EXTRA
        extra = [f"<extra_id_{i}>" for i in reversed(range(count))]
        vocabulary = [*pieces, *((name, 0.0) for name in extra)]
        special, unknown = ["<pad>", "</s>", "<unk>", *extra], proto.trainer_spec.unk_id
        row = ["", "</s>"]
    ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    if missing := [name for name in special if name not in ids]:
        raise UserError(f"{where} has no piece {missing[0]}: it is no model for a {file}")
    added = dict.fromkeys(special, True)
    for piece in proto.pieces:
        if piece.type in (CONTROL, USER_DEFINED) and piece.piece in ids:
            added.setdefault(piece.piece, piece.type == CONTROL)
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    return json.dumps(_steps(vocabulary, unknown, charsmap, row, ids, added, nllb)).encode()


def _languages(settings: JsonObject, where: str) -> list[str]:
    """Returns NLLB's tokens of languages, which tokenizer_config.json lists in order."""
    keys = ("additional_special_tokens", "extra_special_tokens")
    names = next((v for key in keys if isinstance(v := settings.get(key), list) and v), [])
    names = [name.get("content") if isinstance(name, dict) else name for name in names]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{where} is NLLB's, whose languages tokenizer_config.json or special_tokens_map.json "
            f"beside it must list as {keys[0]}"
        )
    return [name for name in dict.fromkeys(names) if name != _XLM_MASK]


def _steps(
    vocabulary: list[tuple[str, float]],
    unknown: int,
    charsmap: str,
    row: list[str],
    ids: dict[str, int],
    added: dict[str, bool],
    bpe: bool,
) -> dict[str, Any]:
    """Returns the steps from a text to ids: normalisation, words, pieces, tokens around them."""
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    words: JsonObject = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, space],
    }
    steps: list[JsonObject] = []
    if charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    model: JsonObject = {"unk_id": unknown, "vocab": vocabulary, "byte_fallback": False}
    if bpe:
        words = space
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        normal = [piece for piece in vocabulary if piece[0] not in added]
        model = {
            "unk_token": vocabulary[unknown][0],
            "fuse_unk": True,
            "byte_fallback": False,
            "vocab": {piece: i for i, (piece, _) in enumerate(vocabulary)},
            "merges": merges(normal),
        }
    return {
        "version": "1.0",
        "added_tokens": added_tokens(added, ids),
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": words,
        "post_processor": template(row, ids),
        "decoder": space,
        "model": {"type": "BPE" if bpe else "Unigram", **model},
    }
