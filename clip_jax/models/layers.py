"""Layers that carry their metadata, and the dtypes that a model computes in."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from clip_jax.distributed.param_spec import EMBEDDING, VECTOR, ParamSpec
from clip_jax.models.dropout import drop
from clip_jax.models.initializers import Initializer, LinearInit

RESULT = "linear"


def activation_dtype(dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype of activations between the layers of a model that computes in `dtype`."""
    return jnp.float32 if dtype == "mixed" else dtype


def _dot(x: Array, y: Array, contracted: tuple[Any, Any], result: DTypeLike) -> Array:
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=result)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], factors: DTypeLike
) -> Float[Array, "*batch outputs"]:
    """Returns x · kernel, with factors rounded to `factors` and results typed like x.

    The gradients are computed in the same way. Autodiff would multiply factors typed like x. With a
    bfloat16 *result* XLA does not use the matrix unit of a CPU (AMX); with bfloat16 factors of
    float32 arrays it does.
    """
    contracted = (x.ndim - 1,), (0,)
    return _dot(x.astype(factors), kernel.astype(factors), contracted, x.dtype)


def _forward(x: Array, kernel: Array, factors: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, factors), (x.astype(factors), kernel.astype(factors))


def _backward(
    factors: DTypeLike, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    result = gradient.dtype
    x, gradient = _materialized(saved[0], gradient.astype(factors))
    kernel = saved[1]
    rows = tuple(range(x.ndim - 1))
    return (
        _dot(gradient, kernel, ((x.ndim - 1,), (1,)), result),
        _dot(x, gradient, (rows, rows), result),
    )


product.defvjp(_forward, _backward)


def _materialized(*arrays: Array) -> tuple[Array, ...]:
    """Returns the arrays, which are computed before they are used.

    On a CPU, XLA would fuse the computation of a factor (such as a LayerNorm) into the
    transposition for the kernel's gradient, and access memory out of order.
    """
    return jax.lax.platform_dependent(
        arrays, cpu=jax.lax.optimization_barrier, default=lambda arrays: arrays
    )


@dataclasses.dataclass(frozen=True)
class _Multiply:
    """The `dot_general` of a linear layer.

    A class and not a closure, so that models can be pickled, and two models of one architecture
    share compiled programs.
    """

    factors: np.dtype

    def __call__(self, x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
        return checkpoint_name(product(x, kernel, self.factors), RESULT)


class Linear(nnx.Linear):
    """A linear layer, to which `lora.add_adapters` may add low-rank factors.

    Attributes:
      rank: columns of `lora_a` and rows of `lora_b`; 0: it has neither.
      scale: the factor on x · A · B.
      dropout: the share of the inputs of A that is dropped in training.
      number: the number of this layer, for its random numbers.
    """

    rank = 0
    scale = 1.0
    dropout = 0.0
    number = 0

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Returns x · W + bias, plus what the adapter adds."""
        y = super().__call__(inputs, out_sharding)
        return y + self.expand(self.reduce(inputs), self.lora_b[...]) if self.rank else y

    def reduce(self, x: Array) -> Array:
        """Returns scale · dropout(x) · A."""
        x = drop(x.astype(self.dtype or x.dtype), self.dropout, self.number)
        return self.scale * self.dot_general(x, self.lora_a[...].astype(x.dtype))

    def expand(self, hidden: Array, factor: Array) -> Array:
        """Multiplies the result of `reduce` by B, or by some columns of it.

        Args:
          hidden: the result of `reduce`.
          factor: B, or some of its columns.
        """
        y: Array = self.dot_general(hidden, factor.astype(hidden.dtype))
        return y


def linear(
    inputs: int,
    outputs: int,
    *,
    init: LinearInit,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    use_bias: bool = True,
    axes: tuple[str, str] = ("inputs", "outputs"),
    bias_axis: str | None = None,
) -> Linear:
    """Makes a `Linear` whose matrix product is computed in `dtype`.

    Its result has the name `RESULT` in rematerialisation policies.

    Args:
      inputs, outputs: the number of features.
      init: the initializers.
      dtype: the dtype of the factors of the product, one of `model_config.DTYPES`.
      rngs: the source of the initial values.
      use_bias: whether it has a bias.
      axes: the logical axes of the kernel, see `sharding.RULES`.
      bias_axis: the logical axis of the bias; None replicates it.
    """
    return Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=init.kernel,
        bias_init=init.bias(inputs),
        dtype=activation_dtype(dtype),
        dot_general=_Multiply(jnp.dtype(jnp.bfloat16 if dtype == "mixed" else dtype)),
        kernel_metadata={"spec": ParamSpec(axes, decay=True, matrix=True)},
        bias_metadata={"spec": ParamSpec((bias_axis,), decay=False)},
        rngs=rngs,
    )


def layer_norm(
    width: int, eps: float, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> nnx.LayerNorm:
    """Makes a LayerNorm that computes in fp32, for inputs in `dtype`.

    For bfloat16 inputs E[x²] - E[x]² in fp32 is exact enough, and takes one pass.
    """
    fast = activation_dtype(dtype) in ("bfloat16", jnp.bfloat16)
    return nnx.LayerNorm(
        width,
        epsilon=eps,
        dtype=jnp.float32,
        use_fast_variance=fast,
        scale_metadata={"spec": VECTOR},
        bias_metadata={"spec": VECTOR},
        rngs=rngs,
    )


def rms_norm(width: int, eps: float, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Makes a norm by the root of the mean of squares, without a bias, that computes in fp32.

    Source: Zhang and Sennrich 2019.
    """
    return nnx.RMSNorm(
        width, epsilon=eps, dtype=jnp.float32, scale_metadata={"spec": VECTOR}, rngs=rngs
    )


def embedding(
    size: int, width: int, *, init: Initializer, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Embed:
    """Makes a table of `size` vectors, such as one for each token of a vocabulary."""
    return nnx.Embed(
        size,
        width,
        embedding_init=init,
        dtype=activation_dtype(dtype),
        embedding_metadata={"spec": EMBEDDING},
        rngs=rngs,
    )
