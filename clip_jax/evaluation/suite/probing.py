"""Linear probes and few-shot learning on a set's features (section 3.2, appendix A)."""

from __future__ import annotations

import numpy as np

from clip_jax.evaluation import scores
from clip_jax.evaluation.sets import TestSet
from clip_jax.evaluation.suite.judge import Judge
from clip_jax.evaluation.suite.splits import Splits


def _learnt(judge: Judge, test: TestSet, splits: Splits) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features and classes of train, and of validation where there is one."""
    found = []
    for name, split in zip(splits._fields, splits, strict=True):
        if split is not None:
            features = judge.encoded(f"{test.name} {name}", split.source).pooled
            found.append((np.asarray(features), split.target))
    return found


def _scored(test: TestSet, logits: np.ndarray) -> scores.Score:
    return scores.score(test.metric, logits, test.target)
