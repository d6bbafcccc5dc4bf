"""Tables of how a model treats people by race, gender and age (section 7.1, tables 3 to 7).

The tables can show that, on these images and with these labels, a model mistakes one group or gives
it a harmful label more often than another; the intervals show how much may be chance. They cannot
show that a model is fair. Other labels give other rates: one more label, "child", changed the
paper's rates tenfold. The groups are those that annotators saw in faces, with two genders, and
without people of several races or of none of the names. A harm shows only where it is looked for.
The tables compare models and labels; they do not qualify a model for use on people.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics import scores
from clip_jax.evaluation.serialization import from_json

Logits = Float[np.ndarray, "n labels"]
Groups = Mapping[str, Sequence[str]]
Row = list[str | scores.Score]

PERSON = "person"


@dataclasses.dataclass(frozen=True)
class Table:
    """Rates by group. The first cell of a row is a name, the others are scores."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str


@dataclasses.dataclass(frozen=True)
class Classified:
    """A field that is classified, such as race or gender.

    Attributes:
      template: the prompt.
      names: the labels of values that are not used as labels themselves, by value.
    """

    template: str
    names: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LabelSets:
    """The labels and thresholds of the tables.

    Attributes:
      source: where the labels come from.
      template: the prompt of all labels but those of `classifiers`.
      races: the races; each pair of a race and a gender is a label of persons.
      genders: the genders.
      categories: harmful labels by category.
      child: the label that the longer list adds.
      people: labels that the paper names for the Members of Congress, not the whole sets that it
        used; give `label_rates` your own.
      thresholds: the probabilities above which an image gets a label.
      classifiers: the classified fields, by name.
    """

    source: str
    template: str
    races: list[str]
    genders: list[str]
    categories: dict[str, list[str]]
    child: str
    people: list[str]
    thresholds: list[float]
    classifiers: dict[str, Classified]


@cache
def label_sets() -> LabelSets:
    """Returns the labels and thresholds, which are in a data file."""
    file = resources.files(__package__) / "bias_labels.json"
    return from_json(LabelSets, json.loads(file.read_text(encoding="utf-8")), {})


def harm_labels(child: bool) -> tuple[list[str], list[str]]:
    """Returns the labels of tables 6 and 7, and the category of each label.

    14 labels are of persons, and with `child` one more; 4 are non-human; 3 are of crime.
    """
    sets = label_sets()
    labels = [f"{race} {gender}" for race in sets.races for gender in sets.genders]
    labels += [sets.child] * child
    categories = [PERSON] * len(labels)
    for category, members in sets.categories.items():
        labels += members
        categories += [category] * len(members)
    return labels, categories


def harms(
    logits: Logits,
    groups: Groups,
    fields: Sequence[str] = ("race", "age", "gender"),
) -> list[Table]:
    """Returns the shares of images classified as each harmful category, by group (tables 6 and 7).

    Args:
      logits: logits over `harm_labels(child=True)[0]`; without the column of "child" they are those
        over the shorter list.
      groups: field → each image's value; a missing field gives no table.
      fields: the fields to make tables of.

    Returns:
      A table for each field, with two rows per category: without and with "child".
    """
    longer, shorter = harm_labels(True), harm_labels(False)
    columns = [longer[0].index(label) for label in shorter[0]]
    answers = {
        "without": _categories(logits[:, columns], shorter[1]),
        "with": _categories(logits, longer[1]),
    }
    child, tables = label_sets().child, []
    for field in fields:
        if field in groups:
            masks = _masks(groups[field], len(logits))
            rows: list[Row] = [
                [f"{category}, {wording} “{child}”", *_rates(category_names == category, masks)]
                for category in label_sets().categories
                for wording, category_names in answers.items()
            ]
            note = f"Share of each group's images whose likeliest label is of that category; {NOTE}"
            title = f"Harmful labels by {field}"
            tables.append(Table(title, ["Category", *masks], rows, note))
    return tables


NOTE = "a difference shows a harm, equal rates do not show that there is none."


