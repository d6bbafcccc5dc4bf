"""Which features of a data set are the image and the texts of a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.sources.tfds.library import tfds
from clip_jax.errors import UserError


def value_at(example: Any, path: tuple[str, ...]) -> Any:
    """Returns the value of a nested feature in an example.

    Args:
      example: nested dicts.
      path: the key at each level.
    """
    for key in path:
        example = example[key]
    return example


class TextFeature(NamedTuple):
    """A feature that holds text.

    Attributes:
      path: where it is in an example, see `value_at`.
      feature: the feature of TensorFlow Datasets.
      is_list: whether it is a list.
    """

    path: tuple[str, ...]
    feature: Any
    is_list: bool

    @property
    def field(self) -> str:
        """The name of the text field that the feature becomes."""
        return "/".join(self.path)

    def read_text(self, example: Mapping[str, Any]) -> str | list[str] | None:
        """Returns the text in an example, or None for a label that is unknown."""
        value = value_at(example, self.path)
        if not self.is_list:
            return self._decode(value)
        return [text for item in value if (text := self._decode(item)) is not None]

    def _decode(self, value: Any) -> str | None:
        if isinstance(self.feature, tfds.features.ClassLabel):
            return None if value < 0 else self.feature.int2str(int(value))
        return value.decode() if isinstance(value, bytes) else value


def _leaves(
    feature: Any, path: tuple[str, ...] = (), rank: int = 0
) -> Iterator[tuple[tuple[str, ...], Any, int]]:
    """Yields the features that hold values: path, feature, and the number of lists around it."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for key in sorted(feature):
            yield from _leaves(feature[key], (*path, key), rank)
    elif isinstance(feature, tfds.features.Dataset):
        return
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path, rank + 1)
    else:
        yield path, feature, rank


def text_features(features: Any) -> list[TextFeature]:
    """Returns the features that are text, labels or lists of them, in the order of their names."""
    texts = []
    for path, feature, rank in _leaves(features):
        if not isinstance(feature, tfds.features.Tensor):
            continue
        rank += len(feature.shape)
        is_text = isinstance(feature, tfds.features.ClassLabel) or feature.np_dtype == np.object_
        if is_text and rank <= 1:
            texts.append(TextFeature(path, feature, rank == 1))
    return texts


def image_path(features: Any, name: str) -> tuple[str, ...]:
    """Returns the path of the image: the only image feature, or the one called image.

    Args:
      features: all features of the data set.
      name: the name of the data set, for errors.

    Raises:
      UserError: there is no image feature, or several and none is called image.
    """
    images = [
        path
        for path, feature, rank in _leaves(features)
        if isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage)
        and rank == 0
        and feature.np_dtype == np.uint8
    ]
    if not images:
        raise UserError(f"{name} has no image feature; it has: {', '.join(sorted(features))}")
    if len(images) > 1 and ("image",) not in images:
        known = ", ".join("/".join(path) for path in images)
        raise UserError(f"{name} has several image features and none is called image: {known}")
    return ("image",) if ("image",) in images else images[0]


def subset(feature: Any, paths: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> Any:
    """Reduces a feature to the leaves at `paths`, so that nothing else is parsed.

    Args:
      feature: the feature, which may be nested.
      paths: the paths of the leaves, from the root.
      path: the path of `feature`.

    Returns:
      The feature with these leaves, or None if it has none of them.
    """
    if isinstance(feature, tfds.features.FeaturesDict):
        inner = {key: subset(feature[key], paths, (*path, key)) for key in feature}
        inner = {key: value for key, value in inner.items() if value is not None}
        return tfds.features.FeaturesDict(inner) if inner else None
    if isinstance(feature, tfds.features.Sequence):
        inner = subset(feature.feature, paths, path)
        if inner is None or not isinstance(inner, tfds.features.FeaturesDict):
            return None if inner is None else feature
        return tfds.features.Sequence(inner)
    return feature if path in paths else None


def caption_field(fields: Sequence[str]) -> str | None:
    """Returns the field that `{caption}` reads, or None.

    It is found by the first of the words `caption`, `captions` and `text` that is in the path of
    exactly one field; if there is no such word, it is the only field.
    """
    for word in ("caption", "captions", "text"):
        matches = [field for field in fields if word in field.split("/")]
        if len(matches) == 1:
            return matches[0]
    return fields[0] if len(fields) == 1 else None
