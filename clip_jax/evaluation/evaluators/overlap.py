"""Test images that the model was trained on, and what they are worth (section 5)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import Source, read_pair
from clip_jax.errors import UserError
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.datasets.dataset_loader import nothing_left_out
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.evaluators.zero_shot import blocks
from clip_jax.evaluation.metrics import overlap, retrieval, scores
from clip_jax.evaluation.report import pairs
from clip_jax.evaluation.report.section import Section, shortened
from clip_jax.evaluation.result_cache import key_of
from clip_jax.evaluation.serialization import Thumbnail

_PART = 1024  # images between two updates of the progress bar
_SHOWN = 12  # pairs


@dataclasses.dataclass(frozen=True)
class Twins:
    """A test image, the training image nearest to it, and their similarity."""

    test: Thumbnail
    train: Thumbnail
    similarity: float


@dataclasses.dataclass(frozen=True)
class OverlapResult(overlap.Assessment, Result):
    """The effect of overlap on the accuracy.

    Attributes:
      suggested_threshold: the threshold that this dataset's own images suggest.
      pairs: overlapping pairs near the threshold.
    """

    suggested_threshold: float
    pairs: list[Twins]

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns the share of images that overlap, and the effect on the accuracy."""
        return {"share": self.share, "difference": self.difference}


class Overlap(Evaluator[OverlapResult]):
    """Looks for near-duplicates of test images in the training images."""

    name = "overlap"
    result = OverlapResult
    training = True
    curves = ()

    def needs(self, dataset: Dataset) -> str:
        """Needs classes or captions."""
        return "" if dataset.target is not None or dataset.texts else "classes or captions"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[object]:
        """Depends on the threshold and the training images."""
        return [dataset.threshold, *(source.fingerprint for source in context.training)]

    def run(self, context: EvalContext, dataset: Dataset) -> OverlapResult:
        """Computes the overlap with the training images, and picks some pairs to show.

        Raises:
          UserError: there are no training images to compare with.
        """
        if not context.training:
            raise UserError(f"{self.name} compares with the training images: there are none")
        with nothing_left_out(dataset.name):
            views = _describe_all(context, f"{dataset.name} copies", dataset.source, overlap.views)
        train = [_training_descriptors(context, source) for source in context.training]
        number, similarity = overlap.nearest_train(views, np.concatenate(train))
        threshold = overlap.THRESHOLD if dataset.threshold is None else dataset.threshold
        assessment = overlap.assess(_is_right(context, dataset), similarity, threshold)
        shown: list[overlap.Pair] = []
        if context.options.pictures:
            shown = overlap.pairs(number, similarity, threshold, _SHOWN)
        ends = np.cumsum([len(descriptors) for descriptors in train])
        return OverlapResult(
            **vars(assessment),
            suggested_threshold=overlap.threshold_for(views),
            pairs=[_twins(context, dataset, pair, ends) for pair in shown],
        )

    def sections(self, results: Mapping[str, OverlapResult]) -> Iterable[Section]:
        """Returns a table of all datasets, and pairs of images."""
        yield Section("overlap", "Data overlap", shortened(16, pairs.overlap))


def _twins(context: EvalContext, dataset: Dataset, pair: overlap.Pair, ends: np.ndarray) -> Twins:
    """Returns the thumbnails of a pair.

    Args:
      ends: the ends of the training sources in their joint numbers.
    """
    which = int(np.searchsorted(ends, pair.train, side="right"))
    own = pair.train - int(ends[which - 1] if which else 0)
    return Twins(
        test=context.thumbnail(dataset.source, pair.test),
        train=context.thumbnail(context.training[which], own),
        similarity=pair.similarity,
    )


def _is_right(context: EvalContext, dataset: Dataset) -> np.ndarray:
    """Returns whether the model is right on each image: its class, or else its first text."""
    images = context.encode(dataset.name, dataset.source).features
    if dataset.target is None:
        texts = context.encode_texts(dataset.texts)
        return retrieval.count_ahead(images, texts, dataset.image_group, dataset.text_group) < 1
    weights, right = context.classifier(dataset), np.empty(len(images), bool)
    for rows in blocks(len(images), len(weights)):
        logits, target = images[rows] @ weights.T, dataset.target[rows]
        if target.ndim == 1:
            right[rows] = scores.ranks(logits, target) < 1
        else:  # any of its labels
            right[rows] = np.take_along_axis(target, logits.argmax(axis=1)[:, None], 1)[:, 0]
    return right


def _training_descriptors(context: EvalContext, source: Source) -> np.ndarray:
    """Returns the descriptors of training images.

    They are zeros for a broken image, which training leaves out.
    """
    ramp = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    version = overlap.describe(ramp).tolist()  # changes with the descriptor
    key = key_of("descriptors", version, source.fingerprint, len(source))
    if key not in context.descriptors:
        descriptors = context.cache.descriptors(key, len(source))
        if descriptors is None:
            blank = overlap.describe(Image.new("RGB", (8, 8), (128, 128, 128)))
            descriptors = _describe_all(
                context, "training images", source, overlap.describe, broken=blank
            )
            context.cache.keep_descriptors(key, descriptors)
        context.descriptors[key] = descriptors
    return context.descriptors[key]


def _describe_all(
    context: EvalContext,
    name: str,
    source: Source,
    describe: Callable[[Image.Image], np.ndarray],
    broken: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the descriptors of all images in order.

    Args:
      context: the context of the evaluation.
      name: the name that the progress bar shows.
      source: the images.
      describe: returns the descriptor of an image.
      broken: the descriptor of an image that cannot be used; None: such an image is an error.

    Raises:
      PairError: an image cannot be used.
    """

    def describe_image(i: int) -> np.ndarray:
        try:
            pair = read_pair(source, i)
            with only_pair_errors("picture", pair.name):
                return describe(decode(pair.image, pair.name))
        except PairError:
            if broken is None:
                raise
            return broken

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, context.progress(name, len(source)) as advance:
        for first in range(0, len(source), _PART):
            numbers = range(first, min(first + _PART, len(source)))
            parts.append(np.stack(list(pool.map(describe_image, numbers))))
            advance(len(numbers))
    return np.concatenate(parts)
