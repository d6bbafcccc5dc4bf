"""Mixtures of models of one architecture: interpolations of two, averages of several.

Sources: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT); Wortsman et al.
2022, Model soups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clip_jax.errors import UserError
from clip_jax.inference.model_source import ModelSource, open_model_source
from clip_jax.models.clip import Variables
from clip_jax.weights import arrays, configs


def open_models(
    paths: Sequence[str | Path], note: Callable[[str], None] = lambda line: None
) -> list[ModelSource]:
    """Opens models of one architecture, to be mixed.

    Heads are mixed if all models have the same, and otherwise left out.

    Args:
      paths: the runs or weights.
      note: called with each line that the user should know.

    Raises:
      UserError: one of them cannot be opened, or has another architecture than the first.
    """
    models = [open_model_source(path) for path in paths]
    for model in models[1:]:
        essences = configs.essence(models[0].config), configs.essence(model.config)
        for key, first, other in configs.differences(*essences):
            raise UserError(
                f"{model.path} is another architecture than {models[0].path}: "
                f"model.{key}={other!r:.80}, not {first!r:.80}"
            )
    if any(model.config.heads != models[0].config.heads for model in models):
        names = sorted({name for model in models for name, _ in model.config.heads})
        note(f"left out, because the models differ in it: {', '.join(names)}")
        models = [model.without_heads() for model in models]
    return models


def read_variables(model: ModelSource) -> Variables:
    """Reads the variables of a model in float32 on the host."""
    variables: Variables = jax.tree.map(np.asarray, jax.device_get(model.read("float32")))
    return variables


def interpolate(a: Variables, b: Variables, alpha: float) -> Variables:
    """Returns (1 - alpha)·a + alpha·b, or exactly `a` for 0 and `b` for 1.

    Integers, such as counts of batches, are those of `b` if alpha is above 0.5, and otherwise those
    of `a`.
    """

    def mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if alpha in (0, 1) or not np.issubdtype(x.dtype, np.floating):
            return y if alpha > 0.5 else x
        return ((1 - alpha) * x.astype(np.float64) + alpha * y).astype(x.dtype)

    result: Variables = jax.tree.map(mixed, a, b)
    return result


class Average:
    """The average of models that are added one by one, summed in float64.

    Integers are those of the first model.
    """

    def __init__(self, first: Variables) -> None:
        self._first, self._sum, self.count = first, jax.tree.map(_wide, first), 1

    def with_one_more(self, variables: Variables) -> Average:
        """Returns the average that includes one more model."""
        more = Average(self._first)
        more._sum = jax.tree.map(lambda a, b: a + _wide(b), self._sum, variables)
        more.count = self.count + 1
        return more

    def variables(self) -> Variables:
        """Returns the average in the dtypes of the first model, with its integers."""

        def mean(first: np.ndarray, total: np.ndarray) -> np.ndarray:
            floating = np.issubdtype(first.dtype, np.floating)
            return (total / self.count).astype(first.dtype) if floating else first

        result: Variables = jax.tree.map(mean, self._first, self._sum)
        return result


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x


def as_source(model: ModelSource, variables: Variables, path: Path) -> ModelSource:
    """Returns a mixture as a model with the architecture, preprocessing and tokenizer of `model`.

    Args:
      model: one of the models that were mixed.
      variables: the variables of the mixture.
      path: the path of the mixture, for messages and reports.
    """

    def read_sharded(like: Any) -> Variables:
        placed: Variables = jax.device_put(variables, jax.tree.map(lambda x: x.sharding, like))
        return placed

    return dataclasses.replace(
        model,
        path=path,
        library="a mixture",
        read=lambda dtype: arrays.cast(variables, dtype),
        read_sharded=read_sharded,
        workdir=None,
        step=None,
        lora=None,
        read_adapters=None,
    )
