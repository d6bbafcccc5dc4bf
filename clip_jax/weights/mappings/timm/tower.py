"""What the mappings of timm's image towers have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models.architectures import TOWERS
from clip_jax.models.registry import kind_of
from clip_jax.weights.mappings.leaf import Leaf, linear, prefixed
from clip_jax.weights.mappings.tower import TowerMapping

CONFIG = "config.json"


class TimmTower(TowerMapping):
    """The mapping of a kind of timm's image models, without the classifier.

    Attributes:
      kind: the `kind` of our tower.
      classifier: the module of the classifier, which open_clip uses as a projection where its
        `timm_proj` is null.
    """

    side = "vision"
    kind: ClassVar[str]
    classifier: ClassVar[str] = "head"

    def fills(self, tower: Any) -> bool:
        """Returns whether this mapping has the names of such a tower."""
        return kind_of(tower) == self.kind

    def unused(self, tower: Any) -> Collection[str]:
        """Returns the names of the classifier."""
        return (f"{self.classifier}.weight", f"{self.classifier}.bias")

    def facts(self, tower: Any, file: Path) -> Mapping[str, Any]:
        """Returns the fields of the tower that config.json names; timm's file says its name."""
        config = file.parent / CONFIG
        if not config.is_file():
            raise UserError(
                f"{file} has no {CONFIG} beside it, which says which model of timm it is"
            )
        name = files.read_json(config).get("architecture")
        if name not in TOWERS or not self.fills(TOWERS[name]):
            raise UserError(f"{config}: architecture={name!r:.60} is not supported here")
        values = dataclasses.asdict(TOWERS[name])  # type: ignore[call-overload]
        chosen = ("image_size", "mean", "std", "projection", "projection_bias", "patch_dropout")
        return {key: value for key, value in values.items() if key not in chosen}


def open_clip_leaves(mapping: TimmTower, tower: Any, projection: str) -> Iterator[Leaf]:
    """Yields the leaves of a tower inside open_clip's model, with its projection.

    Args:
      mapping: the mapping of the tower.
      tower: the config of the tower.
      projection: `timm_proj`, see `configs.open_clip.timm.projection_of`.
    """
    yield from prefixed(mapping.leaves(tower), "visual.trunk.")
    ours, head = "vision/projection", "visual.head"
    if not projection:
        yield from linear(ours, f"visual.trunk.{mapping.classifier}")
    elif projection == "linear":
        yield from linear(ours, f"{head}.proj", bias=False)
    elif projection == "mlp":
        yield from linear(f"{ours}/fc", f"{head}.mlp.fc1")
        yield from linear(f"{ours}/proj", f"{head}.mlp.fc2", bias=False)
