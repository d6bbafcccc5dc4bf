"""TensorFlow Datasets without TensorFlow: the embedded emoji as one, and pairs out of any.

    python -m clip_jax tfds NAME --data-dir FOLDER

prepares a data set as ArrayRecord files, and `config.data.train=tfds:NAME:SPLIT` then trains on it
(FOLDER in the environment as TFDS_DATA_DIR). NAME is as TensorFlow Datasets takes it:
`clip_jax_emoji`, `coco_captions/2014:1.1.0`.
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.example import Pair, PairError
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.sources.tars import TarSource
from clip_jax.errors import UserError, is_disk_full
from clip_jax.io.paths import resolve

try:
    import tensorflow_datasets as tfds
    from etils import epath
except ImportError as error:
    missing = f"tensorflow-datasets is not installed ({error}): pip install 'clip_jax[tfds]'"
    if __name__ == "__main__":  # of a command it is a line, and no traceback
        sys.exit(f"error: {missing}")
    raise UserError(missing) from None

FORMAT = "array_record"
SPLITS = ("train", "unseen_drawing", "unseen_concept")
FAMILIES = (
    "noto",
    "noto-v1",
    "twemoji",
    "openmoji",
    "emojione",
    "emojione-v1",
    "fxemoji",
    "fluent-flat",
    "fluent-3d",
)
COMMAND = "python -m clip_jax tfds"
_SPEC = re.compile(r"(?P<name>[^\[\]]+):(?P<split>(?:[^:\[\]]|\[[^\[\]]*\])+)")
_NAME = re.compile(
    r"(?P<dataset>[a-zA-Z]\w*)(?:/(?P<config>[\w+.-]+))?(?::(?P<version>[\d*]+\.[\d*]+\.[\d*]+))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


# A second registration, when this module is run as a command, would be an error.
class ClipJaxEmoji(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=__name__ == "__main__",  # type: ignore[call-arg]  # the base is Any to mypy
):
    """Emoji in nine families of drawings, with their Unicode names and keywords.

    The pairs of the tars that ship with clip_jax, in their order; the pictures are the same bytes
    (64×64, lossy WebP). `family` says whose drawing it is. In `unseen_drawing` are the families
    that `train` leaves out, in `unseen_concept` the emoji that it leaves out.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012  # as the base class declares it

    def _info(self) -> Any:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(ClipJaxEmoji),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(64, 64, 3)),
                    "name": text(doc="Unicode's name"),
                    "keywords": tfds.features.Sequence(text(), doc="what CLDR says of it"),
                    "hexcode": text(doc="the code points"),
                    "group": text(doc="one of Unicode's nine groups"),
                    "variants_of": text(doc="shared by what differs in skin, gender, hair only"),
                    "family": tfds.features.ClassLabel(names=FAMILIES),
                }
            ),
            disable_shuffling=True,
            license=Path(resolve("embedded:emoji/LICENSES.md")).read_text("utf-8"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        source = TarSource(f"embedded:emoji/{split}-*.tar")
        for i in range(len(source)):
            pair = source[i]
            family = pair.name.rsplit(".", 2)[1]
            yield i, {"image": io.BytesIO(pair.image), "family": family, **pair.text}


def _at(example: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        example = example[key]
    return example


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class _Text(NamedTuple):
    """A feature that holds text: where it stands in an example, and whether it is a list."""

    path: tuple[str, ...]
    feature: Any
    is_list: bool

    @property
    def field(self) -> str:
        return "/".join(self.path)

    def read(self, example: dict[str, Any]) -> str | list[str] | None:
        """The text in an example; nothing where a label is unknown."""
        value = _at(example, self.path)
        if not self.is_list:
            return self._one(value)
        return [text for one in value if (text := self._one(one)) is not None]

    def _one(self, value: Any) -> str | None:
        if isinstance(self.feature, tfds.features.ClassLabel):
            return None if value < 0 else self.feature.int2str(int(value))
        return value.decode() if isinstance(value, bytes) else value


def _leaves(
    feature: Any, path: tuple[str, ...] = (), rank: int = 0
) -> Iterator[tuple[tuple[str, ...], Any, int]]:
    """The features that hold values: where they stand, and under how many lists."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for key in sorted(feature):
            yield from _leaves(feature[key], (*path, key), rank)
    elif isinstance(feature, tfds.features.Dataset):
        return
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path, rank + 1)
    else:
        yield path, feature, rank


def _texts(features: Any) -> list[_Text]:
    texts = []
    for path, feature, rank in _leaves(features):
        if not isinstance(feature, tfds.features.Tensor):
            continue
        rank += len(feature.shape)
        is_text = isinstance(feature, tfds.features.ClassLabel) or feature.np_dtype == np.object_
        if is_text and rank <= 1:
            texts.append(_Text(path, feature, rank == 1))
    return texts


def _image(features: Any, name: str) -> tuple[str, ...]:
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


def _subset(feature: Any, wanted: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> Any:
    """The feature without what is not wanted; None if nothing is left of it."""
    if isinstance(feature, tfds.features.FeaturesDict):
        kept = {key: _subset(feature[key], wanted, (*path, key)) for key in feature}
        kept = {key: one for key, one in kept.items() if one is not None}
        return tfds.features.FeaturesDict(kept) if kept else None
    if isinstance(feature, tfds.features.Sequence):
        inner = _subset(feature.feature, wanted, path)
        if inner is None or not isinstance(inner, tfds.features.FeaturesDict):
            return None if inner is None else feature
        return tfds.features.Sequence(inner)
    return feature if path in wanted else None


def _caption(fields: Sequence[str]) -> str | None:
    """The field that `{caption}` stands for: called so, or the only one."""
    for word in ("caption", "captions", "text"):
        called = [field for field in fields if word in field.split("/")]
        if len(called) == 1:
            return called[0]
    return fields[0] if len(fields) == 1 else None


def data_dir() -> str:
    """Where data sets are prepared: TFDS_DATA_DIR, or TensorFlow Datasets' own default."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _parse(name: str) -> re.Match[str]:
    if not (parsed := _NAME.fullmatch(name)):
        raise UserError(
            f"{name!r} names no data set: NAME, NAME/CONFIG or NAME/CONFIG:1.0.0 is expected"
        )
    return parsed


def _check_known(dataset: str, folder: str) -> None:
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        near = difflib.get_close_matches(dataset, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"TensorFlow Datasets has no {dataset!r}, and none is prepared in {folder}{hint}"
        )


def _prepared(dataset: str, folder: str) -> list[tuple[str, str, epath.Path]]:
    """Configuration, version and place of what is prepared under a name."""
    root = epath.Path(folder) / dataset
    found = [path.parent for depth in ("*", "*/*") for path in root.glob(f"{depth}/features.json")]
    return [
        ("" if path.parent == root else path.parent.name, path.name, path)
        for path in sorted(found)
        if _VERSION.fullmatch(path.name)
    ]


def _find(name: str, folder: str) -> epath.Path:
    """Where the latest version of a data set is prepared.

    Raises:
      UserError: it is not, there is no such data set, or a configuration is to be named.
    """
    dataset, config, version = _parse(name).group("dataset", "config", "version")
    prepared = _prepared(dataset, folder)
    fitting = [
        item
        for item in prepared
        if (config is None or item[0] == config) and fnmatch.fnmatch(item[1], version or "*")
    ]
    if not fitting:
        if not prepared:
            _check_known(dataset, folder)
        others = ", ".join(f"{dataset}/{c}:{v}" if c else f"{dataset}:{v}" for c, v, _ in prepared)
        there = f" ({others} is)" if others else ""
        raise UserError(
            f"{name} is not prepared in {folder}{there}: "
            f"run {COMMAND} {name} --data-dir {folder}, or set TFDS_DATA_DIR to where it is"
        )
    if len(configs := sorted({item[0] for item in fitting})) > 1:
        raise UserError(
            f"{name} is prepared in several configurations; name one: "
            f"{', '.join(f'{dataset}/{c}' if c else dataset for c in configs)}"
        )
    return max(fitting, key=lambda item: [int(part) for part in item[1].split(".")])[2]


def _open(name: str, folder: str) -> Any:
    """The builder of what is prepared, without its code.

    Raises:
      UserError: it is not prepared, cannot be read, or is in a format that needs TensorFlow.
    """
    path = _find(name, folder)
    try:
        builder = tfds.builder_from_directory(os.fspath(path))
        formats = sorted(format.value for format in builder.info.available_file_formats())
        if FORMAT in formats:
            builder.info.set_file_format(FORMAT, override=True, override_if_initialized=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a prepared data set ({_line(error)})") from error
    if FORMAT not in formats:
        raise UserError(
            f"{path} is prepared as {' and '.join(formats)}, which needs TensorFlow to read: "
            f"remove it, or choose another folder, and run {COMMAND} {name} --data-dir FOLDER, "
            f"which prepares with file_format='{FORMAT}'"
        )
    return builder


class TfdsSource:
    """The pairs of a split of a prepared data set; `source[i]` reads the i-th, without TensorFlow.

    Text, labels (by their names) and lists of them are the fields of a pair's text, under the names
    of the features (`captions/text` for one inside another). `caption` stands for the only one, or
    for one called caption, captions or text. `folder` is where it is prepared, `data_dir()` if ''.

    Raises:
      UserError: no such data set or split, not prepared, or no picture in it.
    """

    def __init__(self, spec: str, folder: str = "") -> None:
        parsed = _SPEC.fullmatch(spec)
        if not parsed:
            raise UserError(
                f"tfds:{spec} is not tfds:NAME:SPLIT, such as tfds:clip_jax_emoji:train "
                "or tfds:coco_captions/2014:1.1.0:train[:90%]"
            )
        self.spec = spec
        name, split = parsed.group("name", "split")
        builder = _open(name, folder or data_dir())
        self._folder = builder.data_dir
        features = builder.info.features
        self._image = _image(features, name)
        self._texts = _texts(features)
        self._caption = _caption([text.field for text in self._texts])
        self._features = _subset(features, {self._image, *(t.path for t in self._texts)})
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
        """What changes when the data does: where it is prepared, its version, the split."""
        return f"{os.path.abspath(self._folder)} {self.spec} {self._length}"

    def __len__(self) -> int:
        return self._length

    def opening_report(self) -> OpeningReport:
        """Every example is a pair: one that is broken is counted when it is drawn."""
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
            values = {text.field: text.read(example) for text in self._texts}
            image = _at(example, self._image)
        except Exception as error:
            raise PairError(
                "unreadable", f"{name} cannot be read from {self._folder} ({_line(error)})"
            ) from error
        if self._caption:
            values.setdefault("caption", values[self._caption])
        return Pair(image, {field: v for field, v in values.items() if v is not None}, name)


def prepare(name: str, folder: str) -> Any:
    """Prepares a data set as ArrayRecord files, unless it is; returns its builder.

    Raises:
      UserError: no such data set, or its preparation fails.
    """
    dataset = _parse(name)["dataset"]
    if not _prepared(dataset, folder):
        _check_known(dataset, folder)
    try:
        builder = tfds.builder(name, data_dir=folder)
        if not builder.data_path.exists():
            builder.download_and_prepare(file_format=FORMAT)
    except Exception as error:
        if is_disk_full(error):
            raise
        if isinstance(error, ImportError) and "tensorflow" in str(error):
            raise UserError(
                f"{name} is among those whose own code needs TensorFlow to prepare (not to read): "
                f"run the same command once where TensorFlow is installed, then copy the folder"
            ) from error
        raise UserError(f"{name} cannot be prepared ({_line(error)})") from error
    return _open(name, folder)
