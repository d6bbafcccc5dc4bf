"""Matrix products in each of the types a model computes in, forwards and backwards."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.models.initializers import TORCH
from clip_jax.models.layers import activation_dtype, linear, product
from clip_jax.models.model_config import DTYPES
from clip_jax.models.stack import REMAT_POLICIES

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(KEYS[0], (3, 5, 64))
KERNEL = jax.random.normal(KEYS[1], (64, 32))
GRADIENT = jax.random.normal(KEYS[2], (3, 5, 32))


@pytest.mark.parametrize("factors", [jnp.bfloat16, jnp.float32])
def test_products_are_of_rounded_factors_and_summed_in_float32(factors):
    y, backward = jax.vjp(partial(product, factors=factors), X, KERNEL)
    to_x, to_kernel = backward(GRADIENT)
    assert {a.dtype for a in (y, to_x, to_kernel)} == {jnp.dtype(jnp.float32)}
    x, kernel, gradient = (np.asarray(a.astype(factors), np.float64) for a in (X, KERNEL, GRADIENT))
    for ours, exact in (
        (y, x @ kernel),
        (to_x, gradient @ kernel.T),
        (to_kernel, np.einsum("bli,blo->io", x, gradient)),
    ):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_computes_in_its_type(dtype):
    layer = linear(64, 32, init=TORCH, dtype=dtype, rngs=nnx.Rngs(0))
    kernel, bias = (np.asarray(p[...], np.float64) for p in (layer.kernel, layer.bias))
    exact = np.asarray(X, np.float64) @ kernel + bias
    y = layer(X)
    assert y.dtype == activation_dtype(dtype)
    error = np.abs(np.asarray(y, np.float64) - exact).max() / np.abs(exact).max()
    least, most = {"float32": (0, 1e-6), "mixed": (1e-4, 1e-2), "bfloat16": (1e-4, 2e-2)}[dtype]
    assert least <= error < most
    assert {p.dtype for p in jax.tree.leaves(nnx.state(layer, nnx.Param))} == {
        jnp.dtype(jnp.float32)
    }


STEP = jax.grad(lambda x, kernel: product(x, kernel, jnp.bfloat16).sum(), argnums=(0, 1))


def lowered(platform: str) -> str:
    return jax.jit(STEP).trace(X, KERNEL).lower(lowering_platforms=(platform,)).as_text()


def test_mixed_products_ask_the_compiler_for_bfloat16_factors_and_float32_sums():
    dots = [line for line in lowered("cpu").splitlines() if "dot_g" in line]
    assert len(dots) == 2  # the forward product is not needed for these gradients
    assert all("bf16" in d.split("->")[0] and "f32" in d.split("->")[1] for d in dots)


def test_only_a_cpu_is_kept_from_fusing_factors_into_their_transposition():
    assert "optimization_barrier" in lowered("cpu")
    assert "optimization_barrier" not in lowered("tpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rematerialisation_can_keep_the_results(dtype):
    first, second = (linear(32, 32, init=TORCH, dtype=dtype, rngs=nnx.Rngs(i)) for i in range(2))

    def loss(x, policy):
        layers = jax.checkpoint(lambda x: second(jnp.sin(first(x))), policy=policy)
        return layers(x).astype(jnp.float32).sum()

    def products(policy):
        return str(jax.make_jaxpr(jax.grad(partial(loss, policy=policy)))(X[..., :32])).count(
            "dot_general["
        )

    recomputed = products(REMAT_POLICIES["dots"])
    assert recomputed < products(REMAT_POLICIES["full"])
