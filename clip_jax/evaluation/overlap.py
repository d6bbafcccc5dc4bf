"""Test pictures that were trained on, and what they add to a score (section 5, appendix C).

The model under test does not look for them: a fixed descriptor of a picture does. It finds copies
that were resized, stretched, recompressed, mirrored, made darker, greyer or paler, or cropped by a
twentieth, a few of the last not; another drawing of the same thing is no copy. The measured rates
stand in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.fft import dctn
from scipy.stats import binomtest

from clip_jax.data.images.decoding import to_rgb
from clip_jax.errors import UserError
from clip_jax.evaluation import retrieval, scores

Descriptor = Float[np.ndarray, " d"]
Views = Float[np.ndarray, "n views d"] | Float[np.ndarray, "n d"]

_SMOOTH = Image.Resampling.BILINEAR
_GRID, _EDGE, _SIDE = 40, 2, 32
_LUMA, _CHROMA, _CHROMA_WEIGHT = 10, 4, 0.5
# most copies lie above, other pictures below; and within which bounds a set may have its own
THRESHOLD, LOWEST, HIGHEST = 0.92, 0.9, 0.98


def describe(image: Image.Image | np.ndarray) -> Descriptor:
    """A picture as a unit-norm float32 vector; copies have a similarity near one.

    The low frequencies of its luminance and, coarser, of its colours, without its brightness; each
    counts the more, the higher it is, as pictures have the less of it. A plain grey picture is all
    zeros, and like none. A picture is a `PIL.Image` or uint8 [height, width, 3].
    """
    whole = _grid(image)[_EDGE:-_EDGE, _EDGE:-_EDGE]
    return _described([Image.fromarray(whole)])[0]


def views(image: Image.Image | np.ndarray) -> Float[np.ndarray, "views d"]:
    """`describe` of a picture and its likely copies: cropped or grown by a twentieth, mirrored.

    One of them is like a picture that was cut out of this one, or that this one was cut out of.
    """
    whole, size = _grid(image), _GRID + 2 * _EDGE
    frames = [(_EDGE, _EDGE, size - _EDGE, size - _EDGE)]
    for first, side in ((_EDGE, _GRID - _EDGE), (0, _GRID + _EDGE)):
        last = first + _EDGE
        corners = [(x, y) for x in (first, last) for y in (first, last)]
        for x, y in [*corners, (first + _EDGE // 2, first + _EDGE // 2)]:
            frames.append((x, y, x + side, y + side))
    cut = Image.fromarray(whole)
    found = _described([cut.crop(frame) for frame in frames])
    return np.concatenate([found, found * _mirror()])


def _grid(image: Image.Image | np.ndarray) -> np.ndarray:
    """A picture as a small square whose edge is repeated around it."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    small = to_rgb(image).resize((_GRID, _GRID), _SMOOTH, reducing_gap=3.0)
    return np.pad(np.asarray(small), ((_EDGE, _EDGE), (_EDGE, _EDGE), (0, 0)), mode="edge")


