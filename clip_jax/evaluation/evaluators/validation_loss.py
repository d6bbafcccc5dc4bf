"""The contrastive loss of held-out pairs, in batches of a fixed size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.metrics import validation_loss
from clip_jax.evaluation.report import losses
from clip_jax.evaluation.report.section import Section, without_thumbnails


@dataclasses.dataclass(frozen=True)
class ValidationLossResult(validation_loss.ValidationLoss, Result):
    """The loss and accuracies of held-out pairs."""

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns `loss`, `image_to_text_accuracy` and `text_to_image_accuracy`."""
        return {
            "loss": self.loss,
            "image_to_text_accuracy": self.image_to_text_accuracy,
            "text_to_image_accuracy": self.text_to_image_accuracy,
        }


class ValidationLoss(Evaluator[ValidationLossResult]):
    """The loss that training minimizes, on pairs that it does not see."""

    name = "validation_loss"
    result = ValidationLossResult
    texts = True
    curves = ("/loss",)

    def needs(self, dataset: Dataset) -> str:
        """Needs captions."""
        return "" if len(dataset.texts) > 1 and len(dataset) > 1 else "captions"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[int]:
        """Depends on the batch size."""
        return [context.options.loss_batch]

    def run(self, context: EvalContext, dataset: Dataset) -> ValidationLossResult:
        """Computes the mean loss of batches of `evaluate.loss_batch` pairs, one pair per image."""
        images, texts = validation_loss.choose_pairs(dataset.image_group, dataset.text_group)
        result = validation_loss.validation_loss(
            context.encode(dataset.name, dataset.source).features[images],
            context.encode_texts(dataset.texts)[texts],
            dataset.image_group[images],
            context.scale,
            context.encoder.logit_bias(),
            context.options.loss_batch,
        )
        return ValidationLossResult(**vars(result))

    def sections(self, results: Mapping[str, ValidationLossResult]) -> Iterable[Section]:
        """Returns the section with the table of losses."""
        yield Section(
            "validation_loss", "Validation loss", without_thumbnails(losses.validation_losses)
        )
