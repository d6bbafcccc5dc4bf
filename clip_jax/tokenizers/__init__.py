"""Text to token ids: one protocol, byte-level BPE and SentencePiece behind it.

`load("clip")` is CLIP's own tokenizer; `load("sentencepiece:PATH.model")` reads any SentencePiece
model. Importing this package imports neither NumPy nor a tokenizer's library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from clip_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_CONTEXT_LENGTH = 77


@runtime_checkable
class Tokenizer(Protocol):
    """What a text tower, a data pipeline and an evaluator ask of a tokenizer."""

    vocab_size: int
    context_length: int
    sot_id: int
    eot_id: int
    pad_id: int

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
        name: `"clip"`, or `"sentencepiece:PATH.model"`, where a PATH that starts with `embedded:`
            is a file that ships with the package.
        context_length: the width of the rows; 77 when None.

    Raises:
        UserError: the name is unknown, the file is missing or no SentencePiece model, or
            `context_length` has no room for a token between start and end.
    """
    length = DEFAULT_CONTEXT_LENGTH if context_length is None else context_length
    kind, _, path = name.partition(":")
    if name == "clip":
        from clip_jax.tokenizers.bpe import BPE

        return BPE(length)
    if kind == "sentencepiece" and path:
        from clip_jax.data.paths import resolve
        from clip_jax.tokenizers.sentencepiece import SentencePiece

        return SentencePiece(resolve(path), length)
    raise UserError(f"unknown tokenizer {name!r}: use 'clip' or 'sentencepiece:PATH.model'")
