"""Linear layers and the types that a model computes in."""

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

from clip_jax.models.initializers import LinearInit

RESULT = "linear"


def activation_dtype(dtype: DTypeLike) -> DTypeLike:
    """The type of what flows between the layers of a model computed in `dtype`."""
    return jnp.float32 if dtype == "mixed" else dtype


def _dot(x: Array, y: Array, contracted: tuple[Any, Any], result: DTypeLike) -> Array:
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=result)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], factors: DTypeLike
) -> Float[Array, "*batch outputs"]:
    """x · kernel, forwards and backwards, of factors rounded to `factors`; results typed like x.

    Autodiff would ask for products of factors typed like x. A bfloat16 *result* is what keeps XLA
    from the matrix unit of a CPU (AMX): hence bfloat16 factors of float32 arrays.
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
    """The arrays, computed before they are used.

    On a CPU, XLA fuses what makes a factor (a LayerNorm, say) into the transposition that the
    kernel's gradient wants of it, and walks it against the grain.
    """
    return jax.lax.platform_dependent(
        arrays, cpu=jax.lax.optimization_barrier, default=lambda arrays: arrays
    )


@dataclasses.dataclass(frozen=True)
class _Multiply:
    """The `dot_general` of a linear layer.

    A class and not a closure: models can be pickled, and two of one architecture are equal as keys
    of compiled programs.
    """

    factors: np.dtype

    def __call__(self, x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
        return checkpoint_name(product(x, kernel, self.factors), RESULT)


def linear(
    inputs: int, outputs: int, *, init: LinearInit, dtype: DTypeLike, **options: Any
) -> nnx.Linear:
    """An `nnx.Linear` whose matrix product is computed in `dtype`, one of `model_config.DTYPES`.

    Its result goes by the name `RESULT` among what rematerialisation may keep.
    """
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=init.kernel,
        bias_init=init.bias(inputs),
        dtype=activation_dtype(dtype),
        dot_general=_Multiply(jnp.dtype(jnp.bfloat16 if dtype == "mixed" else dtype)),
        **options,
    )
