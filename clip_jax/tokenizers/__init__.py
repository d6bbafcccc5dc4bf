"""Text to token ids: one protocol; byte-level BPE, SentencePiece and WordPiece behind it.

`load("clip")` is CLIP's own tokenizer, `load("sentencepiece:PATH.model")` reads any SentencePiece
model, `load("wordpiece:PATH")` is ALIGN's and `load("siglip:PATH.model")` SigLIP's; `find` says
which of them a published model's folder holds. Importing this package imports neither NumPy nor a
tokenizer's library.
"""

from __future__ import annotations

from clip_jax.errors import UserError
from clip_jax.tokenizers.folders import find
from clip_jax.tokenizers.protocol import DEFAULT_CONTEXT_LENGTH, SHORT_CONTEXT_LENGTH, Tokenizer

__all__ = ["DEFAULT_CONTEXT_LENGTH", "SHORT_CONTEXT_LENGTH", "Tokenizer", "find", "load"]


def load(name: str, context_length: int | None = None) -> Tokenizer:
    """The tokenizer that a config names.

    Args:
        name: `"clip"`; `"sentencepiece:PATH.model"`; `"wordpiece:PATH"`, a vocab.txt, a
            tokenizer.json or a folder that holds one; or `"siglip:PATH.model"`. A PATH that
            starts with `embedded:` is a file that ships with the package.
        context_length: the width of the rows; when None 77, or 64 for WordPiece and SigLIP.

    Raises:
        UserError: the name is unknown, the file is missing or not of its kind, or
            `context_length` has no room for a token between start and end.
    """
    if not isinstance(name, str):
        raise UserError(f"a tokenizer is named by a text such as 'clip', not {name!r:.60}")
    kind, _, path = name.partition(":")
    if context_length is None:
        short = kind in ("wordpiece", "siglip")
        context_length = SHORT_CONTEXT_LENGTH if short else DEFAULT_CONTEXT_LENGTH
    if name == "clip":
        from clip_jax.tokenizers.bpe import BPE

        return BPE(context_length)
    if kind not in ("sentencepiece", "wordpiece", "siglip") or not path:
        raise UserError(
            f"unknown tokenizer {name!r}: use 'clip', 'sentencepiece:PATH.model', "
            "'wordpiece:PATH' (vocab.txt, tokenizer.json or their folder) or 'siglip:PATH.model'"
        )
    from clip_jax.io.paths import resolve

    path = resolve(path)
    if kind == "wordpiece":
        from clip_jax.tokenizers.wordpiece import WordPiece

        return WordPiece(path, context_length)
    if kind == "siglip":
        from clip_jax.tokenizers.siglip import SigLIP

        return SigLIP(path, context_length)
    from clip_jax.tokenizers.sentencepiece import SentencePiece

    return SentencePiece(path, context_length)
