"""Zero-shot classification of a dataset, and what follows from its logits (section 3.1)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from clip_jax.evaluation import contact_sheet
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.features import Features
from clip_jax.evaluation.metrics import calibration, zero_shot
from clip_jax.evaluation.metrics.calibration import Calibration, Confusion
from clip_jax.evaluation.metrics.scores import ByClass, Score, Scorer
from clip_jax.evaluation.report import classes, overview
from clip_jax.evaluation.report.section import Section, shortened, without_thumbnails
from clip_jax.evaluation.serialization import Thumbnail

_BLOCK = 8 << 20  # logits that exist at once
_SHOWN = 5  # labels of an example


@dataclasses.dataclass(frozen=True)
class Example:
    """An image with its likeliest labels and their probabilities, best first.

    Attributes:
      picture: the image.
      name: the name of its file.
      truths: its true labels.
      truth: all true labels as one text.
      labels: the likeliest labels.
      probabilities: the probabilities of these labels.
    """

    picture: Thumbnail
    name: str
    truth: str
    truths: list[str]
    labels: list[str]
    probabilities: list[float]


@dataclasses.dataclass(frozen=True)
class ZeroShotResult(Result):
    """The result of zero-shot classification of a dataset.

    Attributes:
      metric: the name of the dataset's official metric.
      score: the value of the official metric.
      metrics: the values of all metrics that the dataset has, see `Scorer.metrics`.
      templates: the number of prompts per class.
      per_class: the accuracy of every class.
      examples: random images.
      confusions: pairs of confused classes; only for datasets with one class per image.
      calibration: the calibration; only for datasets with one class per image.
      prompts: the score by kind of prompt; only in detailed evaluations.
    """

    metric: str
    score: Score
    metrics: dict[str, float | None]
    templates: int
    per_class: ByClass
    examples: list[Example]
    confusions: list[Confusion] | None = None
    calibration: Calibration | None = None
    prompts: dict[str, Score] | None = None

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns all metrics, the mean per class only where it is the official one."""
        hidden = () if self.metric == "mean_per_class" else ("mean_per_class",)
        return {name: value for name, value in self.metrics.items() if name not in hidden}

    def sheet(self, dataset: Dataset) -> Image.Image | None:
        """Returns the examples as a contact sheet; None without examples."""
        if not self.examples:
            return None
        guesses = [
            contact_sheet.Guess(
                Image.open(io.BytesIO(example.picture.content)).convert("RGB"),
                example.truth,
                example.labels,
                example.probabilities,
            )
            for example in self.examples
        ]
        title = f"{dataset.name}: {len(guesses)} random images of {len(dataset):,}, "
        title += f"likeliest of {len(dataset.labels):,} labels"
        return contact_sheet.draw_guesses(guesses, title)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yields slices of rows that are small enough for a matrix with `columns` columns."""
    step = max(1, _BLOCK // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def score_features(images: Features, weights: Features, scale: float, dataset: Dataset) -> Scorer:
    """Scores a zero-shot classifier on the features of a dataset's images.

    Args:
      images: the features of the images.
      weights: the weights of the classifier, a row per class.
      scale: the factor on the cosines.
      dataset: the dataset, for its targets and its metric.
    """
    assert dataset.target is not None
    scorer = Scorer(dataset.metric, len(dataset.labels))
    for rows in blocks(len(images), len(weights)):
        counts = None if dataset.counts is None else dataset.counts[rows]
        scorer.add(scale * images[rows] @ weights.T, dataset.target[rows], counts)
    return scorer


ACCURACY = Section(
    "accuracy", "Accuracy", without_thumbnails(overview.accuracy), tiles=overview.zero_shot_tiles
)


class ZeroShot(Evaluator[ZeroShotResult]):
    """Classifies each image by the nearest class, and compares prompts."""

    name = "zero_shot"
    result = ZeroShotResult
    texts = True

    def needs(self, dataset: Dataset) -> str:
        """Needs classes."""
        return "" if dataset.target is not None else "classes"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str]:
        """Depends on nothing else."""
        return ()

    def run(self, context: EvalContext, dataset: Dataset) -> ZeroShotResult:
        """Computes scores, examples, confusions and calibration; in detail, also prompts."""
        images = context.encode(dataset.name, dataset.source).features
        weights = context.classifier(dataset)
        scorer = score_features(images, weights, context.scale, dataset)
        score = scorer.result()
        confusions, calibrated, prompts = None, None, None
        if dataset.target is not None and dataset.has_one_class_each:
            logits = context.scale * images @ weights.T
            confusions = calibration.confusions(logits, dataset.target, dataset.labels)
            calibrated = calibration.calibration(logits, dataset.target)
        if context.detailed and dataset.templates != ("{}",):
            prompts = {**_compare_prompts(context, dataset, images), "all templates": score}
        return ZeroShotResult(
            metric=dataset.metric,
            score=score,
            metrics=scorer.metrics(),
            templates=len(dataset.templates),
            per_class=scorer.per_class(dataset.labels),
            examples=examples(context, dataset, lambda i: context.scale * images[i] @ weights.T),
            confusions=confusions,
            calibration=calibrated,
            prompts=prompts,
        )

    def sections(self, results: Mapping[str, ZeroShotResult]) -> Iterable[Section]:
        """Returns accuracy and prompts; in detail calibration, confusions, classes, examples."""
        yield ACCURACY
        yield Section("prompts", "Prompts", without_thumbnails(overview.prompts))
        yield Section(
            "calibration", "Calibration", without_thumbnails(classes.calibration), detail=True
        )
        yield Section("confusions", "Confusions", shortened(20, classes.confusions), detail=True)
        yield Section(
            "classes", "Accuracy by class", shortened(4000, classes.per_class), detail=True
        )
        yield Section("predictions", "Predictions", shortened(24, classes.predictions), detail=True)


def _compare_prompts(context: EvalContext, dataset: Dataset, images: Features) -> dict[str, Score]:
    """Returns the scores with the name alone, and with one template."""
    kinds = {"name alone": ("{}",), "one template": dataset.templates[:1]}
    return {
        kind: score_features(
            images, context.classifier(dataset, templates), context.scale, dataset
        ).result()
        for kind, templates in kinds.items()
    }


def examples(
    context: EvalContext, dataset: Dataset, logits_of: Callable[[int], np.ndarray]
) -> list[Example]:
    """Returns random images with their likeliest labels.

    Args:
      context: the context of the evaluation.
      dataset: a dataset with classes.
      logits_of: returns the logits of all labels for an image, given its number.
    """
    assert dataset.target is not None
    shown = []
    for i in context.choose(dataset, context.options.pictures):
        order, probabilities = zero_shot.likeliest(logits_of(i), min(_SHOWN, len(dataset.labels)))
        target = dataset.target[i]
        truths = [dataset.labels[j] for j in (np.flatnonzero(target) if target.ndim else [target])]
        shown.append(
            Example(
                picture=context.thumbnail(dataset.source, i),
                name=dataset.source[i].name,
                truth=", ".join(truths),
                truths=truths,
                labels=[dataset.labels[j] for j in order],
                probabilities=[float(probability) for probability in probabilities],
            )
        )
    return shown
