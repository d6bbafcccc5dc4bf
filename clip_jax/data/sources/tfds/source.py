"""The pairs of a prepared data set of TensorFlow Datasets."""

from __future__ import annotations

import os
import re
from typing import Any

from clip_jax.data.example import Pair, PairError
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.sources.tfds import features
from clip_jax.data.sources.tfds.library import tfds
from clip_jax.data.sources.tfds.location import data_dir
from clip_jax.data.sources.tfds.prepared import one_line, open_prepared
from clip_jax.errors import UserError

_SPEC = re.compile(r"(?P<name>[^\[\]]+):(?P<split>(?:[^:\[\]]|\[[^\[\]]*\])+)")


class TfdsSource:
    """The pairs of a split of a prepared data set; `source[i]` reads the i-th, without TensorFlow.

    Text, labels (by their names) and lists of them are the text fields of a pair, under the names
    of the features (`captions/text` for one inside another). `caption` stands for the only one, or
    for the one called caption, captions or text.

    Args:
      spec: NAME:SPLIT.
      folder: where the data set is prepared; empty for `data_dir()`.

    Raises:
      UserError: there is no such data set or split, it is not prepared, or it has no image.
    """

    def __init__(self, spec: str, folder: str = "") -> None:
        match = _SPEC.fullmatch(spec)
        if not match:
            raise UserError(
                f"tfds:{spec} is not tfds:NAME:SPLIT, such as tfds:clip_jax_emoji:train "
                "or tfds:coco_captions/2014:1.1.0:train[:90%]"
            )
        self.spec = spec
        name, split = match.group("name", "split")
        builder = open_prepared(name, folder or data_dir())
        self._folder = builder.data_dir
        all_features = builder.info.features
        self._image = features.image_path(all_features, name)
        self._texts = features.text_features(all_features)
        self._caption = features.caption_field([text.field for text in self._texts])
        paths = {self._image, *(text.path for text in self._texts)}
        self._features = features.subset(all_features, paths)
        self._decoders: Any = tfds.decode.SkipDecoding()
        for key in reversed(self._image):
            self._decoders = {key: self._decoders}
        try:
            self._records = builder.as_data_source(
                split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
            self._length = len(self._records)
        except (ValueError, KeyError, AssertionError, NotImplementedError):
            self._length = 0
        if not self._length:
            raise UserError(
                f"{name} has no split {split!r}, or nothing is in it; its splits are: "
                f"{', '.join(builder.info.splits)} (a part: train[:90%])"
            )

    @property
    def fingerprint(self) -> str:
        """A text that changes with the folder, the split and the number of pairs.

        The folder names the version.
        """
        return f"{os.path.abspath(self._folder)} {self.spec} {self._length}"

    def __len__(self) -> int:
        return self._length

    def opening_report(self) -> OpeningReport:
        """Returns a report that says that every example is a pair.

        A damaged example is counted when it is drawn.
        """
        return all_used(len(self), "examples")

    def __repr__(self) -> str:
        return f"TfdsSource({self.spec!r}, {len(self):,} pairs)"

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < self._length:
            raise IndexError(f"{self!r} has no pair {i}")
        name = f"tfds:{self.spec}[{i}]"
        try:
            record = self._records[i]
            example = self._features.deserialize_example_np(record, decoders=self._decoders)
            values = {text.field: text.read_text(example) for text in self._texts}
            image = features.value_at(example, self._image)
        except Exception as error:
            raise PairError(
                "unreadable", f"{name} cannot be read from {self._folder} ({one_line(error)})"
            ) from error
        if self._caption:
            values.setdefault("caption", values[self._caption])
        return Pair(image, {field: v for field, v in values.items() if v is not None}, name)
