"""The protocol of a weights mapping: how another library names and describes models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.mappings.leaf import Leaf

Document = Mapping[str, Any]  # a JSON object


class ModelDescription(NamedTuple):
    """What the config files beside weights say.

    Attributes:
      config: the architecture.
      preprocess: turns an image into pixels; None if no file states it.
      preprocess_files: the files in which it is looked for, in words.
    """

    config: CLIPConfig
    preprocess: Preprocess | None
    preprocess_files: str


class WeightsMapping(Protocol):
    """The names of a model's parameters in a library, and the JSON that describes the model there.

    Attributes:
      name: the name in `MAPPINGS`, for messages.
      description: one line for people: the library, a colon, its files.
      weights_file: the usual name of a file of weights.
      config_file: the name of the config beside it; empty if the library has none.
    """

    name: str
    description: str
    weights_file: str
    config_file: str

    @abstractmethod
    def leaves(self, config: CLIPConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter of a model: the library's tensors that it is made of.

        Raises:
          UserError: the library has no such model.
        """

    @abstractmethod
    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names are a model in the library's files."""

    def as_in_file(self, table: list[Leaf], names: Collection[str]) -> list[Leaf]:
        """Returns the table of a model for a file with tensors of these names.

        Some libraries name a model's parameters in more than one way.
        """
        return table

    @abstractmethod
    def documents(self, config: CLIPConfig, preprocess: Preprocess) -> dict[str, Document]:
        """Returns the JSON files to write beside the weights of a model, by file name.

        Raises:
          UserError: the library cannot describe such a model.
        """

    @abstractmethod
    def interpret(
        self, config: CLIPConfig, preprocess: Preprocess, documents: Mapping[str, Document]
    ) -> Document:
        """Returns the `configs.essence` of the model that the library builds from such files."""

    def heads(self, config: CLIPConfig) -> tuple[str, ...]:
        """Returns the names of the heads of a model that the library's files have a place for."""
        return ()

    def describe(self, config_file: Path) -> ModelDescription:
        """Reads the config files of a folder; `config_file` is one that exists.

        Raises:
          UserError: a file is damaged, or describes a model that we do not have.
        """
        raise NotImplementedError(f"{self.name} has no config files")
