"""Linear layers and the types that a model computes in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def activation_dtype(dtype: DTypeLike) -> DTypeLike:
    """The type of what flows between the layers of a model computed in `dtype`."""
    return jnp.float32 if dtype == "mixed" else dtype


def _bfloat16_dot(x: Array, y: Array, contracted: tuple[Any, Any]) -> Array:
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def mixed_dot(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """x · kernel, forwards and backwards, of bfloat16 factors with sums in float32.

    A bfloat16 *result* is what keeps XLA from the matrix unit of a CPU (AMX), and autodiff would
    ask for one of float32 factors: hence the rule of our own.
    """
    return _bfloat16_dot(x, kernel, ((x.ndim - 1,), (0,)))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    saved = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return mixed_dot(*saved), saved


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    gradient = gradient.astype(jnp.bfloat16)
    return (
        _bfloat16_dot(gradient, kernel, ((x.ndim - 1,), (1,))),
        _bfloat16_dot(x, gradient, (rows, rows)),
    )


mixed_dot.defvjp(_forward, _backward)


def _as_dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    return mixed_dot(x, kernel)  # all that nnx.Linear asks for


def linear(inputs: int, outputs: int, *, dtype: DTypeLike, **options: Any) -> nnx.Linear:
    """An `nnx.Linear` whose matrix product is computed in `dtype`, one of `zoo.DTYPES`."""
    if dtype == "mixed":
        options["dot_general"] = _as_dot_general
    return nnx.Linear(inputs, outputs, dtype=activation_dtype(dtype), **options)
