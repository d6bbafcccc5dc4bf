"""Evaluators: the registry, and choosing from it. Each evaluator is a module of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clip_jax.errors import UserError
from clip_jax.evaluation.evaluators.protocol import Document, Evaluator, Result
from clip_jax.evaluation.report.section import Section
from clip_jax.registry import Registry

__all__ = [
    "ALL",
    "EVALUATORS",
    "Document",
    "Evaluator",
    "Result",
    "load_evaluators",
    "registered_sections",
    "split_names",
]

EVALUATORS: Registry[type[Evaluator[Any]]] = Registry(
    "evaluator",
    {
        "zero_shot": "clip_jax.evaluation.evaluators.zero_shot:ZeroShot",
        "classifier": "clip_jax.evaluation.evaluators.classifier:Classifier",
        "linear_probe": "clip_jax.evaluation.evaluators.linear_probe:LinearProbe",
        "few_shot": "clip_jax.evaluation.evaluators.few_shot:FewShot",
        "retrieval": "clip_jax.evaluation.evaluators.retrieval:Retrieval",
        "validation_loss": "clip_jax.evaluation.evaluators.validation_loss:ValidationLoss",
        "robustness": "clip_jax.evaluation.evaluators.robustness:Robustness",
        "bias": "clip_jax.evaluation.evaluators.bias:Bias",
        "scoring": "clip_jax.evaluation.evaluators.scoring:Scoring",
        "perplexity": "clip_jax.evaluation.evaluators.perplexity:Perplexity",
        "captioning": "clip_jax.evaluation.evaluators.captioning:Captioning",
        "overlap": "clip_jax.evaluation.evaluators.overlap:Overlap",
    },
)
ALL = "all"


def split_names(names: str | Sequence[str]) -> list[str]:
    """Splits names at commas: `"a, b"` and `("a,b",)` both give ["a", "b"]."""
    text = names if isinstance(names, str) else ",".join(map(str, names))
    return [name.strip() for name in text.split(",") if name.strip()]


def load_evaluators(
    names: str | Sequence[str], key: str = "config.evaluate.suite"
) -> tuple[Evaluator[Any], ...]:
    """Returns evaluators by name: those of the registry in its order, then the user's own.

    Args:
      names: names, separated by commas or as a sequence; `all` means all of the registry.
      key: the config key or flag that holds them, for error messages.

    Raises:
      UserError: an evaluator does not exist, cannot be imported or is none, or two have one name.
    """
    requested = split_names(names)
    own = [name for name in requested if name not in EVALUATORS and name != ALL]
    ours = [name for name in EVALUATORS.names if name in requested or ALL in requested]
    evaluators: dict[str, Evaluator[Any]] = {}
    for path in (*ours, *dict.fromkeys(own)):
        evaluator = _create(path, key)
        if evaluator.name in evaluators:
            raise UserError(f"{key}={path}: another evaluator is called {evaluator.name!r}, too")
        evaluators[evaluator.name] = evaluator
    return tuple(evaluators.values())


def registered_sections() -> list[Section]:
    """Returns the report sections of all registered evaluators, to render a report.json alone."""
    return [section for evaluator in load_evaluators(ALL) for section in evaluator.sections({})]


def _create(path: str, key: str) -> Evaluator[Any]:
    kind: Any = EVALUATORS.get(path, key)
    if Evaluator not in getattr(kind, "__mro__", ()):
        raise UserError(
            f"{key}={path} is no evaluator: inherit from clip_jax.evaluation.evaluators.Evaluator"
        )
    for part in ("name", "needs", "run"):
        if getattr(kind, part, None) is getattr(Evaluator, part, None):
            raise UserError(f"{key}={path} has no {part}")
    if not isinstance(kind.name, str) or not kind.name.isidentifier():
        raise UserError(f"{key}={path}: its name must be an identifier, not {kind.name!r:.80}")
    try:
        evaluator: Evaluator[Any] = kind()
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{key}={path} cannot be created: {line}") from error
    return evaluator
