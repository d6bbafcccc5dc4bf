"""Which features of a data set are the image and the texts of a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.sources.tfds.library import tfds
from clip_jax.errors import UserError


def value_at(example: Any, path: tuple[str, ...]) -> Any:
    """The value of a nested feature in an example."""
    for key in path:
        example = example[key]
    return example


class TextFeature(NamedTuple):
    """A feature that holds text: where it is in an example, and whether it is a list."""

    path: tuple[str, ...]
    feature: Any
    is_list: bool

    @property
    def field(self) -> str:
        """The name of the field that it becomes."""
        return "/".join(self.path)

    def read_text(self, example: Mapping[str, Any]) -> str | list[str] | None:
        """The text in an example; None for a label that is unknown."""
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
    """The features that hold values: their paths, and how many lists they are nested in."""
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
    """Text, labels and lists of them, in the order of their names."""
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
    """Where the image is: the only image feature, or the one called image.

    Raises:
      UserError: there is none, or several; `name` is the data set's.
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
    """A feature reduced to the leaves at `paths`, so that nothing else is parsed; None for none."""
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
    """The field that `{caption}` stands for: by its name, or the only one."""
    for word in ("caption", "captions", "text"):
        matches = [field for field in fields if word in field.split("/")]
        if len(matches) == 1:
            return matches[0]
    return fields[0] if len(fields) == 1 else None
