"""A linear layer from the features of an image to a logit for each word of the vocabulary."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.distributed.param_spec import ParamSpec
from clip_jax.models.head import Head
from clip_jax.models.initializers import normal
from clip_jax.models.layers import activation_dtype

_KERNEL = ParamSpec(("inputs", "vocabulary"), decay=True)
_BIAS = ParamSpec(("vocabulary",), decay=False)


@dataclasses.dataclass(frozen=True)
class WordsConfig(Head):
    """The config of a layer that predicts words: it has no keys."""

    kind: ClassVar[str] = "words"

    def build(self, model_config: Any, *, dtype: Any, remat: str, rngs: Any) -> Words:
        """Builds the module; see `Head.build`."""
        return Words(model_config.embed_dim, model_config.text.vocab_size, dtype=dtype, rngs=rngs)


class Words(nnx.Module):
    """The kernel and bias of a linear layer over a vocabulary.

    `losses.vocabulary` multiplies by the kernel, a part of the batch at a time.

    Args:
      inputs: the number of features.
      words: the size of the vocabulary.
      dtype: one of `model_config.DTYPES`.
      rngs: the source of the initial values.
    """

    def __init__(self, inputs: int, words: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.dtype = activation_dtype(dtype)
        draw = normal(inputs**-0.5)
        self.kernel = nnx.Param(draw(rngs.params(), (inputs, words)), spec=_KERNEL)
        self.bias = nnx.Param(jnp.zeros(words), spec=_BIAS)

    def __call__(self, features: Float[Array, "*n inputs"]) -> Float[Array, "*n words"]:
        """Returns the logits of all words, float32."""
        return word_logits(features.astype(self.dtype), self.kernel[...], self.bias[...])


def word_logits(
    hidden: Float[Array, "*n width"],
    kernel: Float[Array, "width vocabulary"],
    bias: Float[Array, " vocabulary"] | None,
) -> Float[Array, "*n vocabulary"]:
    """Returns hidden · kernel + bias, float32; the product has the dtype of `hidden`."""
    kernel = kernel.astype(hidden.dtype)
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32)
