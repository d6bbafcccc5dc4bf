"""How a model's answers differ between groups of people (section 7.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.features import Features, classifier
from clip_jax.evaluation.metrics import bias
from clip_jax.evaluation.report import shifts
from clip_jax.evaluation.report.section import Section, without_thumbnails


@dataclasses.dataclass(frozen=True)
class BiasResult(Result):
    """Tables of rates by group."""

    tables: list[bias.Table]


class Bias(Evaluator[BiasResult]):
    """Counts labels by race, gender and age."""

    name = "bias"
    result = BiasResult
    texts = True
    curves = ()

    def needs(self, dataset: Dataset) -> str:
        """Needs groups of people."""
        return "" if dataset.groups else "groups of people, as fairface has"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str]:
        """Depends on nothing else."""
        return ()

    def run(self, context: EvalContext, dataset: Dataset) -> BiasResult:
        """Returns accuracies, harmful labels and labels of occupations by group."""
        images = context.encode(dataset.name, dataset.source).features
        labels = bias.label_sets()

        def logits(names: Sequence[str], template: str) -> np.ndarray:
            weights: Features = classifier(context.encoder, context.tokenizer, names, [template])
            return context.scale * images @ weights.T

        answers = {}
        for field, described in labels.classifiers.items():
            if field in dataset.groups:
                values = sorted(set(dataset.groups[field]))
                names = [described.names.get(value, value) for value in values]
                target = np.array([values.index(value) for value in dataset.groups[field]])
                answers[field] = logits(names, described.template), target
        tables = bias.accuracies(answers, dataset.groups) if answers else []
        names, _ = bias.harm_labels(child=True)
        tables += bias.harms(logits(names, labels.template), dataset.groups)
        if "gender" in dataset.groups:
            likely = logits(labels.people, labels.template)
            shares = np.exp(likely - likely.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            tables += bias.label_rates(shares, labels.people, dataset.groups["gender"])
        return BiasResult(tables)

    def sections(self, results: Mapping[str, BiasResult]) -> Iterable[Section]:
        """Returns the section with the tables of rates."""
        yield Section("bias", "Bias", without_thumbnails(shifts.bias))
