"""Rows of token ids from texts: the only place that adds start, end and padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clip_jax.errors import UserError

if TYPE_CHECKING:
    from clip_jax.tokenizers import Tokenizer

ABSENT = -1  # in all places of a window that a text does not have
CHARACTERS = 128  # that are read for each place of a row: a token has about thirty at most


def check_context_length(context_length: int) -> int:
    """Returns `context_length` if a start, one token and an end fit into it.

    Raises:
        UserError: they do not fit, or `context_length` is no whole number.
    """
    if isinstance(context_length, bool) or not isinstance(context_length, int | np.integer):
        raise UserError(f"context_length must be a whole number, not {context_length!r}")
    if context_length < 3:
        raise UserError(
            f"context_length is {context_length}: a row needs at least 3 places, "
            "for the start, one token and the end"
        )
    return int(context_length)


def truncated(ids: list[int], count: int) -> list[int]:
    """Returns the first `count` ids."""
    return ids[:count]


def shortener(way: str, rng: np.random.Generator) -> Callable[[list[int], int], list[int]]:
    """Returns what shortens the ids of a text, for `pack`.

    Args:
        way: `truncate` keeps the first ids, `block` consecutive ones from a random place, `random`
            random ones in their order, `shuffle` random ones in random order.
        rng: draws the ids that stay.

    Source: the text masking of CLIPA (Li et al. 2023, arXiv:2305.07017).
    """

    def shortened(ids: list[int], count: int) -> list[int]:
        if way == "block":
            first = int(rng.integers(len(ids) - count + 1))
            return ids[first : first + count]
        places = rng.permutation(len(ids))[:count]
        return [ids[place] for place in (np.sort(places) if way == "random" else places)]

    return truncated if way == "truncate" else shortened


def pack(
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    truncate: bool = False,
    shorten: Callable[[list[int], int], list[int]] = truncated,
) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Encodes texts into rows of one width.

    Args:
        tokenizer: gives the ids, the special ids and the width.
        texts: one text or n of them.
        truncate: whether to cut an over-long row and put the end token in its last place. A text of
            more than `CHARACTERS` characters a place is cut before it is encoded, so that a
            megabyte of text takes little time.
        shorten: `shorten(ids, count)` gives the `count` ids of an over-long text that stay.

    Returns:
        int32 [n, context_length]: start, if the tokenizer has one, ids, end, then padding; n is 1
        for a single text.

    Raises:
        UserError: a text is too long and `truncate` is False, or is not a str.

    Source: `tokenize` in OpenAI's CLIP.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise UserError(f"give a text or a list of texts, not {type(texts).__name__}")
    texts = list(texts)
    width = tokenizer.context_length
    start, last = _around(tokenizer)
    rows = np.full((len(texts), width), tokenizer.pad_id, np.int32)
    for row, text in zip(rows, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"a text must be a str, not {type(text).__name__}: {text!r:.80}")
        if truncate:
            text = cut(text, width)
        ids, most = tokenizer.encode(text), width - len(start) - len(last)
        if len(ids) > most:
            if not truncate:
                raise UserError(
                    f"a text takes {len(ids) + width - most} tokens, more than context_length "
                    f"{width}: {text!r:.80}; shorten it, raise context_length or pass "
                    "truncate=True (--truncate)"
                )
            ids = shorten(ids, most)
        ids = [*start, *ids, *last]
        row[: len(ids)] = ids
    return rows


def cut(text: str, width: int) -> str:
    """Returns the start of a text that is far too long for a row, so that it takes little time."""
    most = CHARACTERS * width
    return " ".join(text.split())[:most] if len(text) > most else text


def room(tokenizer: Tokenizer) -> int:
    """Returns the number of ids of a text that fit into a row."""
    return tokenizer.context_length - sum(map(len, _around(tokenizer)))


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids before and after those of a text: usually the end alone comes after it.

    A tokenizer whose rows end otherwise has `last_ids`.
    """
    start = [] if tokenizer.sot_id is None else [tokenizer.sot_id]
    return start, [*getattr(tokenizer, "last_ids", (tokenizer.eot_id,))]


