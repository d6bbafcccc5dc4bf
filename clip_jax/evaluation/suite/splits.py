"""What a probe learns from."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from clip_jax.errors import UserError
from clip_jax.evaluation import logistic
from clip_jax.evaluation.datasets import Split, TestSet


class Splits(NamedTuple):
    """Pictures of a set to learn from."""

    train: Split
    validation: Split | None

    @classmethod
    def of(cls, test: TestSet) -> Splits:
        """The splits of a set; not every set has one for validation.

        Raises:
          UserError: there is none to train on, or not of every class; the line says what to give.
        """
        train = test.split("train")
        try:
            logistic.check_classes(train.target, len(test.labels))
        except UserError as error:
            raise UserError(f"evaluate.sets.{test.name}.train: {error}") from None
        try:
            return cls(train, test.split("validation"))
        except UserError:
            return cls(train, None)

    @property
    def fingerprint(self) -> str:
        """What changes when a picture or a class of them does."""
        found = hashlib.sha256()
        for split in self:
            if split is not None:
                found.update(split.source.fingerprint.encode() + split.target.tobytes())
        return found.hexdigest()
