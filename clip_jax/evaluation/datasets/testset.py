"""A test set: pictures, and the classes, captions and groups of people that are theirs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.sources import Source
from clip_jax.errors import UserError


class MissingSet(UserError):  # noqa: N818  # no error where a group is asked for
    """A standard set that is not there: what to download, and where to put it."""


class Split(NamedTuple):
    """Pictures of a split and their classes: int64 [n], or bool [n, classes]."""

    source: Source
    target: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """A set of test pictures, with classes, captions or groups of people.

    Attributes:
      name, title: what the command line and the paper call it.
      metric: the official one, see `scores.METRICS`; `retrieval` or `bias` where no class is told.
      source: the pictures, n of them.
      labels: names of the classes; templates: prompts, `{}` for a name; synonyms: more names of a
        class by its first, each with a prompt of its own.
      target: the classes: int64 [n], or bool [n, classes] where a picture has several; None where
        none is told.
      counts: bool [n, classes], False where a picture is left out for a class, as VOC's with
        difficult objects alone; None: every one counts.
      subset: which of ImageNet's 1,000 classes each label is, int64 [classes]; lists of them, as
        objects, where a label of ObjectNet holds several; None where that is no matter.
      texts: its captions; text_group: int64 [texts], image_group: int64 [n]: a text belongs to the
        pictures of its group.
      groups: what is said of each picture by field.
      split_name: what the split is called where it lies.
      note: what is unlike the paper.
      threshold: how similar pictures are that count as copies, see `overlap`; None: as usual.
      paper: whether it is one of the paper's 27.
    """

    __test__ = False  # not a test of pytest's

    name: str
    title: str
    metric: str
    source: Source
    labels: list[str]
    templates: tuple[str, ...]
    target: np.ndarray | None
    texts: list[str]
    text_group: np.ndarray
    image_group: np.ndarray
    groups: dict[str, list[str]]
    paper: bool = False
    split_name: str = "test"
    counts: np.ndarray | None = None
    subset: np.ndarray | None = None
    synonyms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    note: str = ""
    threshold: float | None = None
    find: Callable[[str], Split] | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """What changes when a picture, a class, a caption or a prompt does."""
        told: list[Any] = [
            self.labels,
            self.templates,
            {k: list(v) for k, v in self.synonyms.items()},
        ]
        told += [self.texts, self.groups, self.metric]
        told += [None if self.subset is None else self.subset.tolist()]
        found = hashlib.sha256(f"{self.source.fingerprint} {json.dumps(told)}".encode())
        for array in (self.target, self.counts, self.text_group, self.image_group):
            found.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def split(self, name: str) -> Split:
        """Pictures to learn from, `train` or `validation`, with their classes.

        Raises:
          UserError: it is not there; the line says what to give.
        """
        if name not in ("train", "validation"):
            raise UserError(f"{name!r} is no split to learn from: train and validation are")
        if self.target is None or self.find is None:
            raise UserError(f"evaluate.sets.{self.name} tells no classes to learn")
        return self.find(name)
