"""What a tokenizer is to the rest of the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

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
