"""Few-shot classifiers on the features of a dataset (section 3.1, figure 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.probe_rows import metric_of, probe_rows
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.evaluators.zero_shot import score_features
from clip_jax.evaluation.metrics import few_shot
from clip_jax.evaluation.report import probes
from clip_jax.evaluation.report.section import Section, without_thumbnails


@dataclasses.dataclass(frozen=True)
class FewShotResult(few_shot.FewShot, Result):
    """The scores of few-shot classifiers, and the zero-shot score to compare them with.

    The latter is None if the model's text tower has random values.
    """

    zero_shot: float | None

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns the mean over the draws, by number of shots."""
        return {str(shots): mean for shots, mean in zip(self.shots, self.mean, strict=True)}


class FewShot(Evaluator[FewShotResult]):
    """Logistic regression on a few images of each class."""

    name = "few_shot"
    result = FewShotResult
    pooled = True
    curves = ()

    def needs(self, dataset: Dataset) -> str:
        """Needs one class per image, and a train split with images of each class."""
        if not dataset.has_one_class_each:
            return "one class an image and a train split"
        return "" if dataset.splits else "a train split"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[object]:
        """Depends on the splits to train on and on the draws."""
        options = context.options
        return [dataset.splits.fingerprint, options.shots, options.seeds]

    def run(self, context: EvalContext, dataset: Dataset) -> FewShotResult:
        """Fits the classifiers and scores them on the test split."""
        rows = probe_rows(context, dataset)
        validation, validation_target = rows.validation
        classifiers = few_shot.few_shot(
            *rows.train,
            *rows.test,
            len(dataset.labels),
            shots=tuple(context.options.shots),
            seeds=context.options.seeds,
            metric=metric_of(dataset),
            validation=validation,
            validation_target=validation_target,
            mesh=context.encoder.mesh,
        )
        if "text" in context.untrained:
            return FewShotResult(**vars(classifiers), zero_shot=None)
        images = context.encode(dataset.name, dataset.source).features
        scorer = score_features(images, context.classifier(dataset), context.scale, dataset)
        return FewShotResult(**vars(classifiers), zero_shot=scorer.result().value)

    def sections(self, results: Mapping[str, FewShotResult]) -> Iterable[Section]:
        """Returns a chart of accuracy by images per class."""
        yield Section("few-shot", "Few-shot", without_thumbnails(probes.few_shot))
