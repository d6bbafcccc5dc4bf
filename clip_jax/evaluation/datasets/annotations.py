"""What is written about the images of a dataset: classes, captions, groups of people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from clip_jax.config.schema import Evaluate
from clip_jax.data import captions
from clip_jax.data.example import PairError
from clip_jax.data.sources import Source, read_text
from clip_jax.errors import UserError
from clip_jax.evaluation.datasets import layouts
from clip_jax.evaluation.datasets.classes import Classes, ClassName, natural_order
from clip_jax.evaluation.datasets.layouts import SplitLocation
from clip_jax.evaluation.datasets.options import WITHOUT_CLASSES, DatasetOptions, read_labels
from clip_jax.evaluation.datasets.registry import StandardDataset
from clip_jax.io.files import JsonObject

_CLASS_FIELDS = ("cls", "npy", "label", "labels", "class", "category")
_CAPTION_FIELDS = ("captions", "caption", "captions/text", "text", "sentences", "raw")


class Annotation(NamedTuple):
    """The fields of the text of an image, and the name of the image."""

    fields: JsonObject
    name: str


Annotations = list[Annotation]


class Captions(NamedTuple):
    """The captions of a dataset, and the groups by which texts and images belong together.

    Attributes:
      texts: the captions.
      text_group: int64 [texts], the group of each caption.
      image_group: int64 [n], the group of each image.
    """

    texts: list[str]
    text_group: np.ndarray
    image_group: np.ndarray


def read_annotations(source: Source) -> Annotations:
    """Reads the annotation of each image of a source."""
    return [Annotation(*read_text(source, i)) for i in range(len(source))]


@dataclasses.dataclass(frozen=True)
class Annotator:
    """A reader of the annotations of a dataset.

    Attributes:
      options: the options of the dataset in the config.
      standard: the facts about a standard dataset; None for the user's own.
      place: the location of its files.
      caption: the template of an image's text if the options have none.
    """

    options: DatasetOptions
    standard: StandardDataset | None
    place: SplitLocation
    caption: str

    def metric(self, annotations: Annotations) -> str:
        """Returns the official metric."""
        if self.options.metric:
            return self.options.metric
        if self.standard:
            metric = self.standard.metric
        else:
            metric = "retrieval" if layouts.has_captions(self.place) else "accuracy"
        if metric not in WITHOUT_CLASSES and self._has_only_captions(annotations):
            return "retrieval"
        return metric

    def _has_only_captions(self, annotations: Annotations) -> bool:
        """Returns whether a dataset of the user's own has captions and no classes."""
        options, first = self.options, annotations[0]
        named = options.labels or options.label or self.standard
        if named or any(field in first.fields for field in _CLASS_FIELDS[:3]):
            return False
        try:
            return bool(captions.fill(self.caption, *first).strip())
        except UserError:
            return False

    def _label_field(self, annotations: Annotations) -> str:
        """Returns the field that tells the class."""
        options, first = self.options, annotations[0]
        if options.label:
            return options.label
        usual = (self.standard.label, *_CLASS_FIELDS) if self.standard else _CLASS_FIELDS[:3]
        for field in usual:
            if field in first.fields:
                return field
        what = "label" if options.labels or self.standard else "labels"
        raise UserError(
            f"{options.key} needs data, labels and label: no {what} given, and no folder, .cls or "
            f"column of {first.name} tells a class: set {options.key}.label to the field that does "
            f"({', '.join(map(str, list(first.fields)[:20])):.200})"
        )

    def _class_names(self, annotations: Annotations) -> list[ClassName]:
        field = self._label_field(annotations)
        names = []
        for fields, where in annotations:
            value = captions.field_value(fields, field)
            if self.options.label and not isinstance(value, (int, list)):
                value = captions.fill(f"{{{field}}}", fields, where)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, (int, str, list)):
                raise UserError(
                    f"{self.options.key}: {where} tells no class: its {field!r} is {value!r}"
                )
            names.append(ClassName(value, where))
        return names

    def classes(self, annotations: Annotations) -> tuple[Classes, list[int]]:
        """Returns the classes, and the numbers of the images that belong to one of them."""
        everything = list(range(len(annotations)))
        if self.options.labels:
            return Classes(read_labels(self.options.labels, self.options.name)), everything
        numbered = layouts.class_names(self.place)
        if self.standard:
            known = self.standard
            classes = Classes(known.classes, known.folders, known.synonyms, numbered)
            return classes, self._of_classes(classes, annotations) if known.partial else everything
        if numbered:
            return Classes(numbered, numbered=numbered), everything
        names = self._class_names(annotations)
        if any(not isinstance(value, str) for value, _ in names):
            raise UserError(
                f"{self.options.key} needs labels: {names[0].where} tells a number, and no "
                "classnames.txt says of what"
            )
        folders = sorted({value for value, _ in names}, key=natural_order)
        return Classes([name.replace("_", " ") for name in folders], folders), everything

    def _of_classes(self, classes: Classes, annotations: Annotations) -> list[int]:
        names = self._class_names(annotations)
        known = [i for i, (value, _) in enumerate(names) if classes.knows(value)]
        return known or list(range(len(names)))

    def targets(self, classes: Classes, annotations: Annotations) -> np.ndarray:
        """Returns the class of each image.

        They are int64 [n], or bool [n, classes] if images have several classes.
        """
        names = self._class_names(annotations)
        if self.options.labels:
            return self._exact_targets(classes.labels, names)
        try:
            return classes.targets(names)
        except UserError as error:
            raise UserError(f"{self.options.key}: {error}") from None

    def _exact_targets(self, labels: list[str], names: list[ClassName]) -> np.ndarray:
        """Returns targets by names that must equal those of a file of labels."""
        number = {label: i for i, label in enumerate(labels)}
        multi_label = self.options.metric == "map_11_point"
        target = np.zeros((len(names), len(labels)), bool)
        for row, (value, where) in zip(target, names, strict=True):
            for item in value if isinstance(value, list) and multi_label else [value]:
                name = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
                if name not in number:
                    raise UserError(
                        f"{self.options.key}: {name!r} of {where} is no label of "
                        f"{self.options.labels}"
                    )
                row[number[name]] = True
        several = any(isinstance(value, list) for value, _ in names)
        return target if several and multi_label else target.argmax(axis=1)

    def counts(
        self, classes: Classes, annotations: Annotations, target: np.ndarray
    ) -> np.ndarray | None:
        """Returns which images count for which classes, bool [n, classes]; None if all count.

        An image does not count for a class if all its objects of that class are difficult.
        """
        field = self.standard.easy if self.standard else ""
        easy = [ClassName(fields.get(field), where) for fields, where in annotations if field]
        if target.ndim < 2 or not easy or not all(isinstance(name.value, list) for name in easy):
            return None
        return classes.targets(easy) | ~target

    def captions(self, annotations: Annotations, metric: str) -> Captions:
        """Returns the captions of the images.

        There are none unless `metric` is `retrieval`, or the options have a template of captions,
        or, for a dataset of the user's own, a label.

        Args:
          annotations: the annotations of the images.
          metric: the official metric.
        """
        own = self.options.caption
        template = own or self.caption
        if metric == "retrieval" or (own and template.endswith(":each}")):
            chosen = own or (self.standard is None and template != Evaluate.caption)
            names = captions.fields(template)[:1] if chosen else []
            each = [self._captions_of(annotation, names) for annotation in annotations]
            groups = np.repeat(np.arange(len(each)), [len(texts) for texts in each])
            return Captions([t for texts in each for t in texts], groups, np.arange(len(each)))
        if not (own or (self.options.label and self.standard is None)):
            return Captions([], np.zeros(0, np.int64), np.arange(len(annotations)))
        filled = [captions.fill(template, fields, where) for fields, where in annotations]
        texts, group = np.unique(filled, return_inverse=True)
        return Captions(texts.tolist(), np.arange(len(texts)), group.astype(np.int64))

    def _captions_of(self, annotation: Annotation, names: Sequence[str]) -> list[str]:
        """Returns the captions of an image: items of a list, or the lines of a text.

        Raises:
          PairError: there is none.
        """
        for name in names or _CAPTION_FIELDS:
            value = captions.field_value(annotation.fields, name)
            if isinstance(value, str):
                value = value.splitlines()
            if isinstance(value, list):
                texts = [str(item).strip() for item in value if item is not None]
                if texts := [text for text in texts if text]:
                    return texts
        listed = ", ".join(names or _CAPTION_FIELDS)
        key = f"{self.options.key}.caption"
        keys = f"{key} or config.evaluate.caption" if self.standard is None else key
        raise PairError(
            "caption",
            f"{annotation.name} has no caption: none of {listed} holds one ({keys} names the "
            "field)",
        )

    def groups(self, annotations: Annotations) -> dict[str, list[str]]:
        """Returns the groups of people that each image shows, by field."""
        names = self.options.groups or (self.standard.groups if self.standard else ())
        return {
            name: [captions.fill(f"{{{name}}}", fields, where) for fields, where in annotations]
            for name in names
        }


