"""The standard datasets: their names, facts about them, and groups of them.

Class names, prompts and sizes are data files, which `tools/build_sets.py` writes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError

_DATA = Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class StandardDataset:
    """A dataset of the CLIP paper (table 9) or of its evaluations of shift, retrieval and bias.

    Attributes:
      name: its name on the command line.
      title: its name in the paper.
      metric: the official metric, see `scores.METRICS`; `retrieval` or `bias` without classes.
      home: where to get it.
      licence: what is known of its terms.
      classes: the names of the classes, as prompts use them.
      templates: the paper's prompts, with `{}` for the name.
      paper: whether it is one of the paper's 27.
      synonyms: more names of a class, by its first.
      folders: the names of the classes in the dataset's own files, if they differ.
      splits: the number of images in each split, as in the paper.
      tfds: the split of TensorFlow Datasets for train, validation, test.
      label: the field there that tells the class.
      easy: the field of the classes whose objects are not all difficult. An image does not count
        for a class if all its objects of it are difficult, as VOC's rules say.
      wds: its names in CLIP_benchmark's WebDataset suites.
      files: names of a split's files, if they are not named as the split.
      subset: which of ImageNet's 1,000 classes each of its own is, or a tuple of several.
      partial: whether its files also show other classes, which are left out.
      groups: fields that tell groups of people.
    """

    name: str
    title: str
    metric: str
    home: str
    licence: str = ""
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    paper: bool = False
    synonyms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    folders: tuple[str, ...] = ()
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    tfds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label: str = "label"
    easy: str = ""
    wds: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    subset: tuple[int | tuple[int, ...], ...] | None = None
    partial: bool = False
    groups: tuple[str, ...] = ()


def _freeze(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_freeze, value))
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return value


@functools.cache
def _groups() -> dict[str, list[str]]:
    return json.loads((_DATA / "groups.json").read_text("utf-8"))


def names() -> list[str]:
    """Returns the names of all standard datasets, those of the paper first."""
    return list(_groups()["all"])


@functools.cache
def standard(name: str) -> StandardDataset:
    """Returns a standard dataset by its name.

    Raises:
      UserError: no dataset has this name.
    """
    if name not in names():
        raise UserError(_unknown(name))
    values = json.loads((_DATA / f"{name}.json").read_text("utf-8"))
    if "subset" in values and "classes" not in values:
        imagenet = standard("imagenet")
        for key in ("classes", "folders"):
            values[key] = [getattr(imagenet, key)[i] for i in values["subset"]]
    paper = name in _groups()["paper"]
    return StandardDataset(
        name=name, paper=paper, **{key: _freeze(value) for key, value in values.items()}
    )


def _unknown(word: str) -> str:
    known = [*_groups(), *names()]
    near = difflib.get_close_matches(word.lower(), known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"Groups of them are {', '.join(_groups())}."
    return f"{word!r} is no test set; {hint} docs/sets.md lists all"


def expand(words: Iterable[str]) -> list[str]:
    """Expands names and groups to names of standard datasets, each once, in the given order.

    Raises:
      UserError: a word is neither a name nor a group; the line names the nearest.
    """
    expanded: dict[str, None] = {}
    for word in words:
        if word in _groups():
            expanded |= dict.fromkeys(_groups()[word])
        elif word in names():
            expanded[word] = None
        else:
            raise UserError(_unknown(word))
    return list(expanded)
