"""Rows of token ids from texts: the one place that adds start, end and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clip_jax.errors import UserError

if TYPE_CHECKING:
    from clip_jax.tokenizers import Tokenizer


def check_context_length(context_length: int) -> int:
    """`context_length` itself; UserError where start, one token and end do not fit in it."""
    if isinstance(context_length, bool) or not isinstance(context_length, int | np.integer):
        raise UserError(f"context_length must be a whole number, not {context_length!r}")
    if context_length < 3:
        raise UserError(
            f"context_length is {context_length}: a row needs at least 3 places, "
            "for the start, one token and the end"
        )
    return int(context_length)


def pack(
    tokenizer: Tokenizer, texts: str | Sequence[str], truncate: bool = False
) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Encodes texts into rows of one width.

    Args:
        tokenizer: gives the ids, the special ids and the width.
        texts: one text or n of them.
        truncate: cut an over-long row and put the end token in its last place.

    Returns:
        int32 [n, context_length]: start, ids, end, then padding; n is 1 for a single text.

    Raises:
        UserError: a text is too long and `truncate` is False, or is no text.

    Source: `tokenize` in OpenAI's CLIP.
    """
    if isinstance(texts, str):
        texts = [texts]
    width = tokenizer.context_length
    rows = np.full((len(texts), width), tokenizer.pad_id, np.int32)
    for row, text in zip(rows, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"a text must be a str, not {type(text).__name__}: {text!r:.80}")
        ids = [tokenizer.sot_id, *tokenizer.encode(text), tokenizer.eot_id]
        if len(ids) > width:
            if not truncate:
                raise UserError(
                    f"a text takes {len(ids)} tokens, more than context_length {width}: "
                    f"{text!r:.80}; shorten it, raise context_length or pass truncate=True"
                )
            ids = [*ids[: width - 1], tokenizer.eot_id]
        row[: len(ids)] = ids
    return rows


def trim(rows: np.ndarray, multiple: int = 16) -> np.ndarray:
    """Rows without the columns after the longest text's end, but for a multiple of columns.

    Exact for a tower that never looks past the end: a causal one, or a bag of words.

    Args:
        rows: int [n, context_length]; the largest id of a row marks its end.
        multiple: of how many widths a step may be compiled for: every `multiple`-th.
    """
    longest = int(rows.argmax(axis=1).max()) + 1
    return rows[:, : -(-longest // multiple) * multiple]


def drop(row: np.ndarray, rate: float, pad_id: int, rng: np.random.Generator) -> np.ndarray:
    """A row of token ids (start, ids, end, padding) without a share of its ids; one stays.

    The largest id is the end; it moves up to what is left.
    """
    end = int(row.argmax())
    kept = rng.random(len(row)) >= rate
    kept[0] = kept[end] = True
    kept[end + 1 :] = False
    if end > 1 and not kept[1:end].any():
        kept[rng.integers(1, end)] = True
    rest = np.full_like(row, pad_id)
    rest[: kept.sum()] = row[kept]
    return rest
