"""The standard test sets: what they are called, what is known of them, and groups of them.

Names, class names, prompts and sizes are data files; `tools/build_sets.py` makes them.
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
class StandardSet:
    """A test set of the CLIP paper (table 9) or of its evaluations of shift, retrieval and bias.

    Attributes:
      name: what the command line calls it.
      title: what the paper calls it.
      metric: the official one, see `scores.METRICS`; `retrieval` or `bias` where no class is told.
      classes: their names, as prompts have them.
      templates: the paper's prompts, `{}` for the name.
      paper: whether it is one of the paper's 27.
      synonyms: more names of a class, by its first.
      folders: what the set's own files call each class, where that is another name.
      splits: pictures in each split, as the paper has them.
      tfds: the split of TensorFlow Datasets for train, validation, test.
      label: the field there that tells the class.
      easy: the field of the classes whose objects are not all difficult; pictures of difficult ones
        alone are left out for a class, as VOC's rules say.
      wds: what CLIP_benchmark's WebDataset suites call it.
      files: what files of a split are called, where not as the split.
      home: where it comes from.
      licence: what is known of its terms.
      subset: which of ImageNet's 1,000 classes each of its own is; several where it holds them.
      partial: whether its files show other classes, too, which are left out.
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


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return {key: _frozen(one) for key, one in value.items()}
    return value


@functools.cache
def _groups() -> dict[str, list[str]]:
    return json.loads((_DATA / "groups.json").read_text("utf-8"))


def names() -> list[str]:
    """All standard sets, those of the paper first."""
    return list(_groups()["all"])


@functools.cache
def standard(name: str) -> StandardSet:
    """A standard set by its name.

    Raises:
      UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(_unknown(name))
    found = json.loads((_DATA / f"{name}.json").read_text("utf-8"))
    if "subset" in found and "classes" not in found:
        imagenet = standard("imagenet")
        for key in ("classes", "folders"):
            found[key] = [getattr(imagenet, key)[i] for i in found["subset"]]
    paper = name in _groups()["paper"]
    return StandardSet(name=name, paper=paper, **{k: _frozen(v) for k, v in found.items()})


def _unknown(word: str) -> str:
    known = [*_groups(), *names()]
    near = difflib.get_close_matches(word.lower(), known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"Groups of them are {', '.join(_groups())}."
    return f"{word!r} is no test set; {hint} docs/sets.md lists all"


def expand(words: Iterable[str]) -> list[str]:
    """Names of standard sets from names and groups of them, each once, in the order given.

    Raises:
      UserError: a word is neither; it names the nearest.
    """
    found: dict[str, None] = {}
    for word in words:
        if word in _groups():
            found |= dict.fromkeys(_groups()[word])
        elif word in names():
            found[word] = None
        else:
            raise UserError(_unknown(word))
    return list(found)
