"""A dataset to evaluate on: images with classes, captions or groups of people."""

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
from clip_jax.evaluation.metrics import logistic


class MissingDataset(UserError):  # noqa: N818  # no error where a group is asked for
    """A standard dataset was not found; the message says what to download and where to put it."""


class Split(NamedTuple):
    """The images of a split and their classes, int64 [n] or bool [n, classes]."""

    source: Source
    target: np.ndarray


class Splits(NamedTuple):
    """The splits to train on; `validation` is missing for some datasets."""

    train: Split
    validation: Split | None

    @property
    def fingerprint(self) -> str:
        """A digest of the images and their classes."""
        digest = hashlib.sha256()
        for split in self:
            if split is not None:
                digest.update(split.source.fingerprint.encode() + split.target.tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset to evaluate on: images with classes, captions or groups of people.

    Attributes:
      name: its name on the command line.
      title: its name in the paper.
      metric: the official metric, see `scores.METRICS`; `retrieval` or `bias` without classes.
      source: the n images.
      labels: the names of the classes.
      templates: prompts, with `{}` for a name.
      target: the classes of the images: int64 [n], or bool [n, classes] where an image has several;
        None without classes.
      texts: the captions.
      text_group: int64 [texts]: a text belongs to the images of the same group.
      image_group: int64 [n], the group of each image.
      groups: the groups of people that each image shows, by field.
      paper: whether it is one of the paper's 27.
      split_name: the name of the split in its files.
      counts: bool [n, classes], False where an image is left out for a class, as VOC does with
        images of difficult objects alone; None if all count.
      subset: which of ImageNet's 1,000 classes each label is, int64 [classes], or lists of them as
        objects, as ObjectNet needs; None for other datasets.
      synonyms: more names of a class by its first, each with prompts of its own.
      note: the differences from the paper.
      threshold: the similarity from which images count as copies, see `metrics.overlap`; None for
        the usual one.
      find_split: opens the split `train` or `validation`.
    """

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
    find_split: Callable[[str], Split] | None = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the images, classes, captions and prompts."""
        synonyms = {label: list(names) for label, names in self.synonyms.items()}
        subset = None if self.subset is None else self.subset.tolist()
        facts: list[Any] = [self.labels, self.templates, synonyms, self.texts, self.groups]
        facts += [self.metric, subset]
        digest = hashlib.sha256(f"{self.source.fingerprint} {json.dumps(facts)}".encode())
        for array in (self.target, self.counts, self.text_group, self.image_group):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def texts_of_images(self) -> list[list[int]]:
        """Returns the numbers of the captions of each image."""
        texts: dict[int, list[int]] = {}
        for number, group in enumerate(self.text_group.tolist()):
            texts.setdefault(group, []).append(number)
        return [texts.get(group, []) for group in self.image_group.tolist()]

    @property
    def has_one_class_each(self) -> bool:
        """Whether every image has one class."""
        return self.target is not None and self.target.ndim == 1

    def split(self, name: str) -> Split:
        """Returns the images of `train` or `validation` with their classes.

        Raises:
          UserError: the data set has no such split.
        """
        if name not in ("train", "validation"):
            raise UserError(f"{name!r} is no split to learn from: train and validation are")
        if self.target is None or self.find_split is None:
            raise UserError(f"evaluate.sets.{self.name} tells no classes to learn")
        return self.find_split(name)

    @functools.cached_property
    def splits(self) -> Splits:
        """The splits to train on.

        Raises:
          UserError: there is no split to train on, or it lacks a class; the line says what to give.
        """
        train = self.split("train")
        try:
            logistic.check_classes(train.target, len(self.labels))
        except UserError as error:
            raise UserError(f"evaluate.sets.{self.name}.train: {error}") from None
        try:
            return Splits(train, self.split("validation"))
        except UserError:
            return Splits(train, None)
