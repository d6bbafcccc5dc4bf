"""Accuracy under natural shifts beside ImageNet's (section 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from clip_jax.errors import UserError
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Document, Evaluator, Result
from clip_jax.evaluation.evaluators.zero_shot import ZeroShotResult, score_features
from clip_jax.evaluation.metrics import robustness
from clip_jax.evaluation.metrics.scores import Score
from clip_jax.evaluation.report import overview, shifts
from clip_jax.evaluation.report.section import Section, without_thumbnails

REFERENCE = "imagenet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessResult(robustness.Shift, Result):
    """The accuracy on a shifted dataset, compared with the same classes of ImageNet."""

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns the accuracy under shift, and effective robustness."""
        return {"accuracy": self.score.value, "effective": self.effective}


class Robustness(Evaluator[RobustnessResult]):
    """Compares datasets that show classes of ImageNet's with ImageNet."""

    name = "robustness"
    result = RobustnessResult
    texts = True
    reference = REFERENCE
    curves = ()

    def needs(self, dataset: Dataset) -> str:
        """Needs classes of ImageNet's."""
        if dataset.subset is not None and dataset.target is not None:
            return ""
        return "classes of ImageNet under shift, as those of robustness"

    def run(self, context: EvalContext, dataset: Dataset) -> RobustnessResult:
        """Computes the accuracies on the dataset and on the same classes of the reference.

        Raises:
          UserError: the reference has no classes.
        """
        reference = context.datasets[REFERENCE]
        if reference.target is None or dataset.subset is None:
            raise UserError(f"evaluate.sets.{REFERENCE} tells no classes to compare with")
        shift = robustness.shift(
            _score(context, dataset),
            context.logits(reference),
            reference.target,
            dataset.subset.tolist(),
            robustness.standard(dataset.name),
        )
        return RobustnessResult(**vars(shift))

    def document(self, results: Mapping[str, RobustnessResult]) -> Document:
        """Returns `{"reference", "shifts": {DATASET: …}}` for the top; empty without results."""
        shifted = {dataset: result.to_json() for dataset, result in results.items()}
        comparison = {"reference": REFERENCE, "shifts": shifted} if shifted else {}
        return Document({}, {self.name: comparison})

    def sections(self, results: Mapping[str, RobustnessResult]) -> Iterable[Section]:
        """Returns a chart of accuracy under shift against accuracy on the reference."""
        yield Section(
            "robustness",
            "Robustness",
            without_thumbnails(shifts.robustness),
            tiles=overview.robustness_tiles,
        )


def _score(context: EvalContext, dataset: Dataset) -> Score:
    """Returns the zero-shot score of a dataset; it is computed unless it already was."""
    result = context.results.get("zero_shot", {}).get(dataset.name)
    if isinstance(result, ZeroShotResult):
        return result.score
    images = context.encode(dataset.name, dataset.source).features
    return score_features(images, context.classifier(dataset), context.scale, dataset).result()
