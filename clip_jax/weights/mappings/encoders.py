"""What the mappings of transformers' text encoders have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models.registry import kind_of
from clip_jax.weights.mappings.leaf import Leaf, linear, prefixed
from clip_jax.weights.mappings.tower import TowerMapping

CONFIG = "config.json"
POOLING = Path("1_Pooling") / "config.json"  # of sentence-transformers


class EncoderMapping(TowerMapping):
    """The mapping of a text encoder of transformers, which its config.json describes.

    Attributes:
      kinds: the kinds of our towers that it fills.
    """

    side = "text"
    kinds: ClassVar[tuple[str, ...]]

    def fills(self, tower: Any) -> bool:
        """Returns whether this mapping has the names of such a tower."""
        return kind_of(tower) in self.kinds

    def leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaf of every parameter but the projection."""
        if not self.fills(tower):
            raise UserError(
                f"{self.description} fills no {kind_of(tower)}: set model.text.kind="
                f"{' or '.join(self.kinds)}"
            )
        return self.encoder_leaves(tower)

    @abstractmethod
    def encoder_leaves(self, tower: Any) -> Iterator[Leaf]:
        """Yields the leaves of a tower that it fills."""

    def facts(self, tower: Any, file: Path) -> Mapping[str, Any]:
        """Returns what config.json and the pooling's config say."""
        from clip_jax.weights.configs.encoders import from_encoder, from_pooling  # imports JAX

        config = file.parent / CONFIG
        if not config.is_file():
            raise UserError(
                f"{file} has no {CONFIG} beside it, which says what kind of encoder it is"
            )
        facts = from_encoder(files.read_json(config), kind_of(tower), str(config))
        pooling = file.parent / POOLING
        return facts | (
            from_pooling(files.read_json(pooling), str(pooling)) if pooling.is_file() else {}
        )


def open_clip_leaves(mapping: EncoderMapping, tower: Any) -> Iterator[Leaf]:
    """Yields the leaves of an encoder inside open_clip's model, with its projection."""
    yield from prefixed(mapping.leaves(tower), "text.transformer.")
    ours, theirs = "text/projection", "text.proj"
    if tower.projection == "linear":
        yield from linear(ours, theirs, bias=False)
    elif tower.projection == "mlp":
        yield from linear(f"{ours}/fc", f"{theirs}.0", bias=False)
        yield from linear(f"{ours}/proj", f"{theirs}.2", bias=False)
