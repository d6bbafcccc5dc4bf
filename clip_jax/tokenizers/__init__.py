"""Text to token ids: one protocol; byte-level BPE, SentencePiece and WordPiece behind it.

`load("clip")` is CLIP's own tokenizer, `load("sentencepiece:PATH.model")` reads any SentencePiece
model, `load("wordpiece:PATH")` is ALIGN's and `load("siglip:PATH.model")` SigLIP's; `find` says
which of them a published model's folder holds. Importing this package imports neither NumPy nor a
tokenizer's library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from clip_jax.errors import UserError
from clip_jax.tokenizers.folders import find

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DEFAULT_CONTEXT_LENGTH", "SHORT_CONTEXT_LENGTH", "Tokenizer", "find", "load"]

DEFAULT_CONTEXT_LENGTH = 77
SHORT_CONTEXT_LENGTH = 64


@runtime_checkable
class Tokenizer(Protocol):
    """What a text tower, a data pipeline and an evaluator ask of a tokenizer.

    `sot_id` is None where rows have no start, and `eot_id` may be `pad_id` too (SigLIP). A tower
    that finds the end of a text at the largest id of its row needs `eot_id == vocab_size - 1`.
    """

    vocab_size: int
    context_length: int
    eot_id: int
    pad_id: int

    @property
    def sot_id(self) -> int | None:
        """The id that starts a row, or None."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without start, end or padding, of any length."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: start tokens give nothing, the first end token ends the text."""
        ...

    def __call__(
        self, texts: str | Sequence[str], truncate: bool = False
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """int32 [n, context_length]: start, ids, end, padding (see `packing.pack`)."""
        ...


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
    from clip_jax.data.paths import resolve

    path = resolve(path)
    if kind == "wordpiece":
        from clip_jax.tokenizers.wordpiece import WordPiece

        return WordPiece(path, context_length)
    if kind == "siglip":
        from clip_jax.tokenizers.siglip import SigLIP

        return SigLIP(path, context_length)
    from clip_jax.tokenizers.sentencepiece import SentencePiece

    return SentencePiece(path, context_length)
