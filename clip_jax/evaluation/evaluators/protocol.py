"""What an evaluator is to the rest of the package, and what it finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from clip_jax.evaluation.report.section import Section, metrics_section
from clip_jax.evaluation.serialization import JsonObject, to_json

if TYPE_CHECKING:
    from PIL import Image

    from clip_jax.evaluation.context import EvalContext
    from clip_jax.evaluation.datasets import Dataset
    from clip_jax.evaluation.report.markup import Markup


class Result(Protocol):
    """What an evaluator finds on a dataset. Results are frozen dataclasses that inherit from this.

    `serialization` says which field types results can be written with; images are `Thumbnail`s.
    """

    def flat_metrics(self) -> Mapping[str, float | None]:
        """The numbers for metrics.jsonl, where NAME becomes `EVALUATOR/DATASET/NAME`.

        Undefined ones are None and are left out.
        """
        return {}

    def to_json(self) -> JsonObject:
        """What stands of it in report.json: by default its fields."""
        json: JsonObject = to_json(self)
        return json

    def section(self) -> Markup | None:
        """What the report page shows of it below a table of its metrics; None for nothing."""
        return None

    def sheet(self, dataset: Dataset) -> Image.Image | None:
        """An image of it, which a training run keeps for each step; None for none."""
        return None


ResultT = TypeVar("ResultT", bound=Result)


@dataclasses.dataclass(frozen=True)
class Document:
    """What an evaluator puts into report.json.

    Attributes:
      datasets: under `sets.DATASET.EVALUATOR`, by dataset.
      top: at the top, by key.
    """

    datasets: Mapping[str, JsonObject]
    top: Mapping[str, JsonObject] = dataclasses.field(default_factory=dict)


class Evaluator(Protocol[ResultT]):
    """One way to evaluate a model on datasets.

    An evaluator inherits from this class, which is instantiated without arguments, and has at least
    a `name`, `needs` and `run`. It is registered in `evaluators.EVALUATORS`, or named in
    `config.evaluate.suite` by its dotted path, such as `my_package.evaluators:MyEvaluator`.

    Attributes:
      name: what metrics, report.json and the command line call it.
      result: the class of its results, by which kept ones are read again.
      pooled: whether it looks at features before the projection (`context.encode(…).pooled`). They
        are then computed in the same pass.
      training: whether it looks at the training images (`context.training`).
      reference: the name of the dataset that it compares others with; empty for none. It then runs
        after the other evaluators, whose results `context.results` holds.
      curves: the endings of the metrics whose curves over the run the page shows; ("",) means all.
    """

    name: str
    result: type[ResultT]
    pooled: bool = False
    training: bool = False
    reference: str = ""
    curves: tuple[str, ...] = ("",)

    def needs(self, dataset: Dataset) -> str:
        """What it needs that a dataset lacks, such as "captions"; empty if it can run.

        Raises:
          UserError: the dataset is of the right kind but incomplete. The report shows the line.
        """
        ...

    def run(self, context: EvalContext, dataset: Dataset) -> ResultT:
        """Evaluates the context's model on a dataset that has what the evaluator needs."""
        ...

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[Any] | None:
        """What a result follows from besides the model, the dataset and the number of images shown.

        Equal JSON values mean an equal result, so that an interrupted evaluation need not repeat
        it. None, the default, means that results are never kept.
        """
        del context, dataset
        return None

    def document(self, results: Mapping[str, ResultT]) -> Document:
        """Where the results stand in report.json; by default below their datasets.

        results: by dataset; empty if it ran on none.
        """
        return Document({dataset: result.to_json() for dataset, result in results.items()})

    def sections(self, results: Mapping[str, ResultT]) -> Iterable[Section]:
        """Its sections of the report page; by default a table of metrics and the results' own.

        results: by dataset; empty if it ran on none.
        """
        parts = {dataset: result.section() for dataset, result in results.items()}
        yield metrics_section(
            self.name,
            {dataset: result.flat_metrics() for dataset, result in results.items()},
            {dataset: markup for dataset, markup in parts.items() if markup is not None},
        )
