"""Depthwise convolutions without a gradient are those with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.models.convolution import Convolution
from clip_jax.models.initializers import normal


@pytest.mark.parametrize(
    ("side", "size", "stride", "padding"),
    [(9, 3, 1, None), (8, 3, 2, (0, 1)), (9, 5, 2, (2, 2)), (8, 5, 2, (1, 2)), (7, 1, 3, (0, 0))],
)
def test_a_forward_pass_alone_equals_that_of_training(side, size, stride, padding):
    layer = Convolution(
        6,
        6,
        size,
        stride=stride,
        padding=padding,
        groups=6,
        kernel_init=normal(1.0),
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    x = jax.random.normal(jax.random.key(0), (2, side, side + 1, 6))
    graph, state = nnx.split(layer)

    def apply(state):
        return nnx.merge(graph, state)(x)

    alone = jax.jit(apply)(state)
    training = jax.jit(lambda state: jax.vjp(apply, state)[0])(state)
    np.testing.assert_allclose(alone, training, rtol=1e-5, atol=1e-5)
    half = Convolution(
        6,
        6,
        size,
        stride=stride,
        padding=padding,
        groups=6,
        kernel_init=normal(1.0),
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )(x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), alone, rtol=0.1, atol=0.1)
