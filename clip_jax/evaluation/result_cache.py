"""Results and features of an evaluation on disk, so that an interrupted one goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clip_jax.distributed import multihost
from clip_jax.evaluation.features import Encoded
from clip_jax.evaluation.serialization import Thumbnail, from_json, thumbnails_in, to_json
from clip_jax.io import files
from clip_jax.io.buckets import is_bucket

T = TypeVar("T")

_VERSION = 2  # of the files; those of other versions are not looked for
_LARGEST = 64 << 20  # bytes of a result


def key_of(*values: Any) -> str:
    """Returns a cache key: a digest of the JSON values that a result depends on."""
    return hashlib.sha256(json.dumps([_VERSION, *values]).encode()).hexdigest()[:32]


class ResultCache:
    """A cache of results and features on disk. Keys cover everything that an entry depends on.

    A damaged file counts as missing. The first process writes for all. Features are neither written
    nor read by many processes, which would have to agree on which are there.

    Args:
      folder: the folder of the files; None stores nothing.
      features: whether features are stored, too, 4 bytes per number.
    """

    def __init__(self, folder: Path | None, *, features: bool = True) -> None:
        self._folder = folder
        self._features = features and folder is not None

    def __bool__(self) -> bool:
        """Returns whether the cache stores anything on disk."""
        return self._folder is not None

    def result(self, key: str, kind: type[T]) -> T | None:
        """Returns the result of a key, the same on all processes, or None.

        Only the first process gets its thumbnails.

        Args:
          key: the key of the result.
          kind: the dataclass of the result.
        """
        result = self._read_result(key, kind) if multihost.is_first() else None
        value = multihost.broadcast_from_first(lambda: None if result is None else to_json(result))
        if multihost.is_first() or value is None:
            return result
        return from_json(kind, value, {})

    def _read_result(self, key: str, kind: type[T]) -> T | None:
        if self._folder is None:
            return None
        try:
            path = self._folder / f"{key}.json"
            if path.stat().st_size > _LARGEST:
                return None
            document = json.loads(path.read_bytes())
            # a name is no path
            names = [name for name in document["thumbnails"] if name.isalnum()]
            thumbnails = {name: (self._folder / f"{name}.webp").read_bytes() for name in names}
            if any(Thumbnail(content).name != name for name, content in thumbnails.items()):
                return None
            return from_json(kind, document["result"], thumbnails)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def keep_result(self, key: str, result: Any) -> None:
        """Writes a result and its thumbnails."""
        if self._folder is None or not multihost.is_first():
            return
        thumbnails = thumbnails_in(result)
        for name, content in thumbnails.items():
            with files.atomic_write(self._folder / f"{name}.webp") as file:
                file.write(content)
        document = {"thumbnails": list(thumbnails), "result": to_json(result)}
        with files.atomic_write(self._folder / f"{key}.json") as file:
            file.write(json.dumps(document).encode())

    def encoded(self, key: str, rows: int) -> Encoded | None:
        """Returns the features of `rows` images, mapped into memory, or None."""
        if not self._features or multihost.is_multi_process():
            return None
        assert self._folder
        features = _map_array(self._folder / f"{key}.features.npy", rows)
        pooled = _map_array(self._folder / f"{key}.pooled.npy", rows)
        return None if features is None or pooled is None else Encoded(features, pooled)

    def keep_encoded(self, key: str, encoded: Encoded) -> None:
        """Writes features."""
        if not self._features or multihost.is_multi_process():
            return
        assert self._folder
        for name, part in zip(Encoded._fields, encoded, strict=True):
            with files.atomic_write(self._folder / f"{key}.{name}.npy") as file:
                np.save(file, part, allow_pickle=False)

    def classifier(self, key: str, rows: int) -> np.ndarray | None:
        """Returns a zero-shot classifier from any evaluation of this user, or None.

        Args:
          key: the key of the classifier.
          rows: the number of its classes.
        """
        return self._common("classifiers", key, rows)

    def keep_classifier(self, key: str, weights: np.ndarray) -> None:
        """Writes a zero-shot classifier for later evaluations."""
        self._keep_common("classifiers", key, weights)

    def descriptors(self, key: str, rows: int) -> np.ndarray | None:
        """Returns descriptors of training images from any evaluation of this user, or None.

        Args:
          key: the key of the descriptors.
          rows: the number of images.
        """
        return self._common("descriptors", key, rows)

    def keep_descriptors(self, key: str, descriptors: np.ndarray) -> None:
        """Writes descriptors of training images for later evaluations."""
        self._keep_common("descriptors", key, descriptors)

    def _common(self, kind: str, key: str, rows: int) -> np.ndarray | None:
        if not self or multihost.is_multi_process():
            return None
        array = _map_array(files.cache_folder(kind) / f"{key}.npy", rows)
        return None if array is None else np.array(array)

    def _keep_common(self, kind: str, key: str, array: np.ndarray) -> None:
        if not self or multihost.is_multi_process():
            return
        # a cache that cannot be written only costs the next evaluation some time
        with (
            contextlib.suppress(OSError),
            files.atomic_write(files.cache_folder(kind) / f"{key}.npy") as file,
        ):
            np.save(file, array, allow_pickle=False)


def _map_array(path: Path, rows: int) -> np.ndarray | None:
    """Maps a matrix of so many rows into memory; None if the file is missing or is another.

    Nothing in a bucket can be mapped: it is read.
    """
    try:
        if is_bucket(path):
            array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        else:
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # NumPy raises errors of many types for the files of others
        return None
    is_matrix = array.ndim == 2 and array.dtype.kind == "f"
    return array if is_matrix and len(array) == rows else None
