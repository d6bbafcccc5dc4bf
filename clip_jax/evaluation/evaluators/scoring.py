"""Classification by the likelihood of each label's prompts: the zero-shot of a captioner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.evaluators.zero_shot import Example, examples
from clip_jax.evaluation.metrics.scores import Score, Scorer
from clip_jax.evaluation.report import classes, probes
from clip_jax.evaluation.report.section import Section, shortened, without_thumbnails
from clip_jax.models.scoring import HEADS, scoring_head


@dataclasses.dataclass(frozen=True)
class ScoringResult(Result):
    """The result of a scoring classifier on a dataset.

    Attributes:
      metric: the name of the dataset's official metric.
      score: the value of the official metric.
      metrics: the values of all metrics that the dataset has, see `Scorer.metrics`.
      templates: the number of prompts per class.
      head: the head of the model that scores prompts.
      examples: random images; probabilities are a softmax over the scores.
    """

    metric: str
    score: Score
    metrics: dict[str, float | None]
    templates: int
    head: str
    examples: list[Example]

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns all metrics, the mean per class only where it is the official one."""
        hidden = () if self.metric == "mean_per_class" else ("mean_per_class",)
        return {name: value for name, value in self.metrics.items() if name not in hidden}


class Scoring(Evaluator[ScoringResult]):
    """Classifies each image by the label whose prompts are the likeliest captions of it.

    A decoder scores a prompt by the sum of the log-probabilities of its tokens, or by their mean
    (`evaluate.scoring`), the head `words` by the mean of those of its distinct words. The score of
    a label is the mean over its prompts.

    Source: Tschannen et al. 2023, Image Captioners Are Scalable Vision Learners Too (the sum).
    """

    name = "scoring"
    result = ScoringResult
    heads = HEADS

    def needs(self, dataset: Dataset) -> str:
        """Needs classes."""
        return "" if dataset.target is not None else "classes"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str]:
        """Depends on how a prompt is scored."""
        return [context.options.scoring]

    def run(self, context: EvalContext, dataset: Dataset) -> ScoringResult:
        """Computes scores and examples."""
        assert dataset.target is not None
        scores = context.label_scores(dataset)
        scorer = Scorer(dataset.metric, len(dataset.labels))
        scorer.add(scores, dataset.target, dataset.counts)
        return ScoringResult(
            metric=dataset.metric,
            score=scorer.result(),
            metrics=scorer.metrics(),
            templates=len(dataset.templates),
            head=scoring_head(context.encoder.config),
            examples=examples(context, dataset, scores.__getitem__),
        )

    def sections(self, results: Mapping[str, ScoringResult]) -> Iterable[Section]:
        """Returns the accuracy beside that of zero-shot classification, and examples."""
        yield Section("scoring", "Scoring classifier", without_thumbnails(probes.scoring))
        draw = partial(classes.predictions, evaluator="scoring")
        yield Section("scored", "Predictions by scores", shortened(24, draw), detail=True)
