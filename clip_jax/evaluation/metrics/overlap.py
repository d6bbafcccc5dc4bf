"""Test images that were trained on, and their effect on a score (section 5, appendix C).

Copies are found by a fixed descriptor of images, not by the model under test. It finds images that
were resized, stretched, recompressed, mirrored, made darker, greyer or paler, and nearly all that
were cropped by a twentieth. Another drawing of the same thing is no copy. The tests state the
measured rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from clip_jax.data.images.decoding import to_rgb
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics import retrieval, scores


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The effect of overlap on an accuracy, as in the paper: All, Clean and Overlap (section 5).

    Attributes:
      threshold: an image overlaps if its similarity to a training image is at least this.
      all: the accuracy on all images.
      clean: the accuracy on the images that do not overlap.
      overlap: the accuracy on the images that overlap; None where none does.
      overlapping: the number of images that overlap.
      share: the share of images that overlap; None without images.
      difference: All - Clean; None where one is not defined.
      p_value: of the one-tailed binomial test that Overlap is no more accurate than Clean.
      low: the lower end of the 99.5 % Clopper–Pearson interval of Overlap's accuracy.
      high: the upper end of this interval.
    """

    threshold: float
    all: scores.Score
    clean: scores.Score
    overlap: scores.Score | None
    overlapping: int
    share: float | None
    difference: float | None
    p_value: float | None
    low: float | None
    high: float | None


class Pair(NamedTuple):
    """The numbers of a test image and of the training image nearest to it, and their similarity."""

    test: int
    train: int
    similarity: float


Descriptor = Float[np.ndarray, " d"]
Views = Float[np.ndarray, "n views d"] | Float[np.ndarray, "n d"]

_SMOOTH = Image.Resampling.BILINEAR
_GRID, _EDGE, _SIDE = 40, 2, 32
_LUMA, _CHROMA, _CHROMA_WEIGHT = 10, 4, 0.5
# most copies lie above it, other images below; and the bounds of a dataset's own threshold
THRESHOLD, LOWEST, HIGHEST = 0.92, 0.9, 0.98


def describe(image: Image.Image | np.ndarray) -> Descriptor:
    """Returns the descriptor of an image, a unit-norm float32 vector.

    Copies have a similarity near one. The descriptor is made of the low frequencies of the
    luminance and, coarser, of the colours, without the mean brightness. Higher frequencies get a
    larger weight, since images have less of them. A plain grey image is all zeros, and similar to
    none.

    Args:
      image: a `PIL.Image`, or uint8 [height, width, 3].
    """
    grid = _grid(image)[_EDGE:-_EDGE, _EDGE:-_EDGE]
    return _describe_all([Image.fromarray(grid)])[0]


