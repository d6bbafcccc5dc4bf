"""What a config says of a dataset, and lists of class names in files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.scores import METRICS
from clip_jax.io.paths import resolve

WITHOUT_CLASSES = ("retrieval", "bias")  # metrics of datasets whose images have no class
_MAX_LABELS = 64 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """`config.evaluate.sets.NAME`. Empty means not given.

    Attributes:
      data: the images to evaluate on; train, validation: those to learn from.
      source: the kind of data source, as in `config.data`.
      labels: a JSON file of class names; label: the field that tells the class.
      image, root: as in `config.data`.
      templates: prompts; caption: the template of an image's text in retrieval.
      metric: the official metric; title: what the report calls the dataset.
      groups: fields that tell groups of people.
      threshold: the similarity from which images count as copies.
    """

    name: str
    data: str = ""
    source: str = ""
    labels: str = ""
    label: str = ""
    image: str = ""
    root: str = ""
    templates: tuple[str, ...] = ()
    caption: str = ""
    metric: str = ""
    title: str = ""
    train: str = ""
    validation: str = ""
    groups: tuple[str, ...] = ()
    threshold: float | None = None

    @classmethod
    def from_config(cls, name: str, values: Mapping[str, Any]) -> DatasetOptions:
        """Returns the options of a dataset from its values in a config.

        Raises:
          UserError: there is no such key, or a value is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.name != "name"]
        if unknown := sorted(set(values) - set(known)):
            raise UserError(
                f"unknown config key evaluate.sets.{name}.{unknown[0]}; known: {', '.join(known)}"
            )
        options = {key: value for key, value in values.items() if value not in (None, "")}
        prompts, groups = options.pop("templates", ()), options.pop("groups", ())
        threshold = _similarity(name, options.pop("threshold", None))
        if options.get("metric", METRICS[0]) not in (*METRICS, *WITHOUT_CLASSES):
            raise UserError(
                f"evaluate.sets.{name}.metric={options['metric']!r} is none of "
                f"{', '.join((*METRICS, *WITHOUT_CLASSES))}"
            )
        return cls(
            name,
            **{key: str(value) for key, value in options.items()},
            templates=(prompts,) if isinstance(prompts, str) else tuple(prompts),
            groups=tuple(groups.split(",") if isinstance(groups, str) else groups),
            threshold=threshold,
        )

    @property
    def key(self) -> str:
        """The config key of the dataset."""
        return f"evaluate.sets.{self.name}"


def _similarity(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(
            f"evaluate.sets.{name}.threshold={value!r} must be a similarity between 0 and 1"
        )
    return float(value)


def read_labels(path: str, name: str, key: str = "") -> list[str]:
    """Reads class names from a JSON file.

    Args:
      path: the file; it holds a list of names, or an object with a list under `name`.
      name: the name of the dataset.
      key: the config key of the file, for messages; empty: that of the dataset.

    Raises:
      UserError: it cannot be read, or holds no such list of distinct names.
    """
    file, key = Path(resolve(path)), key or f"evaluate.sets.{name}.labels"
    try:
        if file.stat().st_size > _MAX_LABELS or not (file.is_file() or file.is_dir()):
            raise UserError(f"{key}: {file} is no file, or over 64 MiB")
        labels = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{key}: {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {file} is not JSON ({error})") from None
    labels = labels.get(name) if isinstance(labels, dict) else labels
    under = f" (or one under {name!r})" if name else ""
    if not isinstance(labels, list) or not labels:
        raise UserError(f"{key}: {file} must hold a list of distinct names{under}")
    names = [str(label) for label in labels]
    if blank := [label for label in labels if label is None or not str(label).strip()]:
        raise UserError(f"{key}: {file} holds {blank[0]!r}, which names no class")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{key}: {file} must hold distinct names; {twice!r:.80} is there twice")
    return names
