"""The protocol of a tower mapping: the names of the parameters of a model that is one tower."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from clip_jax.weights.mappings.leaf import Leaf


class TowerMapping(Protocol):
    """The names of a tower's parameters in a library of image models or of text models.

    Attributes:
      name: the name in `TOWER_MAPPINGS`.
      description: the library, in words.
      side: which tower it is, `vision` or `text`.
    """

    name: str
    description: str
    side: str

    @abstractmethod
    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are such a tower."""

    @abstractmethod
    def leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaf of every parameter that the library has; its path starts with the side.

        Only the projection to the embedding space may be missing.

        Args:
          tower: the config of the tower that is to be filled.

        Raises:
          UserError: the library has no such tower.
        """

    @abstractmethod
    def unused(self, tower: Any) -> Collection[str]:
        """Returns names of tensors that the tower has no place for, such as a classifier's."""

    @abstractmethod
    def facts(self, tower: Any, file: Path) -> Mapping[str, Any]:
        """Returns fields of the tower that no tensor's shape tells, with the library's values.

        Args:
          tower: the config of the tower that is to be filled.
          file: the file of the tensors, beside which configs may lie.

        Raises:
          UserError: a config is missing or damaged, or describes a model that we do not have.
        """