def views(image: Image.Image | np.ndarray) -> Float[np.ndarray, "views d"]:
    """Returns the descriptors of an image and of likely copies.

    The copies are cropped or grown by a twentieth, and mirrored. One of them is similar to an image
    that was cropped from this one, or that this one was cropped from.
    """
    grid, size = _grid(image), _GRID + 2 * _EDGE
    frames = [(_EDGE, _EDGE, size - _EDGE, size - _EDGE)]
    for first, side in ((_EDGE, _GRID - _EDGE), (0, _GRID + _EDGE)):
        last = first + _EDGE
        corners = [(x, y) for x in (first, last) for y in (first, last)]
        for x, y in [*corners, (first + _EDGE // 2, first + _EDGE // 2)]:
            frames.append((x, y, x + side, y + side))
    framed = Image.fromarray(grid)
    descriptors = _describe_all([framed.crop(frame) for frame in frames])
    return np.concatenate([descriptors, descriptors * _mirror()])


def _grid(image: Image.Image | np.ndarray) -> np.ndarray:
    """Returns an image as a small square whose edge is repeated around it."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    small = to_rgb(image).resize((_GRID, _GRID), _SMOOTH, reducing_gap=3.0)
    return np.pad(np.asarray(small), ((_EDGE, _EDGE), (_EDGE, _EDGE), (0, 0)), mode="edge")


def _describe_all(squares: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
    from scipy.fft import dctn  # slow to import, as all of scipy is

    parts = []
    for square in squares:
        small = square.convert("YCbCr").resize((_SIDE, _SIDE), _SMOOTH)
        x = np.asarray(small, np.float32) - 128
        bands = dctn(x, axes=(0, 1), norm="ortho")
        luma, chroma = bands[:_LUMA, :_LUMA, 0] * _rising(_LUMA), bands[:_CHROMA, :_CHROMA, 1:]
        luma[0, 0] = 0  # brightness
        chroma = chroma * _rising(_CHROMA)[..., None] * _CHROMA_WEIGHT
        parts.append(np.concatenate([luma.ravel(), chroma.ravel()]))
    descriptors = np.stack(parts)
    length = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.where(length > 1e-3, descriptors / np.maximum(length, 1e-3), 0).astype(np.float32)


def _rising(n: int) -> np.ndarray:
    return 1.0 + np.add.outer(np.arange(n), np.arange(n))


def _mirror() -> np.ndarray:
    """Returns the effect of mirroring on a descriptor: odd horizontal waves change their sign."""
    luma = np.tile((-1.0) ** np.arange(_LUMA), _LUMA)
    chroma = np.tile(np.repeat((-1.0) ** np.arange(_CHROMA), 2), _CHROMA)
    return np.concatenate([luma, chroma]).astype(np.float32)


def nearest_train(
    test: Views,
    train: Float[np.ndarray, "m d"],
    rows: int = retrieval.ROWS,
    block: int = retrieval.BLOCK,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns each test image's nearest training image and their similarity, over all views.

    Args:
      test: the `views` of each image, or one descriptor each.
      train: descriptors; without any the number is -1, and the similarity -inf.
      rows: see `retrieval.count_ahead`.
      block: see `retrieval.count_ahead`.
    """
    return _nearest(test, train, None, rows, block)


def _nearest(
    test: Views, gallery: np.ndarray, own: np.ndarray | None, rows: int, block: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    if not len(gallery):
        return np.full(len(test), -1), np.full(len(test), -np.inf)
    view_count = test.shape[1] if test.ndim == 3 else 1
    queries = test.reshape(len(test) * view_count, test.shape[-1])
    excluded = None if own is None else np.repeat(own, view_count)
    numbers, values = retrieval.nearest(queries, gallery, 1, excluded, rows, block)
    values = values.reshape(len(test), view_count)
    best = values.argmax(axis=1)[:, None]
    numbers = np.take_along_axis(numbers.reshape(len(test), view_count), best, axis=1)[:, 0]
    return numbers, np.take_along_axis(values, best, axis=1)[:, 0]


def threshold_for(test: Views, rate: float = 0.001) -> float:
    """Returns the similarity that a share of test images reach with another image of the dataset.

    Different images of one dataset are at least as similar as images of two. A larger training set
    has more that are similar by chance, so look at the pairs. The threshold is between `LOWEST` and
    `HIGHEST`, since a dataset may have copies of its own.

    Args:
      test: the `views` of each image, or one descriptor each.
      rate: the share of test images.

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
) -> Assessment:
    """Returns the effect of overlap on an accuracy.

    Args:
      right: whether the model is right on each test image.
      similarity: the similarity of each to its nearest training image, see `nearest_train`.
      threshold: an image overlaps if its similarity is at least this.
    """
    from scipy.stats import binomtest  # slow to import, as all of scipy is

    overlapping = similarity >= threshold
    n, hits = int(np.count_nonzero(overlapping)), int(np.count_nonzero(right & overlapping))
    everything, clean = scores.share(right), scores.share(right[~overlapping])
    low, high = binomtest(hits, n).proportion_ci(0.995, method="exact") if n else (None, None)
    difference = p_value = None
    if everything.value is not None and clean.value is not None:
        difference = float(everything.value - clean.value)
        if n:
            p_value = float(binomtest(hits, n, clean.value, alternative="greater").pvalue)
    return Assessment(
        threshold=float(threshold),
        all=everything,
        clean=clean,
        overlap=scores.share(right[overlapping]) if n else None,
        overlapping=n,
        share=n / len(right) if len(right) else None,
        difference=difference,
        p_value=p_value,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
    )


def pairs(
    number: Int[np.ndarray, " n"],
    similarity: Float[np.ndarray, " n"],
    threshold: float,
    most: int = 20,
) -> list[Pair]:
    """Returns overlapping pairs for a person to look at, those nearest to the threshold first.

    Args:
      number: the nearest training image of each test image.
      similarity: their similarity.
      threshold: a pair overlaps if its similarity is at least this.
      most: the largest number of pairs.
    """
    overlapping = np.flatnonzero(similarity >= threshold)
    overlapping = overlapping[np.argsort(similarity[overlapping], kind="stable")][:most]
    return [Pair(int(i), int(number[i]), float(similarity[i])) for i in overlapping]