def fit_metric(metric: str, target: np.ndarray, classes: int) -> tuple[str, np.ndarray]:
    """Changes a metric to fit the targets, and targets to fit the metric.

    Args:
      metric: the name of the metric.
      target: int64 [n], or bool [n, classes] if images have several classes.
      classes: the number of classes.

    Returns:
      The metric, which is `map_11_point` instead of `accuracy` for several classes per image; and
      the targets, which are bool [n, classes] for `map_11_point`.
    """
    if target.ndim == 2:
        return "map_11_point" if metric == "accuracy" else metric, target
    if metric == "map_11_point":
        return metric, np.arange(classes) == target[:, None]
    return metric, target


def imagenet_subset(standard: StandardDataset | None, labels: Sequence[str]) -> np.ndarray | None:
    """Returns the ImageNet class of each label; None if the labels are not the standard ones.

    They are int64 [classes], or lists of them as objects if a label is several classes.
    """
    if standard is None or standard.subset is None or tuple(labels) != standard.classes:
        return None
    if all(isinstance(classes, int) for classes in standard.subset):
        return np.array(standard.subset, np.int64)
    subset = np.empty(len(standard.subset), object)
    subset[:] = [[item] if isinstance(item, int) else list(item) for item in standard.subset]
    return subset


def known_synonyms(
    standard: StandardDataset | None, labels: Sequence[str]
) -> Mapping[str, tuple[str, ...]]:
    """Returns more names of the labels, by label."""
    synonyms = standard.synonyms if standard else {}
    return {label: names for label, names in synonyms.items() if label in labels}
