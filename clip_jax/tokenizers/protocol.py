"""What a tokenizer is to the rest of the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

DEFAULT_CONTEXT_LENGTH = 77
SHORT_CONTEXT_LENGTH = 64


class TokenizerKind(Protocol):
    """An entry of `TOKENIZERS`, usually the tokenizer's own class."""

    def open(self, path: str, context_length: int | None) -> Tokenizer:
        """Makes a tokenizer.

        Args:
            path: the file or folder that follows the prefix in the name; empty if there is none.
            context_length: the width of the rows; None for the tokenizer's own default.

        Raises:
            UserError: the file cannot be read, or the width is too small.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of tokenizers for text towers, data pipelines and evaluators.

    A tower that finds the end of a text at the largest id of its row needs
    `eot_id == vocab_size - 1`. Worker processes receive a tokenizer by pickle. One whose rows end
    otherwise than by `eot_id` alone has an attribute `last_ids`, the ids after those of a text.

    Attributes:
        vocab_size: the number of ids.
        context_length: the width of the rows.
        sot_id: the id that starts a row; None if rows have no start token.
        eot_id: the id that ends a text; it may equal `pad_id` (SigLIP).
        pad_id: the id of padding.
    """

    vocab_size: int
    context_length: int
    eot_id: int
    pad_id: int

    @property
    def sot_id(self) -> int | None:
        """The id that starts a row, or None if rows have no start token."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text of any length, without start, end or padding."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, without start tokens and up to the first end token."""
        ...

    def __call__(
        self, texts: str | Sequence[str], truncate: bool = False
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Tokenizes texts; see `packing.pack`.

        Returns:
            int32 [n, context_length]: start, ids, end, padding.
        """
        ...
