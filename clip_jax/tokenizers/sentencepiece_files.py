"""SentencePiece models of transformers' T5 and XLM-RoBERTa as a tokenizer.json.

transformers turns such a model into steps of the package `tokenizers`, whose ids are not always
SentencePiece's: a character without a piece is unknown to it, where mT5's model spells it in bytes.
open_clip's models see the former.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from clip_jax.errors import UserError

T5_FILE = "spiece.model"
XLM_FILE = "sentencepiece.bpe.model"
FILES = (T5_FILE, XLM_FILE)
_XLM = ("<s>", "<pad>", "</s>", "<unk>")  # in place of the model's first three pieces, fairseq's:
_FAIRSEQ = ["<unk>", "<s>", "</s>"]
_XLM_MASK = "<mask>"  # after its last
_T5_EXTRA = 100  # tokens after T5's pieces if no file says their number
_CONTROL, _USER_DEFINED = 3, 4  # kinds of pieces that are tokens of their own


def tokenizer_json(model: bytes, file: str, extra_ids: object, where: str) -> bytes:
    """Returns the tokenizer.json that transformers makes of a SentencePiece model.

    Args:
        model: the content of the file.
        file: its usual name, one of `FILES`.
        extra_ids: the number of T5's tokens after the pieces, from tokenizer_config.json.
        where: the file in messages.

    Raises:
        UserError: it is no unigram model of SentencePiece, or not one of this family.
    """
    proto = _parsed(model, where)
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if file == XLM_FILE:
        if [piece for piece, _ in pieces[:3]] != _FAIRSEQ:
            raise UserError(f"{where} does not begin with {', '.join(_FAIRSEQ)}, as XLM-RoBERTa's")
        vocabulary = [*((name, 0.0) for name in _XLM), *pieces[3:], (_XLM_MASK, 0.0)]
        special, unknown, template = [*_XLM, _XLM_MASK], _XLM.index("<unk>"), ["<s>", "", "</s>"]
    else:
        count = extra_ids if type(extra_ids) is int and 0 <= extra_ids <= 1000 else _T5_EXTRA
        extra = [f"<extra_id_{i}>" for i in reversed(range(count))]
        vocabulary = [*pieces, *((name, 0.0) for name in extra)]
        special, unknown = ["<pad>", "</s>", "<unk>", *extra], proto.trainer_spec.unk_id
        template = ["", "</s>"]
    ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
    if missing := [name for name in special if name not in ids]:
        raise UserError(f"{where} has no piece {missing[0]}: it is no model for a {file}")
    added = dict.fromkeys(special, True)
    for piece in proto.pieces:
        if piece.type in (_CONTROL, _USER_DEFINED) and piece.piece in ids:
            added.setdefault(piece.piece, piece.type == _CONTROL)
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    return json.dumps(_steps(vocabulary, unknown, charsmap, template, ids, added)).encode()


def _parsed(model: bytes, where: str) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        proto.Clear()
    if not proto.pieces:
        raise UserError(f"{where} is not a SentencePiece model")
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise UserError(f"{where} is no unigram model, the only kind that is supported here")
    return proto


def _steps(
    vocabulary: list[tuple[str, float]],
    unknown: int,
    charsmap: str,
    template: list[str],
    ids: dict[str, int],
    added: dict[str, bool],
) -> dict[str, Any]:
    """Returns the steps from a text to ids: normalisation, words, pieces, tokens around them."""
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    row = [
        {"SpecialToken": {"id": name, "type_id": 0}}
        if name
        else {"Sequence": {"id": "A", "type_id": 0}}
        for name in template
    ]
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": ids[name], "content": name, **plain, "special": special}
            for name, special in sorted(added.items(), key=lambda token: ids[token[0]])
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}
        if charsmap
        else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, space],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": row,
            "pair": [*row, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                name: {"id": name, "ids": [ids[name]], "tokens": [name]}
                for name in template
                if name
            },
        },
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": vocabulary,
            "byte_fallback": False,
        },
    }
