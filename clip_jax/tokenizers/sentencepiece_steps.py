"""A SentencePiece model as a tokenizer.json whose ids are SentencePiece's own.

open_clip and transformers read tokenizer.json; models that were trained on SentencePiece's ids are
written for them with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.tokenizers.tokenizer_json import added_tokens, cleaned, template

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces


def parsed(model: bytes, where: str) -> Any:
    """Returns the protocol buffer of a SentencePiece model.

    Raises:
        UserError: it is none, or none of unigrams or BPE.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        proto.Clear()
    if not proto.pieces:
        raise UserError(f"{where} is not a SentencePiece model")
    spec = proto.trainer_spec
    if spec.model_type not in (spec.UNIGRAM, spec.BPE):
        raise UserError(f"{where} is no SentencePiece model of unigrams or BPE")
    return proto


def merges(pieces: Sequence[tuple[str, float]]) -> list[list[str]]:
    """Returns the pairs of pieces that BPE merges, best first.

    Args:
        pieces: the pieces that merges may take and make, each with its score.
    """
    scores = dict(pieces)

    def pairs() -> Iterator[tuple[float, int, list[str]]]:
        for order, (piece, score) in enumerate(pieces):
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in scores and right in scores:
                    yield -score, order, [left, right]

    return [pair for *_, pair in sorted(pairs(), key=lambda pair: pair[:2])]


def tokenizer_json(
    model: bytes, where: str, start: str = "", end: str = "", clean: str = ""
) -> bytes:
    """Returns the tokenizer.json of a SentencePiece model.

    Args:
        model: the content of the .model file.
        where: the file in messages.
        start: the token before a text; empty for none. One that the model does not have is added
            after its pieces.
        end: the token after a text, likewise.
        clean: what is done to a text first; see `tokenizer_json.cleaned`.

    Raises:
        UserError: it is no model of unigrams or BPE.
    """
    proto = parsed(model, where)
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    tokens = {
        piece.piece: piece.type == CONTROL
        for piece in proto.pieces
        if piece.type in (CONTROL, USER_DEFINED)
    }
    for name in filter(None, (start, end)):
        ids.setdefault(name, len(ids))
        tokens[name] = True
    words = proto.normalizer_spec.add_dummy_prefix
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    content = {
        "version": "1.0",
        "added_tokens": added_tokens(tokens, ids),
        "normalizer": cleaned(_normalizer(proto, words), clean),
        "pre_tokenizer": space if words else None,
        "post_processor": template([*filter(None, [start]), "", *filter(None, [end])], ids),
        "decoder": _decoder(words),
        "model": _model(proto),
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _normalizer(proto: Any, words: bool) -> JsonObject | None:
    spec = proto.normalizer_spec
    steps: list[JsonObject] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "})
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
    if not words:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(words: bool) -> JsonObject:
    steps: list[JsonObject] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if words:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _model(proto: Any) -> JsonObject:
    spec = proto.trainer_spec
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    if spec.model_type == spec.UNIGRAM:
        return {
            "type": "Unigram",
            "unk_id": spec.unk_id,
            "vocab": pieces,
            "byte_fallback": spec.byte_fallback,
        }
    normal = [(p.piece, p.score) for p in proto.pieces if p.type == NORMAL]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[spec.unk_id][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": spec.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece: i for i, (piece, _) in enumerate(pieces)},
        "merges": merges(normal),
    }
