"""The classes that the objective `classification` tells apart, or a user's that needs `label`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_jax.config.schema import Config, Data, Evaluate
from clip_jax.data import mixture
from clip_jax.data.class_index import ClassIndex, label_name
from clip_jax.data.example import PairError
from clip_jax.data.mixture import Mixture
from clip_jax.data.rows import class_name_of, class_of
from clip_jax.data.sources import read_text
from clip_jax.distributed import multihost
from clip_jax.errors import UserError
from clip_jax.evaluation import features
from clip_jax.evaluation.datasets import registry
from clip_jax.evaluation.datasets.classes import natural_order
from clip_jax.evaluation.datasets.options import read_labels
from clip_jax.evaluation.features import Encoder
from clip_jax.io.paths import resolve
from clip_jax.losses.registry import needs_labels, objective_names
from clip_jax.models import classifier
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import Params
from clip_jax.tokenizers import Tokenizer

_OBJECTIVE = "classification"
_KEY = "config.classifier.labels"
_FIELD = "label"  # of a pair that tells its class, if `data.label` is empty
_NO_CAPTION = "image"  # a template without fields, for data without captions
_CHECKED = 100  # pairs of a source, one of which must be of a class
_CLASSIFIER = "classifier"  # the evaluator


def open_for_labels(c: Config) -> Mixture:
    """Opens the training data of a config, for its labels alone.

    Raises:
      UserError: it cannot be opened; says how the labels can be given without it.
    """
    try:
        return mixture.open_mixture(c.data.to_dict(), report=False)
    except UserError as error:
        raise UserError(
            f"{_KEY} is empty, and the data does not tell the classes: {error}; a JSON file with a "
            "list of their names does without the data"
        ) from None


def with_classifier(c: Config, open_data: Callable[[Config], Mixture]) -> Config:
    """Returns a config whose model has the classifier that the objective trains.

    Args:
      c: the result of `config.checks.check`. Without the objective `classification`, or if
        `model.heads` has a classifier, the model stays as it is.
      open_data: opens the training data, whose labels are used if `classifier.labels` is empty.

    Raises:
      UserError: the labels are given by nothing, or cannot be read.
    """
    if not needs_labels(c.objective):
        return c
    c = _with_defaults(c)
    heads = dict(c.model.get("heads", {}))
    if classifier.NAME in heads:
        if c.classifier.labels:
            raise UserError(
                f"config.model.heads.{classifier.NAME} and {_KEY} both name the classes: leave one "
                "of them out"
            )
        return c
    if c.classifier.labels:
        labels = _named_labels(c.classifier.labels)
    else:
        data = open_data(c)
        # only one process, because the text of every pair is read
        labels = multihost.broadcast_from_first(lambda: _labels_in(data, c.data.label))
    heads[classifier.NAME] = {"labels": tuple(labels)}
    return dataclasses.replace(c, model={**c.model, "heads": heads})


def _with_defaults(c: Config) -> Config:
    """Returns the config with values that depend on the objective, where it has the usual ones."""
    data, evaluate = c.data, c.evaluate
    if not data.label and c.loss.multi_positive:
        raise UserError(
            "config.data.label is empty: config.loss.multi_positive=True would make positives of "
            "the pairs of one image, and the classifier needs classes; set it to the field of the "
            "classes, such as label"
        )
    if not data.label:
        data = dataclasses.replace(data, label=_FIELD)
    if data.captions == Data.captions and set(objective_names(c.objective)) == {_OBJECTIVE}:
        data = dataclasses.replace(data, captions=(_NO_CAPTION,))
    if evaluate.suite == Evaluate.suite:
        evaluate = dataclasses.replace(evaluate, suite=(*evaluate.suite, _CLASSIFIER))
    return dataclasses.replace(c, data=data, evaluate=evaluate)


def _named_labels(value: str) -> list[str]:
    """Returns the labels of a standard dataset, or of a JSON file."""
    if value in registry.names():
        labels = list(registry.standard(value).classes)
        if not labels:
            raise UserError(f"{_KEY}={value}: this set has no classes")
        return labels
    try:
        exists = Path(resolve(value)).exists()
    except OSError:  # a name that no file can have
        exists = False
    if not exists:
        raise UserError(
            f"{_KEY}={value:.200}: there is no such file, and no standard set has this name "
            "(docs/sets.md)"
        )
    labels = read_labels(value, "", _KEY)
    if len(labels) < 2:
        raise UserError(f"{_KEY}={value}: it names one class, and a classifier tells two apart")
    return labels


def _labels_in(data: Mixture, default_field: str) -> list[str]:
    """Returns the distinct values of the label in the data, in natural order.

    Training replaces pairs without a label, as it does with all that it cannot use.

    Raises:
      UserError: no pair has a label, or all have the same.
    """
    values: set[str] = set()
    complaint = ""
    for part in data.parts:
        field = part.label or default_field
        for i in range(len(part.source)):
            try:
                value = class_name_of(*read_text(part.source, i), field)
            except PairError as error:
                complaint = complaint or str(error)
                continue
            values.add(label_name(value))
            if len(values) > classifier.MAX_LABELS:
                raise UserError(f"{field!r} has over {classifier.MAX_LABELS:,} values: too many")
    if not values:
        raise UserError(complaint)
    if len(values) < 2:
        raise UserError(
            f"all pairs have config.data.label={default_field!r} equal to {values.pop()!r:.80}: a "
            "classifier needs two classes"
        )
    return sorted(values, key=natural_order)


def class_index(c: Config, model: CLIPConfig) -> ClassIndex | None:
    """Returns the lookup from the label of a pair to the number of its class.

    None if no objective needs it.
    """
    if not model.labels or not needs_labels(c.objective):
        return None
    if c.classifier.labels not in registry.names():
        return ClassIndex(model.labels, numbered=bool(c.classifier.labels))
    standard = registry.standard(c.classifier.labels)
    folders = standard.folders or standard.classes
    others = [
        (folder, *standard.synonyms.get(label, ()))
        for label, folder in zip(standard.classes, folders, strict=True)
    ]
    return ClassIndex(model.labels, others)


def check_classes(data: Mixture, classes: ClassIndex | None, default_field: str) -> None:
    """Checks that one of the first pairs of each source is of a class.

    Args:
      data: the training data.
      classes: finds classes; None: nothing is checked.
      default_field: the field that tells the class, in sources that name none.

    Raises:
      UserError: none of them is; says why the first is not.
    """
    if classes is None:
        return
    for part in data.parts:
        complaint = ""
        for i in range(min(_CHECKED, len(part.source))):
            try:
                class_of(*read_text(part.source, i), part.label or default_field, classes)
            except PairError as error:
                complaint = complaint or str(error)
            else:
                complaint = ""
                break
        if complaint:
            raise UserError(f"{complaint}; set config.data.label or {_KEY}")


def classifier_start(c: Config, model: CLIPConfig, source: CLIPConfig | None) -> str:
    """Returns how the classifier of a fresh run starts: `saved`, `zero_shot`, `zeros`.

    Args:
      c: the config.
      model: the architecture.
      source: that of the weights that the run starts from; None: it starts from random values.

    Returns:
      `saved` if the weights have a classifier of the same labels, in any order, unless
      `classifier.init` says otherwise; empty if the model has no classifier.
    """
    if not model.labels:
        return ""
    if c.classifier.init != "auto":
        return c.classifier.init
    saved = () if source is None else source.labels
    if saved == model.labels or (_distinct(saved) and set(saved) == set(model.labels)):
        return "saved"
    return "zero_shot" if c.weights.path or c.weights.text else "zeros"


def _distinct(labels: tuple[str, ...]) -> bool:
    return len(set(labels)) == len(labels)


def reordered(saved: Params, labels: tuple[str, ...], wanted: tuple[str, ...]) -> Params:
    """Returns the parameters of a classifier with its classes in another order.

    Args:
      saved: the parameters.
      labels: their labels.
      wanted: the same labels in the order of the result.
    """
    if labels == wanted:
        return saved
    order = np.array([labels.index(label) for label in wanted])
    return {"kernel": saved["kernel"][:, order], "bias": saved["bias"][order]}


def zero_shot_classifier(
    c: Config, model: CLIPConfig, encoder: Encoder, tokenizer: Tokenizer
) -> Params:
    """Returns the parameters with which the classifier classifies as its labels' texts do.

    Args:
      c: the config, for the prompts.
      model: the architecture, whose classifier has the labels.
      encoder: the model with the weights of its text tower.
      tokenizer: the tokenizer of the model.
    """
    names = [label.replace("_", " ") for label in model.labels]  # as folders write them
    weights = features.classifier(encoder, tokenizer, names, _prompts(c))
    return classifier.zero_shot_params(weights)


def _prompts(c: Config) -> tuple[str, ...]:
    if c.classifier.templates:
        return c.classifier.templates
    if c.classifier.labels in registry.names():
        return registry.standard(c.classifier.labels).templates
    return c.evaluate.templates
