"""The suite: evaluators and datasets of a config, and running them on a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.config.schema import Evaluate
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source, read_pair
from clip_jax.errors import UserError, counted
from clip_jax.evaluation import user_code
from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset, MissingDataset, expand, open_dataset
from clip_jax.evaluation.datasets.dataset_loader import nothing_left_out
from clip_jax.evaluation.evaluators import Evaluator, Result, split_names
from clip_jax.evaluation.features import Encoder
from clip_jax.evaluation.result_cache import ResultCache, key_of
from clip_jax.evaluation.results import Finding, Missing, SuiteResults
from clip_jax.tokenizers import Tokenizer

AnyEvaluator = Evaluator[Any]


_HEADS = {
    "decoder": "decoder, which the objective captioning trains",
    "words": "prediction of words, which the objective bag_of_words trains",
}
_BY_HEAD = {
    "decoder": "scoring, perplexity and captioning evaluate its decoder",
    "words": "scoring and perplexity evaluate its prediction of words",
}


class ModelParts(NamedTuple):
    """The parts of a model on which evaluators depend.

    Attributes:
      heads: the names of the model's heads.
      untrained: the towers that have random values: they did not learn, and no weights gave them.
      places: whether probes use the mean of the features of places, because the pooled features
        have random values.
    """

    heads: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    places: bool = False

    def lacking(self, evaluator: AnyEvaluator) -> str:
        """Returns why an evaluator cannot run on the model, in one line; empty if it can."""
        name, needed = evaluator.name, evaluator.heads
        if needed and not set(needed) & set(self.heads):
            parts = ", and no ".join(_HEADS.get(head, f"head {head}") for head in needed)
            return f"{name}: the model has no {parts}"
        if evaluator.texts and "text" in self.untrained:
            others = next((text for head, text in _BY_HEAD.items() if head in self.heads), "")
            return (
                f"{name}: the text tower of this model has random values, because its objective "
                "does not train it"
            ) + (f"; {others} (--suite, or config.evaluate.suite)" if others else "")
        return ""


NO_PARTS = ModelParts()


class Task(NamedTuple):
    """An evaluator that runs on a dataset."""

    evaluator: AnyEvaluator
    dataset: Dataset


class Suite:
    """The datasets and evaluators of a config, opened once to evaluate parameters repeatedly.

    Args:
      options: `config.evaluate`.
      tokenizer: the tokenizer of the model.
      preprocess: the preprocessing of the model.
      evaluators: the evaluators that `load_evaluators` returns.
      explicit: whether the user asked for these evaluators in the command. An evaluator that can
        run on no dataset is then reported.
      sets: names of datasets, separated by commas, in place of the config's: datasets of the
        config, standard ones, groups of these, or `NAME=PATH`.
      training: a function that opens the training data of the model.
      model: the parts of the model.

    Raises:
      UserError: there is no such dataset, or one is damaged. Missing datasets of a group of
        standard ones are left out and listed in the results.
    """

    def __init__(
        self,
        options: Evaluate,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        evaluators: tuple[AnyEvaluator, ...],
        *,
        explicit: bool = False,
        sets: str = "",
        training: Callable[[], list[Source]] = list,
        model: ModelParts = NO_PARTS,
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._preprocess = preprocess.with_patches(options.max_num_patches)
        self._training = training
        self._model = model
        self.evaluators = evaluators
        self.missing: list[Missing] = []
        self._datasets = list(self._open_datasets(sets))
        self._tasks = self._plan()
        incomplete = bool(self.missing) and self.missing[-1].evaluator != ""
        if self._datasets:
            self.missing += self._impossible_evaluators()
        if explicit and self._datasets:
            self.missing += self._unused_evaluators()
        stop = explicit or incomplete or not self._datasets
        if self.missing and not self._tasks and stop:
            raise UserError(self.missing[0].why)

    def __bool__(self) -> bool:
        """Returns whether there is a dataset."""
        return bool(self._datasets)

    @property
    def metric_prefixes(self) -> list[str]:
        """The prefixes of the suite's metrics, `EVALUATOR/DATASET/` for each task."""
        return [f"{task.evaluator.name}/{task.dataset.name}/" for task in self._tasks]

    @cached_property
    def needs_training(self) -> bool:
        """Whether an evaluator uses the training images."""
        return any(evaluator.training for evaluator in self.evaluators)

    def _open_datasets(self, sets: str) -> Iterator[Dataset]:
        own = dict(self._options.sets)
        for name, values in own.items():
            if not isinstance(values, Mapping):
                raise UserError(
                    f"config.evaluate.sets.{name}={values!r:.80} must be a group of keys, such as "
                    "{'data': 'FOLDER'}"
                )
        required: dict[str, bool] = {}  # by name: whether it must be there
        for word in split_names(sets) or [*own, *split_names(self._options.standard)]:
            name, equals, path = word.partition("=")
            if equals:
                own[name] = {**own.get(name, {}), "data": path}
            names = [name] if name in own else expand([word])
            for member in names:
                required[member] = required.get(member, False) or names == [name]
        for name, is_required in required.items():
            try:
                yield self._open(name, own.get(name, {}))
            except MissingDataset as error:
                if is_required:
                    raise
                self.missing.append(Missing(name, str(error)))

    def _open(self, name: str, values: Mapping[str, Any]) -> Dataset:
        options = self._options
        templates, caption = tuple(options.templates), options.caption
        dataset = open_dataset(name, values, options.folder, templates=templates, caption=caption)
        with nothing_left_out(name):  # a wrong folder is found before the first evaluation
            pair = read_pair(dataset.source, 0)
            decode(pair.image, pair.name)
        return dataset

    def _plan(self) -> list[Task]:
        """Returns the tasks in order: dataset by dataset, then evaluators that compare datasets."""
        number = {name: i for i, name in enumerate(self._names)}

        def place(task: Task) -> tuple[bool, int]:
            return bool(task.evaluator.reference), number[task.dataset.name]

        tasks = (task for evaluator in self.evaluators for task in self._plan_evaluator(evaluator))
        return sorted(tasks, key=place)

    def _plan_evaluator(self, evaluator: AnyEvaluator) -> Iterator[Task]:
        """Yields an evaluator's tasks; adds datasets that are incomplete for it to `missing`."""
        if evaluator.reference and evaluator.reference not in self._names:
            return
        if self._model.lacking(evaluator):
            return
        for dataset in self._datasets:
            try:
                if not user_code.needs(evaluator, dataset):
                    yield Task(evaluator, dataset)
            except UserError as error:
                what = f"{dataset.name}: {evaluator.name}"
                self.missing.append(Missing(what, str(error), evaluator.name))

    @property
    def _pooled_names(self) -> list[str]:
        return [
            item.name for item in dict.fromkeys(t.evaluator for t in self._tasks) if item.pooled
        ]

    @property
    def _names(self) -> list[str]:
        return [dataset.name for dataset in self._datasets]

    def _impossible_evaluators(self) -> Iterator[Missing]:
        """Yields the evaluators that cannot run on the model."""
        for evaluator in self.evaluators:
            if lacking := self._model.lacking(evaluator):
                yield Missing(evaluator.name, lacking, evaluator.name)

    def _unused_evaluators(self) -> Iterator[Missing]:
        """Yields the evaluators that can run on no dataset for a reason that is not noted yet."""
        noted = {missing.evaluator for missing in self.missing}
        used = {task.evaluator.name for task in self._tasks}
        unused = [item for item in self.evaluators if item.name not in noted | used]
        for evaluator in unused:
            name = evaluator.name
            needs = [user_code.needs(evaluator, dataset) for dataset in self._datasets]
            if all(needs):
                yield Missing(name, f"--suite={name} needs a set with {needs[0]}", name)
        for evaluator in unused:
            name, reference = evaluator.name, evaluator.reference
            if reference and reference not in self._names:
                why = f"--suite={name} compares with {reference}: add it to --sets"
                yield Missing(name, why, name)

    def evaluate(
        self,
        encoder: Encoder,
        scale: float,
        folder: Path | None = None,
        *,
        detailed: bool = False,
        say: Callable[[str], object] = lambda _: None,
    ) -> SuiteResults:
        """Runs the evaluators on the datasets.

        Args:
          encoder: the model.
          scale: the factor on the model's cosines.
          folder: the folder where results are stored, so that an interrupted evaluation resumes;
            None stores nothing.
          detailed: whether prompts are compared, too, and the report shows more.
          say: a function that takes a line for each result that was reused.
        """
        results: dict[str, dict[str, Result]] = {item.name: {} for item in self.evaluators}
        context = EvalContext(
            encoder,
            scale,
            self._tokenizer,
            self._preprocess,
            self._options,
            ResultCache(folder, features=self._options.keep_features),
            datasets={dataset.name: dataset for dataset in self._datasets},
            results=results,
            training=self._training() if self.needs_training else [],
            pooled=bool(self._pooled_names),
            detailed=detailed,
            untrained=self._model.untrained,
            places=self._model.places,
            say=say,
        )
        if self._model.places and (names := self._pooled_names):
            say(
                f"{', '.join(names)}: on the mean of the features of an image's places, because "
                "the objective does not train the pooled features"
            )
        findings: list[Finding] = []
        for evaluator, dataset in self._tasks:
            try:
                result = _run(context, evaluator, dataset)
            except KeyboardInterrupt:
                if findings and context.cache:
                    say(
                        f"{len(findings)} of {counted(len(self._tasks), 'result')} were done: the "
                        "same command goes on from there"
                    )
                raise
            results[evaluator.name][dataset.name] = result
            findings.append(Finding(evaluator.name, dataset, result))
        return SuiteResults(self.evaluators, self._datasets, findings, self.missing)


def _run(context: EvalContext, evaluator: AnyEvaluator, dataset: Dataset) -> Result:
    """Returns an evaluator's result on a dataset, from the cache or newly computed."""
    with user_code.one_line(evaluator, f"depends_on of {dataset.name}"):
        more = evaluator.depends_on(context, dataset)
        more = None if more is None else [*more]
    if more is None or not context.cache:
        return user_code.run(evaluator, context, dataset)
    values = json.loads(json.dumps([context.options.pictures, *more], default=str))
    key = key_of(evaluator.name, context.model_key, dataset.fingerprint, values)
    cached: Result | None = context.cache.result(key, evaluator.result)
    if cached is not None:
        context.say(f"{dataset.name}: {evaluator.name} was done before")
        return cached
    result = user_code.run(evaluator, context, dataset)
    with user_code.one_line(evaluator, f"storing the result on {dataset.name}"):
        context.cache.keep_result(key, result)
    return result
