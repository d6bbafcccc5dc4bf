"""A linear classifier of images on the unit-norm features of the image tower."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.distributed.param_spec import VECTOR, ParamSpec
from clip_jax.errors import UserError
from clip_jax.models.head import Head
from clip_jax.models.tower import Params

NAME = "classifier"  # in `model.heads`
MAX_LABELS = 1 << 16
_MAX_BYTES = 2 << 20  # of all labels in the config of a run, which is read up to 4 MiB


@dataclasses.dataclass(frozen=True)
class ClassifierConfig(Head):
    """The config of a classifier.

    Attributes:
      labels: the names of the classes, in the order of the logits.
    """

    kind: ClassVar[str] = "classifier"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.labels) <= MAX_LABELS:
            raise UserError(
                f"model.heads.{NAME}.labels holds {len(self.labels)} names: a classifier tells "
                f"from 2 to {MAX_LABELS:,} classes apart"
            )

        if not all(label.strip() for label in self.labels):
            raise UserError(f"model.heads.{NAME}.labels holds an empty name")
        if len(json.dumps(self.labels)) > _MAX_BYTES:
            raise UserError(f"model.heads.{NAME}.labels take over 2 MiB: shorten the names")

    def build(self, model_config: Any, *, dtype: Any, remat: str, rngs: Any) -> Classifier:
        """Builds the module; see `Head.build`."""
        return Classifier(model_config.embed_dim, len(self.labels))


class Classifier(nnx.Module):
    """Logits of classes: scale · features · kernel + bias, in float32.

    With the unit-norm text features of the labels as columns of the kernel, and no bias, this is
    the zero-shot classifier. The kernel starts at zero.

    Args:
      embed_dim: the number of features.
      classes: the number of classes.
    """

    def __init__(self, embed_dim: int, classes: int) -> None:
        spec = ParamSpec(("inputs", None), decay=True)
        self.kernel = nnx.Param(jnp.zeros((embed_dim, classes), jnp.float32), spec=spec)
        self.bias = nnx.Param(jnp.zeros(classes, jnp.float32), spec=VECTOR)

    def __call__(
        self, features: Float[Array, "n embed_dim"], scale: Float[Array, ""] | float
    ) -> Float[Array, "n classes"]:
        """Returns the logits.

        Args:
          features: unit-norm features of images.
          scale: the factor on the products, the logit scale of the model.
        """
        kernel = self.kernel[...].astype(jnp.float32)
        logits: Array = scale * (features @ kernel) + self.bias[...].astype(jnp.float32)
        return logits


def zero_shot_params(weights: Float[Any, "classes embed_dim"]) -> Params:
    """Returns the parameters of the classifier that classifies as the zero-shot classifier does.

    Args:
      weights: the unit-norm text features of the labels, float32.
    """
    kernel = jnp.asarray(weights, jnp.float32).T
    return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], jnp.float32)}
