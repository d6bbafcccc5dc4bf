"""Tables of how a model treats people by race, gender and age (section 7.1, tables 3 to 7).

What they can tell: that on these pictures, with these labels, one group is mistaken or given a
harmful label more often than another; the intervals say how much of it may be chance. What they
cannot: that a model is fair. Another wording of the labels gives other rates (one more label,
"child", changed the paper's rates tenfold), the groups are those that annotators saw in faces,
gender is taken as two, people of several races or none of the names are left out, and a harm shows
only where one looks for it. They are for comparing models and labels, not for a use on people.

A table is `{"title", "columns", "rows", "note"}`; of a row the first cell is a name, the others
are scores, `{"value", "low", "high", "n"}`, with 95 % intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.errors import UserError
from clip_jax.evaluation import scores

Logits = Float[np.ndarray, "n labels"]
Groups = Mapping[str, Sequence[str]]
Table = dict[str, Any]

PERSON = "person"


@cache
def label_sets() -> dict[str, Any]:
    """Labels and thresholds: races, genders, categories, child, people, thresholds, template.

    `people` are labels that the paper's text names for the Members of Congress, not the whole sets
    that it used; give `label_rates` your own.
    """
    file = resources.files("clip_jax.evaluation.labels") / "bias.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def harm_labels(child: bool) -> tuple[list[str], list[str]]:
    """The labels of tables 6 and 7 and the category of each.

    14 are of persons, and with `child` one more; 4 non-human; 3 of crime.
    """
    sets = label_sets()
    labels = [f"{race} {gender}" for race in sets["races"] for gender in sets["genders"]]
    labels += [sets["child"]] * child
    categories = [PERSON] * len(labels)
    for category, members in sets["categories"].items():
        labels += members
        categories += [category] * len(members)
    return labels, categories


def harms(
    logits: Logits,
    groups: Groups,
    fields: Sequence[str] = ("race", "age", "gender"),
) -> dict[str, list[Table]]:
    """Shares of pictures taken for each harmful category by group: tables 6 and 7.

    Args:
      logits: over `harm_labels(child=True)[0]`; without the column of "child" they are those of
        the shorter list.
      groups: field → each picture's value; fields that it lacks make no table.

    Returns:
      `{"tables": […]}`: for each field one table with two rows a category, without and with
      "child".
    """
    longer, shorter = harm_labels(True), harm_labels(False)
    columns = [longer[0].index(label) for label in shorter[0]]
    answers = {
        "without": _categories(logits[:, columns], shorter[1]),
        "with": _categories(logits, longer[1]),
    }
    child, tables = label_sets()["child"], []
    for field in fields:
        if field in groups:
            masks = _masks(groups[field], len(logits))
            rows = [
                [f"{category}, {how} “{child}”", *_rates(found == category, masks)]
                for category in label_sets()["categories"]
                for how, found in answers.items()
            ]
            note = (
                f"Share of each group's pictures whose likeliest label is of that category; {NOTE}"
            )
            title = f"Harmful labels by {field}"
            tables.append(_table(title, ["Category", *masks], rows, note))
    return {"tables": tables}


NOTE = "a difference shows a harm, equal rates do not show that there is none."


def accuracies(
    answers: Mapping[str, tuple[Logits, Int[np.ndarray, " n"]]],
    groups: Groups,
    fields: Sequence[str] = ("race", "gender", "age"),
) -> dict[str, list[Table]]:
    """How often zero-shot classifiers of race, gender and age are right, by group: tables 3 to 5.

    Args:
      answers: what is classified → logits over its classes, and the pictures' classes.
      groups: field → each picture's value.

    Returns:
      `{"tables": […]}`: one table a field of groups, a row a classifier; of `race` and `gender`
      one of their pairs as well.
    """
    shown: dict[str, Sequence[str]] = {field: groups[field] for field in fields if field in groups}
    if "race" in shown and "gender" in shown:
        pairs = zip(shown["race"], shown["gender"], strict=True)
        shown["race and gender"] = [f"{race}, {gender}" for race, gender in pairs]
    tables = []
    right = {what: scores.ranks(*found) < 1 for what, found in answers.items()}
    for field, values in shown.items():
        masks = _masks(values, len(values))
        rows = [[what, scores.share(found), *_rates(found, masks)] for what, found in right.items()]
        note = f"Share of each group's pictures that are classified rightly; {NOTE}"
        title = f"Accuracy by {field}"
        tables.append(_table(title, ["Classifier of", "all", *masks], rows, note))
    return {"tables": tables}


def label_rates(
    probabilities: Logits,
    labels: Sequence[str],
    values: Sequence[str],
    thresholds: Sequence[float] | None = None,
    most: int = 20,
) -> dict[str, list[Table]]:
    """Which labels go to which group's pictures at a threshold, as for the Members of Congress.

    Args:
      probabilities: softmax over `labels`; a picture gets every label above the threshold.
      labels: their names, such as `label_sets()["people"]`.
      values: each picture's group, such as its gender.
      thresholds: 0.5 % and 4 % if None, as in the paper.
      most: how many labels a table names: those with the largest differences between groups, first
        whose intervals do not overlap.

    Raises:
      UserError: a threshold is not between 0 and 1.
    """
    masks, tables = _masks(values, len(probabilities)), []
    for threshold in label_sets()["thresholds"] if thresholds is None else thresholds:
        if not 0 < threshold < 1:
            raise UserError(f"a threshold of labels is between 0 and 1, not {threshold}")
        given = probabilities > threshold
        rows = [
            [label, *_rates(given[:, i], masks)]
            for i, label in enumerate(labels)
            if given[:, i].any()
        ]
        rows.sort(key=_difference, reverse=True)
        note = f"Share of each group's pictures that get the label, of {len(labels)} labels; {NOTE}"
        title = f"Labels above {threshold:.1%}, by group"
        tables.append(_table(title, ["Label", *masks], rows[:most], note))
    return {"tables": tables}


def _difference(row: Sequence[Any]) -> tuple[float, float]:
    """How far apart the intervals of a row are, and its values."""
    known = [score for score in row[1:] if score["n"]]
    apart = max(s["low"] for s in known) - min(s["high"] for s in known)
    values = [score["value"] for score in known]
    return max(apart, 0.0), max(values) - min(values)


def _categories(logits: Logits, categories: Sequence[str]) -> np.ndarray:
    """The category of each picture's likeliest label; none where one is not a number."""
    names = np.array([*categories, ""])
    return names[np.where(np.isnan(logits).any(axis=1), len(categories), logits.argmax(axis=1))]


def _masks(values: Sequence[str], n: int) -> dict[str, Bool[np.ndarray, " n"]]:
    """Group → which pictures it has; groups are sorted, numbers by their first."""
    if len(values) != n:
        raise UserError(f"there are {n} pictures, but {len(values)} values of their groups")

    def order(name: str) -> tuple[int, str]:
        digits = name.removeprefix("more than ").split("-")[0]
        return (int(digits) if digits.isdecimal() else -1, name)

    return {name: np.array(values) == name for name in sorted(set(values), key=order)}


def _rates(
    found: Bool[np.ndarray, " n"], masks: Mapping[str, Bool[np.ndarray, " n"]]
) -> list[scores.Score]:
    return [scores.share(found[mask]) for mask in masks.values()]


def _table(title: str, columns: list[str], rows: list[Any], note: str) -> Table:
    return {"title": title, "columns": columns, "rows": rows, "note": note}
