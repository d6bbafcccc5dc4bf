"""Sizes of the batches that a pipeline computes."""

from __future__ import annotations

import numpy as np


def batch_rows(count: int, batch_size: int, *, started: bool) -> int:
    """Returns the number of rows of a batch.

    It is such that few shapes are compiled and a single image stays small.

    Args:
      count: the number of images or texts.
      batch_size: the most rows.
      started: whether there was a batch before.
    """
    return batch_size if started else min(batch_size, 1 << (count - 1).bit_length())


def padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` rows: those given, and the last one again."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
