"""The protocol of evaluators and of their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from clip_jax.evaluation.report.section import Section, metrics_section
from clip_jax.evaluation.serialization import to_json
from clip_jax.io.files import JsonObject

if TYPE_CHECKING:
    from PIL import Image

    from clip_jax.evaluation.context import EvalContext
    from clip_jax.evaluation.datasets import Dataset
    from clip_jax.evaluation.report.markup import Markup


class Result(Protocol):
    """The result of an evaluator on a dataset: a frozen dataclass that inherits from this class.

    `clip_jax.evaluation.serialization` can write its fields; an image is a `Thumbnail`.
    """

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns the metrics for metrics.jsonl, where NAME becomes `EVALUATOR/DATASET/NAME`.

        Undefined ones are None and are left out.
        """
        return {}

    def to_json(self) -> JsonObject:
        """Returns the result's part of report.json; by default its fields."""
        json: JsonObject = to_json(self)
        return json

    def section(self) -> Markup | None:
        """Returns the result's part of the report page, to stand below a table of its metrics.

        None, the default, adds nothing.
        """
        return None

    def sheet(self, dataset: Dataset) -> Image.Image | None:
        """Returns an image that a training run saves at each evaluation; None for no image."""
        return None


ResultT = TypeVar("ResultT", bound=Result)


@dataclasses.dataclass(frozen=True)
class Document:
    """An evaluator's part of report.json.

    Attributes:
      datasets: under `sets.DATASET.EVALUATOR`, by dataset.
      top: at the top, by key.
    """

    datasets: Mapping[str, JsonObject]
    top: Mapping[str, JsonObject] = dataclasses.field(default_factory=dict)


class Evaluator(Protocol[ResultT]):
    """One way to evaluate a model on datasets.

    An evaluator inherits from this class and defines at least `name`, `needs` and `run`. It is
    created without arguments. It is registered in `evaluators.EVALUATORS`, or named in
    `config.evaluate.suite` by its dotted path, such as `my_package.evaluators:MyEvaluator`.

    Attributes:
      name: its name in metrics, in report.json and on the command line.
      result: the class of its results, to read stored ones.
      pooled: whether it uses features before the projection (`context.encode(…).pooled`), which are
        then computed in the same pass.
      training: whether it uses the training images (`context.training`).
      texts: whether it compares images with features of texts. It does not run on a model whose
        text tower has random values.
      heads: the heads of which a model needs one; empty: it needs none.
      reference: the name of the dataset that it compares others with; empty for none. Such an
        evaluator runs after all others, whose results are in `context.results`.
      curves: the endings of the metrics whose curves the page shows; ("",) means all.
    """

    name: str
    result: type[ResultT]
    pooled: bool = False
    training: bool = False
    texts: bool = False
    heads: tuple[str, ...] = ()
    reference: str = ""
    curves: tuple[str, ...] = ("",)

    def needs(self, dataset: Dataset) -> str:
        """Returns what a dataset lacks, such as "captions"; empty if the evaluator can run on it.

        Raises:
          UserError: the dataset is of the right kind but incomplete. The report shows the line.
        """
        ...

    def run(self, context: EvalContext, dataset: Dataset) -> ResultT:
        """Evaluates the context's model on a dataset that has what the evaluator needs."""
        ...

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[Any] | None:
        """Returns what a result depends on besides the model, the dataset and `pictures`.

        An interrupted evaluation reuses a stored result if these JSON values are equal. They do not
        include the evaluator's own code. None, the default, means that results are not stored.
        """
        del context, dataset
        return None

    def document(self, results: Mapping[str, ResultT]) -> Document:
        """Returns the places of the results in report.json; by default below their datasets.

        Args:
          results: the results by dataset; empty if the evaluator ran on none.
        """
        return Document({dataset: result.to_json() for dataset, result in results.items()})

    def sections(self, results: Mapping[str, ResultT]) -> Iterable[Section]:
        """Returns the evaluator's sections of the report page.

        By default that is a table of metrics and the results' own sections.

        Args:
          results: the results by dataset; empty if the evaluator ran on none.
        """
        parts = {dataset: result.section() for dataset, result in results.items()}
        yield metrics_section(
            self.name,
            {dataset: result.flat_metrics() for dataset, result in results.items()},
            {dataset: markup for dataset, markup in parts.items() if markup is not None},
        )
