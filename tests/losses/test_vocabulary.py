"""Cross-entropy over a vocabulary in parts equals the whole, and never makes its logits."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.losses import vocabulary
from jaxprs import sizes
from steps import mesh_of

N, TOKENS, WIDTH, WORDS, CHOICES = 16, 3, 8, 50, 2


def inputs(dtype: str = "float32") -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shares = rng.random((N, TOKENS, CHOICES))
    return {
        "hidden": jnp.asarray(rng.normal(size=(N, TOKENS, WIDTH)), dtype),
        "kernel": jnp.asarray(rng.normal(size=(WIDTH, WORDS)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=WORDS), jnp.float32),
        "targets": jnp.asarray(rng.integers(0, WORDS, (N, TOKENS, CHOICES)), jnp.int32),
        "shares": jnp.asarray(shares / shares.sum(-1, keepdims=True), jnp.float32),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_it_is_the_textbooks(smoothing: float) -> None:
    x = {name: np.asarray(value, np.float64) for name, value in inputs().items()}
    logits = x["hidden"] @ x["kernel"] + x["bias"]
    log_shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.zeros_like(logits)
    for i, j, k in np.ndindex(N, TOKENS, CHOICES):
        target[i, j, int(x["targets"][i, j, k])] += x["shares"][i, j, k]
    target = (1 - smoothing) * target + smoothing / WORDS
    losses = vocabulary.token_losses(**inputs(), label_smoothing=smoothing)
    np.testing.assert_allclose(losses, -(target * log_shares).sum(-1), rtol=1e-5)


def weighted(max_bytes: int, x: dict[str, jax.Array]) -> jax.Array:
    losses = vocabulary.token_losses(**x, label_smoothing=0.1, max_bytes=max_bytes)
    return jnp.sum(losses * jnp.linspace(0, 1, TOKENS))


def floats(x: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: x[name] for name in ("hidden", "kernel", "bias")}


ROW = TOKENS * WORDS * 4


@pytest.mark.parametrize("max_bytes", [0, ROW, 5 * ROW, 16 * ROW])
@pytest.mark.parametrize("data", [1, 4])
def test_parts_have_the_gradients_of_the_whole(max_bytes: int, data: int) -> None:
    x = inputs()
    rest = {name: x[name] for name in ("targets", "shares")}

    def loss(trained: dict[str, jax.Array], max_bytes: int) -> jax.Array:
        return weighted(max_bytes, trained | rest)

    expected = jax.grad(partial(loss, max_bytes=1 << 40))(floats(x))
    mesh = mesh_of(dict(data=data))
    rows = NamedSharding(mesh, P("data"))
    placed = floats(x) | {"hidden": jax.device_put(x["hidden"], rows)}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        grads = jax.jit(jax.grad(partial(loss, max_bytes=max_bytes)))(placed)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_logits_of_all_rows_never_exist() -> None:
    x = inputs()
    rest = {name: x[name] for name in ("targets", "shares")}
    grad = jax.grad(lambda trained: weighted(4 * ROW, trained | rest))
    whole = N * TOKENS * WORDS
    assert max(sizes(jax.make_jaxpr(grad)(floats(x)))) < whole
    plain = jax.grad(lambda trained: weighted(1 << 40, trained | rest))
    assert max(sizes(jax.make_jaxpr(plain)(floats(x)))) >= whole
