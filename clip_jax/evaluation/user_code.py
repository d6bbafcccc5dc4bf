"""Failures of a user's evaluator, as one line that names it; failures of ours are bugs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax.errors import UserError, only_user_errors
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators import Document, Evaluator, Result
from clip_jax.evaluation.report.markup import Markup
from clip_jax.evaluation.report.section import Section, Tile
from clip_jax.registry import is_users, path_of


def one_line(evaluator: Evaluator[Any], action: str) -> contextlib.AbstractContextManager[None]:
    """Turns exceptions of a block into one line if the evaluator is a user's.

    Args:
      evaluator: the evaluator that the block calls.
      action: what the block does, such as "run on cifar10".

    Raises:
      UserError: the block failed.
    """
    if not is_users(evaluator):
        return contextlib.nullcontext()
    return only_user_errors(f"{_name(evaluator)}: {action}")


def _name(evaluator: Evaluator[Any]) -> str:
    return f"the evaluator {path_of(type(evaluator))}"


def needs(evaluator: Evaluator[Any], dataset: Dataset) -> str:
    """Returns what a dataset lacks for an evaluator, see `Evaluator.needs`."""
    with one_line(evaluator, f"needs of {dataset.name}"):
        lacking = evaluator.needs(dataset)
    if not isinstance(lacking, str):
        raise UserError(
            f"{_name(evaluator)}: needs of {dataset.name} returns {lacking!r:.60}, not a text: "
            "what is lacking, or an empty one"
        )
    return lacking


def run(evaluator: Evaluator[Any], context: EvalContext, dataset: Dataset) -> Result:
    """Returns the result of an evaluator on a dataset, see `Evaluator.run`."""
    with one_line(evaluator, f"run on {dataset.name}"):
        result: Result = evaluator.run(context, dataset)
    if Result not in type(result).__mro__ or not dataclasses.is_dataclass(result):
        raise UserError(
            f"{_name(evaluator)}: run on {dataset.name} returns a {type(result).__name__}, not a "
            "dataclass that inherits from clip_jax.evaluation.evaluators.Result"
        )
    return result


def document(
    evaluator: Evaluator[Any], results: Mapping[str, Result], sanitize: Callable[[Any], Any]
) -> Document:
    """Returns an evaluator's part of report.json, see `Evaluator.document`.

    Args:
      evaluator: the evaluator.
      results: the results by dataset.
      sanitize: makes of values what JSON can represent.
    """
    with one_line(evaluator, "document"):
        document = evaluator.document(results)
        if is_users(evaluator):
            json.dumps(sanitize([document.datasets, document.top]))
            if unknown := set(document.datasets) - set(results):
                raise ValueError(f"there are no results of {', '.join(sorted(unknown))}")
    return document


def sections(evaluator: Evaluator[Any], results: Mapping[str, Result]) -> list[Section]:
    """Returns an evaluator's sections of the report page, see `Evaluator.sections`."""
    with one_line(evaluator, "sections"):
        made = list(evaluator.sections(results))
    if not is_users(evaluator):
        return made
    return [_section(evaluator, section) for section in made]


def _section(evaluator: Evaluator[Any], section: Section) -> Section:
    """Returns a section that is rendered later, outside the evaluator's methods."""

    def render(*arguments: Any) -> Markup | None:
        with one_line(evaluator, f"section {section.name}"):
            return section.render(*arguments)

    def tiles(report: Mapping[str, Any]) -> list[Tile]:
        with one_line(evaluator, f"section {section.name}"):
            return list(section.tiles(report))

    return section._replace(render=render, tiles=tiles)
