"""Images of the pool that are nearly images of test sets, by the descriptor of `overlap`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float16
from PIL import Image

from clip_jax.data.example import PairError
from clip_jax.data.images import decoding
from clip_jax.data.sources import open_source, read_pair
from clip_jax.evaluation.metrics import overlap

THRESHOLD = overlap.THRESHOLD
_ROWS = 256  # images compared at a time


@functools.cache
def fingerprint(spec: str) -> str:
    """Returns a text that changes when a test set does."""
    return open_source(spec, key="--test-sets").fingerprint


@functools.cache
def _views(specs: tuple[str, ...]) -> Float[np.ndarray, "views d"]:
    """Returns the descriptors of the images of test sets and of their likely copies."""
    views = []
    for spec in specs:
        source = open_source(spec, key="--test-sets")
        for i in range(len(source)):
            try:
                pair = read_pair(source, i)
                views.append(overlap.views(decoding.decode(pair.image, pair.name)))
            except PairError:  # no image of the pool can be one that does not decode
                continue
    return np.concatenate(views)


def describe(image: Image.Image) -> Float[np.ndarray, " d"]:
    """Returns the descriptor of an image."""
    return overlap.describe(image)


def similarities(
    descriptors: Float[np.ndarray, "n d"], test_sets: Sequence[str]
) -> Float16[np.ndarray, " n"]:
    """Returns the similarity of each image to the nearest image of the test sets.

    Args:
      descriptors: of the images.
      test_sets: the specs of the test sets; a process reads them once.
    """
    views = _views(tuple(test_sets)).T
    parts = [
        (descriptors[i : i + _ROWS] @ views).max(axis=1) for i in range(0, len(descriptors), _ROWS)
    ]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float16)