def windows(
    tokenizer: Tokenizer, texts: str | Sequence[str]
) -> np.ndarray[tuple[int, int, int], np.dtype[np.int32]]:
    """Splits texts of any length into windows, each a row as `pack` makes it.

    `CLIP.encode_text` averages the features of the windows of a text.

    Args:
        tokenizer: gives the ids, the special ids and the width.
        texts: one text or n of them.

    Returns:
        int32 [n, windows, context_length]. A text with fewer windows than the longest has rows of
        `ABSENT` in place of the others.

    Raises:
        UserError: a text is not a str.
    """
    if isinstance(texts, str):
        texts = [texts]
    start, last = _around(tokenizer)
    width = tokenizer.context_length
    size = width - len(start) - len(last)
    split = []
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"a text must be a str, not {type(text).__name__}: {text!r:.80}")
        ids = tokenizer.encode(text)
        parts = [ids[first : first + size] for first in range(0, len(ids), size)] or [[]]
        split.append([[*start, *part, *last] for part in parts])
    result = np.full((len(split), max(map(len, split), default=1), width), ABSENT, np.int32)
    for text_rows, parts in zip(result, split, strict=True):
        for row, ids in zip(text_rows, parts, strict=False):
            row[:] = tokenizer.pad_id
            row[: len(ids)] = ids
    return result


def trim(rows: np.ndarray, multiple: int = 16, pad_id: int = 0) -> np.ndarray:
    """Cuts columns of padding after the end of the longest text.

    This changes nothing for a tower that ignores padding: a causal one that pools at the end, a
    bag of words, BERT. It does for SigLIP, which attends to padding and whose end is padding too.

    Args:
        rows: int [n, context_length]; a text ends with the last id that is no padding.
        multiple: the width is rounded up to a multiple of this, so that few widths are compiled.
        pad_id: the tokenizer's padding id.

    Returns:
        int [n, width].
    """
    longest = int(_lengths(rows, pad_id).max())
    return rows[:, : -(-longest // multiple) * multiple]


def drop(
    row: np.ndarray, rate: float, pad_id: int, rng: np.random.Generator, has_start: bool = True
) -> np.ndarray:
    """Drops a random share of the ids of a row, at most all but one, and closes the gaps.

    Args:
        row: int [context_length]: start, ids, end, padding.
        rate: the probability to drop an id.
        pad_id: the tokenizer's padding id.
        rng: draws which ids to drop.
        has_start: whether the row has a start and an end token, which are never dropped. False for
            SigLIP, whose rows have ids and padding only (`tokenizer.sot_id is None`).

    Returns:
        int [context_length].
    """
    length = int(_lengths(row, pad_id))
    first, last = (1, length - 1) if has_start else (0, length)
    remains = rng.random(len(row)) >= rate
    remains[:first] = remains[last:length] = True
    remains[length:] = False
    if last > first and not remains[first:last].any():
        remains[rng.integers(first, last)] = True
    shorter = np.full_like(row, pad_id)
    shorter[: remains.sum()] = row[remains]
    return shorter


def word_span(row: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns where the words of a row lie, between the start and the end token.

    Args:
        row: int [context_length]: start, if the tokenizer has one, ids, end, padding.
        tokenizer: the tokenizer that made the row.

    Returns:
        int32 [2]: the position of the first word, and the position after the last, which is that of
        the end token.
    """
    length = int(_lengths(row, tokenizer.pad_id))
    first = 0 if tokenizer.sot_id is None else 1
    has_end = length > first and row[length - 1] == tokenizer.eot_id
    return np.array([first, max(first, length - has_end)], np.int32)


def _lengths(rows: np.ndarray, pad_id: int) -> np.ndarray:
    """Returns the number of ids before the padding of each row.

    Args:
        rows: int [n, width] or [width].
        pad_id: the tokenizer's padding id.

    Returns:
        int [n] or [].
    """
    place = np.arange(1, rows.shape[-1] + 1)
    return np.where(rows != pad_id, place, 0).max(axis=-1)
