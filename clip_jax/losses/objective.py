"""The protocol of objectives: an objective computes the loss that a training step minimizes.

The step, gradient accumulation, plans and the FLOP count use an objective only through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float, Key

from clip_jax.config.schema import Config
from clip_jax.config.values import is_number
from clip_jax.errors import UserError
from clip_jax.models import second_projection
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import VisionTower

Batch = Mapping[str, Any]
Metrics = dict[str, Float[Array, ""]]


class Objective(Protocol):
    """Computes the features of a batch with a model, and from them a loss and metrics."""

    def features(self, model: CLIP, batch: Batch, keys: Key[Array, " n"]) -> Any:
        """Runs the towers on a batch or on a part of it.

        Gradient accumulation calls this on one part at a time, and keeps the results of all parts.

        Args:
          model: the model.
          batch: `image` uint8 [n, height, width, 3] and `tokens` int32 [n, context].
          keys: a random key for each row, which does not depend on the part that has the row.

        Returns:
          A pytree of arrays whose first axis runs over the rows.
        """

    def loss(self, features: Any, model: CLIP, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of the global batch, and metrics to log.

        Args:
          features: the result of `features` for all rows of the batch.
          model: gives the parameters beside the towers, such as `model.scale`.
          batch: the global batch, with the arrays that `features` describes.

        Returns:
          The loss, and the metrics by name.
        """

    def flops(self, model_config: CLIPConfig, batch_size: int) -> int:
        """Returns the FLOPs of the forward pass of the loss, without the towers."""


class ConfiguredObjective(Objective, Protocol):
    """An objective that can be made from a config."""

    @classmethod
    def from_config(
        cls, config: Config, model_config: CLIPConfig, options: Mapping[str, Any]
    ) -> Objective:
        """Makes the objective of a run.

        Args:
          config: the config of the run; `config.loss` has the keys of the contrastive objective.
          model_config: the architecture.
          options: `config.objective.options`: keys that are not part of the schema.

        Raises:
          UserError: a key is wrong, or the model lacks what the objective needs.
        """


def reads_image_features(objective: Objective) -> bool:
    """Returns whether an objective takes `image_features` in a batch in place of `image`.

    Those are the unit-norm features [n, embed_dim] of a frozen image tower. An objective says so by
    an attribute `reads_image_features`.
    """
    return bool(getattr(objective, "reads_image_features", False))


def reads_places(objective: Objective) -> bool:
    """Returns whether an objective uses the features of the images' places (`CLIP.encode_grid`).

    An objective says so by an attribute `reads_places`. Objectives of a mix then share its pass of
    the image tower.
    """
    return bool(getattr(objective, "reads_places", False))


def has_same_features(objective: Objective, other: Objective) -> bool:
    """Returns whether two objectives of a mix can share the result of `features`.

    They can if they have the same method, and are equal or its result depends on no option. A class
    says the latter by an attribute `options_change_features = False`.
    """
    if type(objective).features is not type(other).features:
        return False
    return objective == other or not getattr(objective, "options_change_features", True)


def extra_arrays(objective: Objective) -> tuple[str, ...]:
    """Returns the names of the arrays that an objective needs beside `image` and `tokens`.

    An objective says so by an attribute `extra_arrays`. There are
      group: uint32 [n, 2], equal for pairs of one image, or of one value of `data.label`;
      label: int32 [n], the number of the class that `data.label` names;
      span: int32 [n, 2], the position of the first word of the caption, and that after the last.
    """
    return tuple(getattr(objective, "extra_arrays", ()))


def full_rows(objective: Objective) -> bool:
    """Returns whether an objective needs `tokens` at the full context length.

    Columns that are padding in all rows of a batch are cut off otherwise, where the text tower is
    blind to them. An objective whose loss depends on them says so by an attribute `full_rows`.
    """
    return bool(getattr(objective, "full_rows", False))


def unused_parts(objective: Objective) -> tuple[str, ...]:
    """Returns the parts of a model that an objective does not use, such as `text.projection`.

    They are frozen. An objective says so by an attribute `unused_parts`; a name that a model does
    not have is passed over.
    """
    return tuple(getattr(objective, "unused_parts", ()))


def has_part(parts: tuple[str, ...], name: str) -> bool:
    """Returns whether some parts of a model contain another: `text` contains `text.projection`."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


# The parts that an objective without texts does not use.
TEXT_PARTS = ("text", "logit_scale", "temperature", "logit_bias")


def pooling_parts(tower: VisionTower) -> tuple[str, ...]:
    """Returns the parts that an objective does not use which reads the places of images alone."""
    return tuple(f"vision.{part}" for part in (*tower.pooling_parts, second_projection.NAME))


def check_options(
    options: Mapping[str, Any],
    objective: str,
    known: Mapping[str, tuple[float, str]],
    hint: str = "",
) -> None:
    """Raises UserError for an unknown key of `config.objective.options`, or a wrong number.

    Args:
      options: the options.
      objective: the name of the objective.
      known: the highest value of each key, which is a number from 0 on, and what it must be, in
        words.
      hint: where its other keys are, in words.
    """
    for name, value in options.items():
        key = f"config.objective.options.{name}"
        if name not in known:
            raise UserError(f"{key}: the objective {objective} has {', '.join(known)}{hint}")
        most, kind = known[name]
        if not is_number(value) or not 0 <= value <= most:
            raise UserError(f"{key}={value!r:.80} must be {kind}")


def refuse_options(options: Mapping[str, Any], objective: str, hint: str = "") -> None:
    """Raises UserError for `config.objective.options` of an objective that has none.

    Args:
      options: the options.
      objective: the objective, in words.
      hint: where its keys are, in words.
    """
    if options:
        raise UserError(
            f"config.objective.options={dict(options)!r:.200}: {objective} has none{hint}"
        )
