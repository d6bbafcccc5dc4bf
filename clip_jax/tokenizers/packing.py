"""Rows of token ids from texts: the one place that adds start, end and padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clip_jax.errors import UserError

if TYPE_CHECKING:
    from clip_jax.tokenizers import Tokenizer

CHARACTERS = 128  # of a place of a row: a token has at most some thirty


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
        truncate: cut an over-long row and put the end token in its last place. Of a text of over
            `CHARACTERS` a place only these count, white space aside, so that a megabyte is soon
            encoded.

    Returns:
        int32 [n, context_length]: start, if the tokenizer has one, ids, end, then padding; n is 1
        for a single text.

    Raises:
        UserError: a text is too long and `truncate` is False, or is no text.

    Source: `tokenize` in OpenAI's CLIP.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise UserError(f"give a text or a list of texts, not {type(texts).__name__}")
    texts = list(texts)
    width = tokenizer.context_length
    start = [] if tokenizer.sot_id is None else [tokenizer.sot_id]
    rows = np.full((len(texts), width), tokenizer.pad_id, np.int32)
    for row, text in zip(rows, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"a text must be a str, not {type(text).__name__}: {text!r:.80}")
        if truncate and len(text) > CHARACTERS * width:
            text = " ".join(text.split())[: CHARACTERS * width]
        ids = [*start, *tokenizer.encode(text), tokenizer.eot_id]
        if len(ids) > width:
            if not truncate:
                raise UserError(
                    f"a text takes {len(ids)} tokens, more than context_length {width}: "
                    f"{text!r:.80}; shorten it, raise context_length or pass truncate=True "
                    "(--truncate)"
                )
            ids = [*ids[: width - 1], tokenizer.eot_id]
        row[: len(ids)] = ids
    return rows


def trim(rows: np.ndarray, multiple: int = 16, pad_id: int = 0) -> np.ndarray:
    """Rows without the columns after the longest text's end, but for a multiple of columns.

    Exact for a tower to which padding changes nothing: a causal one that is read out at the end,
    a bag of words, BERT. Not for SigLIP, which reads its padding and whose end is padding too.

    Args:
        rows: int [n, context_length]; a text ends with the last id that is no padding.
        multiple: of how many widths a step may be compiled for: every `multiple`-th.
        pad_id: the tokenizer's.
    """
    longest = int(_lengths(rows, pad_id).max())
    return rows[:, : -(-longest // multiple) * multiple]


def drop(
    row: np.ndarray, rate: float, pad_id: int, rng: np.random.Generator, marked: bool = True
) -> np.ndarray:
    """A row of token ids without a share of its ids; one stays, and what is left moves up.

    Args:
        row: int [context_length]: start, ids, end, padding.
        rate: the share to drop.
        pad_id: the tokenizer's.
        rng: decides which.
        marked: whether the row has a start and an end, which stay. False for SigLIP's, which have
            ids and padding alone (`tokenizer.sot_id is None`).
    """
    length = int(_lengths(row, pad_id))
    first, last = (1, length - 1) if marked else (0, length)
    kept = rng.random(len(row)) >= rate
    kept[:first] = kept[last:length] = True
    kept[length:] = False
    if last > first and not kept[first:last].any():
        kept[rng.integers(first, last)] = True
    rest = np.full_like(row, pad_id)
    rest[: kept.sum()] = row[kept]
    return rest


def _lengths(rows: np.ndarray, pad_id: int) -> np.ndarray:
    """How many ids of each row stand before its padding: int [n] of [n, width], [] of [width]."""
    place = np.arange(1, rows.shape[-1] + 1)
    return np.where(rows != pad_id, place, 0).max(axis=-1)
