"""Pairs in ArrayRecord files of serialized `tf.train.Example`s, read without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.data.example import MAX_MEMBER, Pair, PairError
from clip_jax.data.opening import OpeningReport, all_used
from clip_jax.data.sources.endings import RECORDS
from clip_jax.data.sources.open_files import OpenFiles
from clip_jax.data.sources.protocol import SourceOptions
from clip_jax.errors import UserError
from clip_jax.io import remote
from clip_jax.io.paths import expand, resolve, suffix

MAX_OPEN = 256  # files
# names of features that hold the image; the first that exists is taken
_IMAGE_FEATURES = ("image", "jpg", "jpeg", "png", "webp")
_CHECKED = 10  # records, one of which must have an image
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for single records
_BUFFER = 32 << 10  # bytes


@functools.cache
def _example() -> Any:
    """Returns the message class `tf.train.Example`: features by name, lists of bytes or numbers.

    It is built at run time, because a module that protoc generates is tied to a version of
    protobuf.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="clip_jax/example.proto", package="clip_jax", syntax="proto3"
    )

    def message(name: str, **fields: tuple[bool, int | str]) -> None:
        """Adds a message; each field is (is repeated, type), in the order of their numbers."""
        descriptor = file.message_type.add(name=name)
        for number, (title, (is_repeated, kind)) in enumerate(fields.items(), 1):
            label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
            type_ = {"type": kind} if isinstance(kind, int) else {"type_name": f".clip_jax.{kind}"}
            descriptor.field.add(name=title, number=number, label=label, **type_)

    message("Bytes", value=(True, field.TYPE_BYTES))
    message("Floats", value=(True, field.TYPE_FLOAT))
    message("Ints", value=(True, field.TYPE_INT64))
    message("Feature", bytes=(False, "Bytes"), floats=(False, "Floats"), ints=(False, "Ints"))
    message("Entry", key=(False, field.TYPE_BYTES), value=(False, "Feature"))
    message("Features", entries=(True, "Entry"))
    message("Example", features=(False, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("clip_jax.Example"))


def parse(record: bytes) -> dict[str, list[Any]]:
    """Parses a `tf.train.Example`.

    Returns:
      The features by name; each is a list of bytes or of numbers.

    Raises:
      ValueError: the record is no such message.
    """
    from google.protobuf.message import DecodeError

    try:
        example = _example().FromString(record)
    except DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from None
    features: dict[str, list[Any]] = {}
    for entry in example.features.entries:
        lists = (entry.value.bytes, entry.value.floats, entry.value.ints)
        values = next((item.value for item in lists if item.value), ())
        features[entry.key.decode(errors="replace")] = list(values)
    return features


def _reader(path: str) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise UserError(
            f"{path} needs a package that is missing ({error}): pip install array_record"
        ) from None
    return ArrayRecordReader(path, options=_OPTIONS, file_reader_buffer_size=_BUFFER)


def _count(path: str) -> int:
    """Returns the number of records of a file.

    Raises:
      UserError: the file is no ArrayRecord file, or truncated.
    """
    reader = _reader(path)
    if count := reader.num_records():
        return count
    if reader.ok():
        return 0
    raise UserError(f"{path} cannot be read as ArrayRecord: it is cut short or something else")


class RecordSource:
    """The pairs of ArrayRecord files; `source[i]` reads the i-th record.

    Features with text and numbers are the text fields of a pair; several values are a list.

    Args:
      pattern: files on this machine (braces and globs).
      image: the feature with the image; empty for image, jpg, jpeg, png or webp.

    Raises:
      UserError: a file is missing or cannot be read, or the first records have no image.
    """

    def __init__(self, pattern: str, image: str = "") -> None:
        if remote.is_remote(pattern):
            raise UserError(
                f"{pattern} is remote, and ArrayRecord files are read on this machine only: "
                "copy them, or use tars"
            )
        self.pattern = pattern
        self.paths = expand(pattern)
        states = remote.states(self.paths)
        self.fingerprint = remote.identity(self.paths, states)
        self._sizes = [state.size for state in states]
        self._starts = np.cumsum([0, *map(_count, self.paths)])
        if not len(self):
            raise UserError(f"{pattern} holds no records")
        self._readers = OpenFiles(_reader, MAX_OPEN)
        self.image = image or self._image()
        self.fingerprint += f" {self.image}"

    @staticmethod
    def matches(spec: str) -> bool:
        """Returns whether `spec` ends like the name of an ArrayRecord file."""
        return suffix(spec) in RECORDS

    @classmethod
    def open(cls, spec: str, options: SourceOptions) -> RecordSource:
        """Opens the files that a pattern names."""
        return cls(resolve(spec), options.image)

    def _image(self) -> str:
        features: dict[str, list[Any]] = {}
        for i in range(min(len(self), _CHECKED)):
            with contextlib.suppress(PairError, ValueError):
                features = parse(self._record(i, self.pattern))
            for name in _IMAGE_FEATURES:
                if any(isinstance(value, bytes) for value in features.get(name, ())):
                    return name
        raise UserError(
            f"{self.pattern}: no feature is called {', '.join(_IMAGE_FEATURES)}: say which of "
            f"{', '.join(sorted(features))[:200]} holds the images by config.data.image"
        )

    def layout(self) -> Iterator[bytes]:
        """Yields the sizes of the files."""
        yield repr(self._sizes).encode()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def opening_report(self) -> OpeningReport:
        """Returns a report that says that every record is a pair.

        A damaged record is counted when it is drawn.
        """
        return all_used(len(self), "records")

    def __repr__(self) -> str:
        return f"RecordSource({self.pattern!r}, {len(self):,} pairs)"

    def _record(self, i: int, name: str) -> bytes:
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        try:
            (record,) = self._readers[self.paths[file]].read([int(i - self._starts[file])])
        except (RuntimeError, ValueError, IndexError) as error:
            raise PairError(
                "unreadable", f"{name} cannot be read ({' '.join(str(error).split())[:200]})"
            ) from None
        return record

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < len(self):
            raise IndexError(f"{self!r} has no pair {i}")
        name = f"{self.pattern}: record {i:,}"
        try:
            features = parse(self._record(i, name))
        except ValueError as error:
            raise PairError("unreadable", f"{name} is {error}") from None
        images = features.pop(self.image, [])
        if len(images) != 1 or not isinstance(images[0], bytes):
            raise PairError("unreadable", f"{name} has no image in {self.image!r}")
        if len(images[0]) > MAX_MEMBER:
            raise PairError("unreadable", f"{name} is over {MAX_MEMBER >> 20} MiB")
        text = {key: _plain(values) for key, values in features.items()}
        return Pair(images[0], {k: v for k, v in text.items() if v is not None}, name)


def _plain(values: list[Any]) -> Any:
    """Returns the values of a feature as JSON has them, or None for bytes that are no text."""
    try:
        plain = [v.decode() if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError:
        return None
    return plain[0] if len(plain) == 1 else plain