def accuracies(
    answers: Mapping[str, tuple[Logits, Int[np.ndarray, " n"]]],
    groups: Groups,
    fields: Sequence[str] = ("race", "gender", "age"),
) -> list[Table]:
    """Returns the accuracy of classifiers of race, gender and age by group (tables 3 to 5).

    Args:
      answers: classified field → zero-shot logits over its classes, and the images' classes.
      groups: field → each image's value.
      fields: the fields to make tables of.

    Returns:
      A table for each field of groups, with a row per classifier; for `race` and `gender` also a
      table of their pairs.
    """
    shown: dict[str, Sequence[str]] = {field: groups[field] for field in fields if field in groups}
    if "race" in shown and "gender" in shown:
        pairs = zip(shown["race"], shown["gender"], strict=True)
        shown["race and gender"] = [f"{race}, {gender}" for race, gender in pairs]
    tables = []
    right = {classifier: scores.ranks(*answer) < 1 for classifier, answer in answers.items()}
    for field, values in shown.items():
        masks = _masks(values, len(values))
        rows: list[Row] = [
            [classifier, scores.share(answer), *_rates(answer, masks)]
            for classifier, answer in right.items()
        ]
        note = f"Share of each group's images that are classified rightly; {NOTE}"
        title = f"Accuracy by {field}"
        tables.append(Table(title, ["Classifier of", "all", *masks], rows, note))
    return tables


def label_rates(
    probabilities: Logits,
    labels: Sequence[str],
    values: Sequence[str],
    thresholds: Sequence[float] | None = None,
    most: int = 20,
) -> list[Table]:
    """Returns how often the images of each group get each label, as for the Members of Congress.

    Args:
      probabilities: softmax over `labels`; an image gets every label above the threshold.
      labels: the names of the labels, such as `label_sets().people`.
      values: each image's group, such as its gender.
      thresholds: the thresholds; None: 0.5 % and 4 %, as in the paper.
      most: the number of labels in a table: those with the largest differences between groups,
        beginning with those whose intervals do not overlap.

    Returns:
      A table for each threshold.

    Raises:
      UserError: a threshold is not between 0 and 1.
    """
    masks, tables = _masks(values, len(probabilities)), []
    for threshold in label_sets().thresholds if thresholds is None else thresholds:
        if not 0 < threshold < 1:
            raise UserError(f"a threshold of labels is between 0 and 1, not {threshold}")
        labelled = probabilities > threshold
        rows: list[Row] = [
            [label, *_rates(labelled[:, i], masks)]
            for i, label in enumerate(labels)
            if labelled[:, i].any()
        ]
        rows.sort(key=_difference, reverse=True)
        note = f"Share of each group's images that get the label, of {len(labels)} labels; {NOTE}"
        title = f"Labels above {threshold:.1%}, by group"
        tables.append(Table(title, ["Label", *masks], rows[:most], note))
    return tables


def _difference(row: Row) -> tuple[float, float]:
    """Returns the distance between the intervals of a row, and between its values."""
    known = [score for score in row[1:] if isinstance(score, scores.Score) and score.n]
    apart = max(s.low or 0.0 for s in known) - min(s.high or 0.0 for s in known)
    values = [score.value or 0.0 for score in known]
    return max(apart, 0.0), max(values) - min(values)


def _categories(logits: Logits, categories: Sequence[str]) -> np.ndarray:
    """Returns the category of each image's likeliest label; empty if a logit is NaN."""
    names = np.array([*categories, ""])
    return names[np.where(np.isnan(logits).any(axis=1), len(categories), logits.argmax(axis=1))]


def _masks(values: Sequence[str], n: int) -> dict[str, Bool[np.ndarray, " n"]]:
    """Returns a mask of the images of each group.

    Groups are sorted, ranges of numbers by their start.
    """
    if len(values) != n:
        raise UserError(f"there are {n} images, but {len(values)} values of their groups")

    def order(name: str) -> tuple[int, str]:
        digits = name.removeprefix("more than ").split("-")[0]
        return (int(digits) if digits.isdecimal() else -1, name)

    return {name: np.array(values) == name for name in sorted(set(values), key=order)}


def _rates(
    rows: Bool[np.ndarray, " n"], masks: Mapping[str, Bool[np.ndarray, " n"]]
) -> list[scores.Score]:
    return [scores.share(rows[mask]) for mask in masks.values()]
