"""Every evaluator that is asked for on every test set, and what they find."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost
from clip_jax.errors import UserError
from clip_jax.evaluation import datasets, picture
from clip_jax.evaluation.datasets import MissingSet, TestSet
from clip_jax.evaluation.features import Encoder
from clip_jax.evaluation.suite import (
    classifying,
    finding,
    grouping,
    matching,
    probing,
    shifting,
)
from clip_jax.evaluation.suite.context import EvalContext
from clip_jax.evaluation.suite.result_cache import ResultCache
from clip_jax.evaluation.suite.splits import Splits
from clip_jax.io import files
from clip_jax.tokenizers import Tokenizer

EVALUATORS = (
    "zero_shot",
    "linear_probe",
    "few_shot",
    "retrieval",
    "robustness",
    "bias",
    "overlap",
)
Say = Callable[[str], object]
Pictures = dict[str, bytes]


class Evaluator(NamedTuple):
    """A part of a set's results.

    suits: whether a set has what it needs.
    run: makes the part; is given a dictionary to put thumbnails in.
    follows_from: what else it follows from than the model, the set and how many pictures are shown.
    """

    suits: Callable[[EvalContext, TestSet], bool]
    run: Callable[[EvalContext, TestSet, Pictures], dict[str, Any]]
    follows_from: Callable[[EvalContext, TestSet], list[Any]] = lambda *_: []


def _labelled(_: EvalContext, test: TestSet) -> bool:
    return test.target is not None


def _captioned(_: EvalContext, test: TestSet) -> bool:
    return bool(test.texts)


def _grouped(_: EvalContext, test: TestSet) -> bool:
    return bool(test.groups)


def _to_learn(context: EvalContext, test: TestSet) -> bool:
    return test.name in context.splits


def _of_one_class(context: EvalContext, test: TestSet) -> bool:
    return _to_learn(context, test) and test.target is not None and test.target.ndim == 1


def _trained(context: EvalContext, test: TestSet) -> bool:
    return bool(context.training) and (_labelled(context, test) or _captioned(context, test))


def _learnt(context: EvalContext, test: TestSet) -> list[Any]:
    return [context.splits[test.name].fingerprint]


def _drawn(context: EvalContext, test: TestSet) -> list[Any]:
    return [*_learnt(context, test), context.options["shots"], context.options["seeds"]]


def _compared(context: EvalContext, test: TestSet) -> list[Any]:
    return [test.threshold, *(source.fingerprint for source in context.training)]


PROBES = ("linear_probe", "few_shot")
_NEEDS: dict[str, tuple[Callable[[TestSet], Any], str]] = {
    "zero_shot": (lambda test: test.target is not None, "classes"),
    "retrieval": (lambda test: test.texts, "captions"),
    "robustness": (shifting.is_shifted, "classes of ImageNet under shift, as those of robustness"),
    "bias": (lambda test: test.groups, "groups of people, as fairface has"),
}
_OF_A_SET = {
    "zero_shot": Evaluator(_labelled, classifying.run),
    "linear_probe": Evaluator(_to_learn, probing.linear, _learnt),
    "few_shot": Evaluator(_of_one_class, probing.few, _drawn),
    "retrieval": Evaluator(_captioned, finding.run),
    "bias": Evaluator(_grouped, grouping.run),
    "overlap": Evaluator(_trained, matching.run, _compared),
}


def evaluators(words: Sequence[str]) -> tuple[str, ...]:
    """The evaluators that words name, in their usual order; `all` is all of them.

    Raises:
      UserError: there is none of that name.
    """
    for word in words:
        if word not in (*EVALUATORS, "all"):
            near = difflib.get_close_matches(word, EVALUATORS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(EVALUATORS)}, all"
            raise UserError(f"unknown evaluator {word!r} in --suite; {hint}")
    return tuple(name for name in EVALUATORS if name in words or "all" in words)


def split(words: str | Sequence[str]) -> list[str]:
    """`"a, b"` or `("a,b",)` → [a, b]."""
    text = words if isinstance(words, str) else ",".join(map(str, words))
    return [word.strip() for word in text.split(",") if word.strip()]


class Suite:
    """The test sets and evaluators of a config, ready to evaluate parameters again and again.

    Args:
      options: `config.evaluate`.
      tokenizer, preprocess: of the model.
      suite: evaluators between commas, in place of the config's.
      sets: test sets between commas, in place of the config's: its own, standard ones, groups of
        these, `NAME=PATH`.
      training: opens what the model was trained on, for the overlap.

    Raises:
      UserError: no such evaluator or set, or a set is damaged. What is missing of a group of
        standard sets is left out and told in the results.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        suite: str = "",
        sets: str = "",
        training: Callable[[], list[Source]] | None = None,
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._training = training or list
        self.wanted = evaluators(split(suite or options["suite"]))
        self.missing: list[dict[str, str]] = []
        self._sets = [test for test in self._opened(sets) if test is not None]
        self._splits = self._to_learn_from()
        if suite and self._sets:
            self.missing += self._unmet()
        if self.missing and not (self._splits if set(self.wanted) <= set(PROBES) else self._sets):
            raise UserError(self.missing[0]["why"])

    def __bool__(self) -> bool:
        return bool(self._sets)

    def _opened(self, words: str) -> Iterable[TestSet | None]:
        own = dict(self._options["sets"])
        chosen: dict[str, bool] = {}  # name → whether it must be there
        for word in split(words) or [*own, *split(self._options["standard"])]:
            name, equals, path = word.partition("=")
            if equals:
                own[name] = {**own.get(name, {}), "data": path}
            expanded = [name] if name in own else datasets.expand([word])
            for one in expanded:
                chosen[one] = chosen.get(one, False) or expanded == [name]
        for name, strict in chosen.items():
            yield self._open(name, own.get(name, {}), strict=strict)

    def _open(self, name: str, values: Mapping[str, Any], *, strict: bool) -> TestSet | None:
        options = self._options
        try:
            return datasets.open_set(
                name,
                values,
                options["folder"],
                templates=tuple(options["templates"]),
                caption=options["caption"],
            )
        except MissingSet as error:
            if strict:
                raise
            self.missing.append({"set": name, "why": str(error)})
            return None

    def _to_learn_from(self) -> dict[str, Splits]:
        found: dict[str, Splits] = {}
        for name in PROBES:
            for test in self._sets if name in self.wanted else ():
                if test.target is None or test.name in found:
                    continue
                try:
                    found[test.name] = Splits.of(test)
                except UserError as error:
                    self.missing.append({"set": f"{test.name}: {name}", "why": str(error)})
        return found

    def _unmet(self) -> list[dict[str, str]]:
        """Evaluators that were asked for and suit no set."""
        found = []
        for name, (suits, what) in _NEEDS.items():
            if name in self.wanted and not any(map(suits, self._sets)):
                found.append({"set": name, "why": f"--suite={name} needs a set with {what}"})
        names = [test.name for test in self._sets]
        if "robustness" in self.wanted and shifting.REFERENCE not in names:
            why = f"--suite=robustness compares with {shifting.REFERENCE}: add it to --sets"
            found.append({"set": "robustness", "why": why})
        if len({one["set"] for one in found}) == len(self.wanted):
            raise UserError(found[0]["why"])
        return found

    def evaluate(
        self,
        encoder: Encoder,
        scale: float,
        folder: Path | None = None,
        *,
        whole: bool = False,
        say: Say = lambda _: None,
    ) -> tuple[dict[str, Any], Pictures]:
        """The results, see `results`, and the thumbnails that they name.

        Args:
          encoder: the model.
          scale: its factor on the cosines.
          folder: where answers are kept, so that an evaluation that was stopped goes on.
          whole: compares prompts, too, and shows more.
          say: takes a line for each answer.
        """
        kept = ResultCache(folder, features=self._options["keep_features"])
        context = EvalContext(
            encoder,
            scale,
            self._tokenizer,
            self._preprocess,
            self._options,
            kept,
            splits=self._splits,
            training=self._training() if "overlap" in self.wanted else [],
            whole=whole,
            say=say,
        )
        found: dict[str, Any] = {"sets": {}, "missing": list(self.missing)}
        for test in self._sets:
            found["sets"][test.name] = self._of_a_set(context, test)
        if "robustness" in self.wanted:
            found["robustness"] = shifting.run(context, self._sets, found["sets"])
        if "retrieval" in self.wanted and self._options["pictures"]:
            for test in self._sets:
                if len(test.texts):
                    pictures: Pictures = {}
                    found["similarity"] = finding.similarity(context, test, pictures)
                    kept.pictures |= pictures
                    break
        return found, kept.pictures

    def _of_a_set(self, context: EvalContext, test: TestSet) -> dict[str, Any]:
        found = {
            "title": test.title,
            "split": test.split_name,
            "images": len(test),
            "classes": len(test.labels),
            "paper": test.paper,
        }
        if test.note:
            found["note"] = test.note
        for name, evaluator in _OF_A_SET.items():
            if name in self.wanted and evaluator.suits(context, test):
                make = partial(evaluator.run, context, test)
                found[name] = context.answer(
                    name, test, make, *evaluator.follows_from(context, test)
                )
        return found


def write_sheets(results: Mapping[str, Any], pictures: Pictures, folder: Path) -> None:
    """A PNG of each set's examples, as `picture.draw_guesses` draws them."""
    for name, test in results["sets"].items():
        shown = test.get("zero_shot", {}).get("examples", [])
        if not shown or not multihost.is_first():
            continue
        guesses = [
            picture.Guess(
                Image.open(io.BytesIO(pictures[one["picture"]])).convert("RGB"),
                one["truth"],
                one["labels"],
                one["probabilities"],
            )
            for one in shown
        ]
        title = f"{name}: {len(shown)} random pictures of {test['images']:,}, "
        title += f"likeliest of {test['classes']:,} labels"
        with files.whole(folder / f"{name}.png") as file:
            picture.draw_guesses(guesses, title).save(file, "PNG")


def table(metrics: Mapping[str, float]) -> str:
    """The metrics as lines of `name  12.3 %`."""
    chosen = {k: v for k, v in metrics.items() if k.startswith(EVALUATORS)}
    width = max(map(len, chosen), default=0)
    return "\n".join(f"  {name:<{width}}  {value:7.2%}" for name, value in chosen.items())