def _described(squares: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
    parts = []
    for square in squares:
        small = square.convert("YCbCr").resize((_SIDE, _SIDE), _SMOOTH)
        x = np.asarray(small, np.float32) - 128
        bands = dctn(x, axes=(0, 1), norm="ortho")
        luma, chroma = bands[:_LUMA, :_LUMA, 0] * _rising(_LUMA), bands[:_CHROMA, :_CHROMA, 1:]
        luma[0, 0] = 0  # brightness
        chroma = chroma * _rising(_CHROMA)[..., None] * _CHROMA_WEIGHT
        parts.append(np.concatenate([luma.ravel(), chroma.ravel()]))
    found = np.stack(parts)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(length > 1e-3, found / np.maximum(length, 1e-3), 0).astype(np.float32)


def _rising(n: int) -> np.ndarray:
    return 1.0 + np.add.outer(np.arange(n), np.arange(n))


def _mirror() -> np.ndarray:
    """What mirroring a picture does to its descriptor: odd waves across it change their sign."""
    luma = np.tile((-1.0) ** np.arange(_LUMA), _LUMA)
    chroma = np.tile(np.repeat((-1.0) ** np.arange(_CHROMA), 2), _CHROMA)
    return np.concatenate([luma, chroma]).astype(np.float32)


def nearest_train(
    test: Views,
    train: Float[np.ndarray, "m d"],
    rows: int = retrieval.ROWS,
    block: int = retrieval.BLOCK,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Each test picture's nearest training picture and their similarity, over all its views.

    `test` holds `views` of each picture, or one descriptor each; `train` descriptors. Without a
    training picture the number is -1, and the similarity -inf. See `retrieval.ahead` for `rows`
    and `block`.
    """
    return _nearest(test, train, None, rows, block)


def _nearest(
    test: Views, gallery: np.ndarray, own: np.ndarray | None, rows: int, block: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    if not len(gallery):
        return np.full(len(test), -1), np.full(len(test), -np.inf)
    each = test.shape[1] if test.ndim == 3 else 1
    flat = test.reshape(len(test) * each, test.shape[-1])
    barred = None if own is None else np.repeat(own, each)
    numbers, values = retrieval.nearest(flat, gallery, 1, barred, rows, block)
    values = values.reshape(len(test), each)
    best = values.argmax(axis=1)[:, None]
    numbers = np.take_along_axis(numbers.reshape(len(test), each), best, axis=1)[:, 0]
    return numbers, np.take_along_axis(values, best, axis=1)[:, 0]


def threshold_for(test: Views, rate: float = 0.001) -> float:
    """A similarity that only a share `rate` of test pictures reaches with another one of the set.

    Different pictures of one set are alike as those of two sets are, or more so; each has here only
    as many others as the set holds, and in a larger training set more will be by chance. Between
    `LOWEST` and `HIGHEST`, since a set may hold copies of its own. Look at the pairs.

    Raises:
      UserError: `rate` is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise UserError(f"the rate of false overlaps is between 0 and 1, not {rate}")
    if len(test) < 2:
        return LOWEST
    gallery = test[:, 0] if test.ndim == 3 else test
    others = _nearest(test, gallery, np.arange(len(test)), retrieval.ROWS, retrieval.BLOCK)[1]
    return float(np.clip(np.quantile(others, 1 - rate, method="higher"), LOWEST, HIGHEST))


def assess(
    right: Bool[np.ndarray, " n"], similarity: Float[np.ndarray, " n"], threshold: float
) -> dict[str, Any]:
    """What overlap does to an accuracy, as in the paper: All, Clean and Overlap.

    Source: section 5. `difference` is All − Clean; `p_value` is the one-tailed binomial test that
    Overlap is no more accurate than Clean; `low` and `high` are the 99.5 % Clopper–Pearson interval
    of Overlap's accuracy. What has no rows to be counted on is None.

    Args:
      right: whether the model is right on each test picture.
      similarity: to its nearest training picture, see `nearest_train`.
      threshold: a picture as similar as that, or more, overlaps.
    """
    found = similarity >= threshold
    n, hits = int(np.count_nonzero(found)), int(np.count_nonzero(right & found))
    whole, clean = scores.share(right), scores.share(right[~found])
    low, high = binomtest(hits, n).proportion_ci(0.995, method="exact") if n else (None, None)
    difference = p_value = None
    if whole["value"] is not None and clean["value"] is not None:
        difference = float(whole["value"] - clean["value"])
        if n:
            p_value = float(binomtest(hits, n, clean["value"], alternative="greater").pvalue)
    return {
        "threshold": float(threshold),
        "all": whole,
        "clean": clean,
        "overlap": scores.share(right[found]) if n else None,
        "overlapping": n,
        "share": n / len(right) if len(right) else None,
        "difference": difference,
        "p_value": p_value,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
    }


def pairs(
    number: Int[np.ndarray, " n"],
    similarity: Float[np.ndarray, " n"],
    threshold: float,
    most: int = 20,
) -> list[dict[str, int | float]]:
    """The overlapping pairs nearest to the threshold: those that a person should look at.

    `{"test": its number, "train": the training picture's, "similarity"}`, the least alike first.
    """
    found = np.flatnonzero(similarity >= threshold)
    found = found[np.argsort(similarity[found], kind="stable")][:most]
    return [
        {"test": int(i), "train": int(number[i]), "similarity": float(similarity[i])} for i in found
    ]
