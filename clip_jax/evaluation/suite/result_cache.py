"""What an evaluation has found, kept so that one that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.distributed import multihost
from clip_jax.evaluation.features import Encoded
from clip_jax.io import files

_VERSION = 1  # of what is kept
_LARGEST = 64 << 20  # bytes of a kept answer


def key_of(*parts: Any) -> str:
    """A name for what follows from these values alone."""
    return hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()[:32]


class ResultCache:
    """Answers, features and thumbnails by what they follow from.

    Args:
      folder: where they are; None keeps pictures in memory and nothing else.
      features: whether features are written too, 4 bytes a number.

    What is there is used where its name fits, what is damaged is made again. The first process
    writes for all; features are neither written nor read by many processes, which would have to
    agree on what is there.
    """

    def __init__(self, folder: Path | None, *, features: bool = True) -> None:
        self._folder = folder
        self._features = features and folder is not None
        self.pictures: dict[str, bytes] = {}

    def __bool__(self) -> bool:
        """Whether anything outlives the process."""
        return self._folder is not None

    def answer(self, key: str) -> dict[str, Any] | None:
        """The answer of that name with its pictures, or None; alike in all processes.

        Those after the first are given its score alone.
        """
        found = self._read(key) if multihost.is_first() else None

        def digest() -> dict[str, Any] | None:
            return None if found is None else {k: found[k] for k in ("score",) if k in found}

        shared = multihost.from_first(digest)
        return found if multihost.is_first() else shared

    def _read(self, key: str) -> dict[str, Any] | None:
        if self._folder is None:
            return None
        try:
            path = self._folder / f"{key}.json"
            if path.stat().st_size > _LARGEST:
                return None
            values = json.loads(path.read_bytes())
            names = [name for name in values["of"] if name.isalnum()]  # and no path
            pictures = {name: (self._folder / f"{name}.webp").read_bytes() for name in names}
            answer = values["answer"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        self.pictures |= pictures
        return answer if isinstance(answer, dict) else None

    def keep(self, key: str, answer: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
        """Writes an answer and its thumbnails."""
        self.pictures |= pictures
        if self._folder is None or not multihost.is_first():
            return
        for name, content in pictures.items():
            with files.whole(self._folder / f"{name}.webp") as file:
                file.write(content)
        with files.whole(self._folder / f"{key}.json") as file:
            file.write(json.dumps({"of": list(pictures), "answer": answer}).encode())

    def encoded(self, key: str) -> Encoded | None:
        """Features that were kept, or None."""
        if not self._features or multihost.many():
            return None
        assert self._folder
        try:
            parts = [
                np.load(self._folder / f"{key}.{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in Encoded._fields
            ]
        except (OSError, ValueError, EOFError):
            return None
        return Encoded(*parts)

    def keep_encoded(self, key: str, encoded: Encoded) -> None:
        """Writes features."""
        if not self._features or multihost.many():
            return
        assert self._folder
        for name, part in zip(Encoded._fields, encoded, strict=True):
            with files.whole(self._folder / f"{key}.{name}.npy") as file:
                np.save(file, part, allow_pickle=False)

    def classifier(self, key: str) -> np.ndarray | None:
        """A zero-shot classifier that any evaluation of this user's made, or None."""
        return self._common("classifiers", key)

    def keep_classifier(self, key: str, weights: np.ndarray) -> None:
        """Writes a zero-shot classifier for later evaluations."""
        self._keep_common("classifiers", key, weights)

    def descriptors(self, key: str) -> np.ndarray | None:
        """Descriptors of training pictures that any evaluation of this user's made, or None."""
        return self._common("descriptors", key)

    def keep_descriptors(self, key: str, found: np.ndarray) -> None:
        """Writes descriptors of training pictures for later evaluations."""
        self._keep_common("descriptors", key, found)

    def _common(self, kind: str, key: str) -> np.ndarray | None:
        if not self or multihost.many():
            return None
        try:
            return np.load(files.cache_folder(kind) / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def _keep_common(self, kind: str, key: str, array: np.ndarray) -> None:
        if not self or multihost.many():
            return
        with files.whole(files.cache_folder(kind) / f"{key}.npy") as file:
            np.save(file, array, allow_pickle=False)
