"""Linear probes on the features of a dataset (section 3.2, appendix A)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.probe_rows import metric_of, probe_rows
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.evaluators.zero_shot import ACCURACY
from clip_jax.evaluation.metrics import linear_probe, scores
from clip_jax.evaluation.metrics.linear_probe import SweepPoint
from clip_jax.evaluation.report import overview, probes
from clip_jax.evaluation.report.section import Section, without_thumbnails


@dataclasses.dataclass(frozen=True)
class LinearProbeResult(Result):
    """A linear probe: the dataset's official metric, its score, and the fields of `Probe`."""

    metric: str
    score: scores.Score
    lambda_: float
    best_lambda: float
    train: int
    validation: int
    sweep: list[SweepPoint]

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns the official metric."""
        return {self.metric: self.score.value}


class LinearProbe(Evaluator[LinearProbeResult]):
    """Logistic regression on frozen features by the paper's protocol."""

    name = "linear_probe"
    result = LinearProbeResult
    pooled = True
    curves = ()

    def needs(self, dataset: Dataset) -> str:
        """Needs classes and a train split with images of each."""
        if dataset.target is None:
            return "classes and a train split"
        return "" if dataset.splits else "a train split"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str]:
        """Depends on the splits to train on."""
        return [dataset.splits.fingerprint]

    def run(self, context: EvalContext, dataset: Dataset) -> LinearProbeResult:
        """Fits the probe and scores it on the test split."""
        rows = probe_rows(context, dataset)
        validation, validation_target = rows.validation
        with context.progress(f"{dataset.name} probe", 1, unit=" λ") as advance:
            probe, logits = linear_probe.probe(
                *rows.train,
                validation,
                validation_target,
                *rows.test,
                len(dataset.labels),
                metric_of(dataset),
                mesh=context.encoder.mesh,
                progress=advance.to,
            )
        score = scores.score(dataset.metric, logits, rows.test.target, dataset.counts)
        return LinearProbeResult(metric=dataset.metric, score=score, **vars(probe))

    def sections(self, results: Mapping[str, LinearProbeResult]) -> Iterable[Section]:
        """Returns the accuracy, alone and against zero-shot, and the sweep over λ."""
        yield ACCURACY
        yield Section(
            "probe",
            "Zero-shot and linear probe",
            without_thumbnails(probes.against_zero_shot),
            tiles=overview.probe_tiles,
        )
        yield Section("sweep", "Regularisation of the probe", without_thumbnails(probes.sweep))
