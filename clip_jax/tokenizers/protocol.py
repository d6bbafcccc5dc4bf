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
            path: the file or folder that the name holds after its prefix; empty without one.
            context_length: the width of the rows; None for the tokenizer's own default.

        Raises:
            UserError: the file cannot be read, or the width is too small.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """What a text tower, a data pipeline and an evaluator need of a tokenizer.

    `sot_id` is None if rows have no start token, and `eot_id` may equal `pad_id` (SigLIP). A tower
    that finds the end of a text at the largest id of its row needs `eot_id == vocab_size - 1`.
    Worker processes receive a tokenizer by pickle.
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
