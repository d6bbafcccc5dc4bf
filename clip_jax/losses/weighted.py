"""A weighted sum of objectives."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from clip_jax.losses.objective import Batch, Metrics, Objective
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Several objectives, minimized together.

    Objectives whose classes share one `features` method share its result, so that the towers run
    once.

    Attributes:
      objectives: by the name that their metrics begin with.
      weights: the factor on each objective's loss.
    """

    objectives: dict[str, Objective]
    weights: dict[str, float]

    def _sharer(self, name: str) -> str:
        """The first objective that computes the same features as the one of this name."""
        method = type(self.objectives[name]).features
        return next(n for n, o in self.objectives.items() if type(o).features is method)

    def features(self, model: CLIP, batch: Batch, keys: Key[Array, " n"]) -> dict[str, Any]:
        """The features of each objective that does not share another's."""
        return {
            name: objective.features(model, batch, keys)
            for name, objective in self.objectives.items()
            if self._sharer(name) == name
        }

    def loss(
        self, features: dict[str, Any], model: CLIP, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum; each objective's loss is logged as NAME/loss, its metrics as NAME/…."""
        total: Any = 0.0
        metrics: Metrics = {}
        for name, objective in self.objectives.items():
            loss, own = objective.loss(features[self._sharer(name)], model, batch)
            total = total + self.weights[name] * loss
            own = {"loss": loss, **own}
            metrics |= {f"{name}/{metric}": value for metric, value in own.items()}
        return total, metrics

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """The sum over the objectives."""
        return sum(o.flops(model_config, batch_size) for o in self.objectives.values())
