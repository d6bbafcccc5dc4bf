"""A weighted sum of objectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Key

from clip_jax.losses import objective as objective_lib
from clip_jax.losses.objective import (
    Batch,
    Metrics,
    Objective,
    has_same_features,
    reads_image_features,
    reads_places,
)
from clip_jax.models.clip import CLIP
from clip_jax.models.image_pass import shared_image_pass
from clip_jax.models.model_config import CLIPConfig


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A weighted sum of objectives, which are minimized together.

    Objectives with the same features share them, so the towers run once. Others that take the same
    images share the pass of the image tower.

    Attributes:
      objectives: the objectives by name, which is the prefix of their metrics.
      weights: the factor on the loss of each objective.
    """

    objectives: dict[str, Objective]
    weights: dict[str, float]

    @property
    def reads_image_features(self) -> bool:
        """Whether all objectives can do without images, see `objective.reads_image_features`."""
        return all(map(reads_image_features, self.objectives.values()))

    @property
    def reads_places(self) -> bool:
        """Whether an objective uses features of places, see `objective.reads_places`."""
        return any(map(reads_places, self.objectives.values()))

    @property
    def extra_arrays(self) -> tuple[str, ...]:
        """The arrays that one of the objectives needs, see `objective.extra_arrays`."""
        names = (name for o in self.objectives.values() for name in objective_lib.extra_arrays(o))
        return tuple(dict.fromkeys(names))

    @property
    def full_rows(self) -> bool:
        """Whether an objective needs rows of the full length, see `objective.full_rows`."""
        return any(map(objective_lib.full_rows, self.objectives.values()))

    @property
    def unused_parts(self) -> tuple[str, ...]:
        """The parts that none of the objectives uses, see `objective.unused_parts`."""
        unused = [objective_lib.unused_parts(objective) for objective in self.objectives.values()]
        parts = dict.fromkeys(part for names in unused for part in names)
        return tuple(
            part for part in parts if all(objective_lib.has_part(names, part) for names in unused)
        )

    def _features_owner(self, name: str) -> str:
        """Returns the name of the first objective that has the same features."""
        one = self.objectives[name]
        return next(n for n, o in self.objectives.items() if has_same_features(o, one))

    def features(self, model: CLIP, batch: Batch, keys: Key[Array, " n"]) -> dict[str, Any]:
        """Returns the features by objective; shared features appear once, under the first one."""
        owners = [name for name in self.objectives if self._features_owner(name) == name]
        owners.sort(key=lambda name: not reads_places(self.objectives[name]))
        with shared_image_pass():
            return {name: self.objectives[name].features(model, batch, keys) for name in owners}

    def loss(
        self, features: Mapping[str, Any], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the weighted sum of the losses, and the metrics.

        The loss of each objective is logged as NAME/loss, its metrics as NAME/….
        """
        total: Any = 0.0
        metrics: Metrics = {}
        for name, objective in self.objectives.items():
            owner = self._features_owner(name)
            loss, objective_metrics = objective.loss(features[owner], model, batch)
            total = total + self.weights[name] * loss
            objective_metrics = {"loss": loss, **objective_metrics}
            metrics |= {f"{name}/{key}": value for key, value in objective_metrics.items()}
        return total, metrics

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the sum of the FLOPs of all objectives."""
        return sum(o.flops(model_config, batch_size) for o in self.objectives.values())
