"""The seam between a training step and what it minimizes.

The step, gradient accumulation, plans and the FLOP count know an objective by this protocol only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float, Key

from clip_jax.config.schema import Config
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig

Batch = Mapping[str, Any]
Metrics = dict[str, Float[Array, ""]]


class Objective(Protocol):
    """What training minimizes: from what the towers compute for a batch to a loss and metrics."""

    def features(self, model: CLIP, batch: Batch, keys: Key[Array, " n"]) -> Any:
        """What the towers compute for a batch or a part of one.

        With gradient accumulation this runs on one part at a time, and its result is kept for the
        whole batch.

        Args:
          model: the model.
          batch: `image` uint8 [n, height, width, 3] and `tokens` int32 [n, context].
          keys: a random key for each row, the same in whatever part the row is.

        Returns:
          A pytree of arrays whose first axis is the rows.
        """

    def loss(self, features: Any, model: CLIP, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """The loss of the global batch, and metrics to log.

        Args:
          features: of all rows of the batch, as `features` returns them.
          model: for parameters beside the towers, such as `model.scale`.
          batch: as for `features`.
        """

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """FLOPs of the loss of a batch, forward, without the towers."""


class ConfiguredObjective(Objective, Protocol):
    """An objective that a config can name."""

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> Objective:
        """The objective of a run.

        Args:
          config: the run's config; `config.loss` has the keys of the contrastive objective.
          model_config: the architecture.
          options: `config.objective.options`, for keys that the schema does not have.

        Raises:
          UserError: a key is wrong, or the model lacks what the objective needs.
        """
