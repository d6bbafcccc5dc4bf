"""LAMB against optax's, whose layers are not stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clip_jax import optim
from clip_jax.distributed import sharding
from clip_jax.models.architectures import find_architecture
from clip_jax.models.clip import abstract_model, specs_of
from steps import ADAM, mesh_of, toy_specs

RATE = 0.01
LAMB = {**ADAM, "name": "lamb"}
KEYS = jax.random.split(jax.random.key(0), 4)


def random(key, scale=1.0):
    """Parameters of three layers of unlike sizes, and of some that no stack holds."""
    sizes = jnp.asarray([1.0, 10.0, 0.1])[:, None, None]
    keys = iter(jax.random.split(key, 5))
    return {
        "blocks": {
            "kernel": scale * sizes * jax.random.normal(next(keys), (3, 4, 6)),
            "bias": scale * jax.random.normal(next(keys), (3, 6)),
        },
        "stem": {"kernel": scale * jax.random.normal(next(keys), (2, 2, 3, 4))},
        "token_embedding": {"embedding": scale * jax.random.normal(next(keys), (9, 4))},
        "logit_scale": scale * jax.random.normal(next(keys), ()),
    }


def unstacked(params):
    """Each layer as a tensor of its own; gains, biases and the temperature left out."""
    kernel = params["blocks"]["kernel"]
    return {
        **{f"layer{i}": kernel[i] for i in range(len(kernel))},
        "stem": params["stem"]["kernel"],
        "embedding": params["token_embedding"]["embedding"],
    }


def trained(optimizer, params, grads):
    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for grad in grads:
        params, state = step(params, state, grad)
    return params


PARAMS = random(KEYS[0])
SPECS = toy_specs(PARAMS)
GRADS = [random(key, 0.1) for key in KEYS[1:]]


def test_each_layer_of_a_stack_is_as_if_it_stood_alone():
    ours = trained(optim.make_optimizer(LAMB, lambda _: RATE, SPECS), PARAMS, GRADS)
    theirs = optax.lamb(RATE, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)
    want = trained(theirs, unstacked(PARAMS), [unstacked(g) for g in GRADS])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), unstacked(ours), want)
    together = trained(theirs, {"kernel": PARAMS["blocks"]["kernel"]}, [
        {"kernel": g["blocks"]["kernel"]} for g in GRADS
    ])  # fmt: skip
    off = np.abs(together["kernel"] / ours["blocks"]["kernel"] - 1)
    assert np.median(off) > 1e-2, "a stack taken for one tensor is another thing"


def test_metadata_marks_stacked_layers():
    """Against the layers of a tower: the first axis of a stack counts them."""
    layers = {"vision/stage1": 2, "vision/stage2": 3, "vision/stage3": 5, "vision/stage4": 2}
    layers["text/transformer"] = 12
    params = dict(
        nnx.to_flat_state(nnx.state(abstract_model(find_architecture("RN50")), nnx.Param))
    )
    for name, spec in specs_of(find_architecture("RN50")).items():
        depth = layers.get("/".join(name.split("/")[:2]))
        alone = depth is None or "/first/" in name
        assert spec.stacked is not alone
        assert alone or params[tuple(name.split("/"))].shape[0] == depth


def test_a_step_is_as_long_as_the_layers_weights_are_large():
    optimizer = optim.make_optimizer(LAMB, lambda _: RATE, SPECS)
    updates, _ = jax.jit(optimizer.update)(GRADS[0], optimizer.init(PARAMS), PARAMS)
    for name, update in unstacked(updates).items():
        length = RATE * np.linalg.norm(unstacked(PARAMS)[name])
        assert np.linalg.norm(update) == pytest.approx(length, rel=1e-5)


def test_gains_biases_and_the_temperature_are_adams():
    ours = trained(optim.make_optimizer(LAMB, lambda _: RATE, SPECS), PARAMS, GRADS)
    adam = trained(optax.adam(RATE, b1=0.9, b2=0.98, eps=1e-6), PARAMS, GRADS)
    np.testing.assert_allclose(ours["blocks"]["bias"], adam["blocks"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(ours["logit_scale"], adam["logit_scale"], rtol=1e-6)


def test_weights_and_gradients_of_zero_change_nothing_into_nan():
    params = {"blocks": {"kernel": jnp.zeros((2, 4, 4))}, "kernel": jnp.ones((4, 4))}
    config = {**LAMB, "weight_decay": 0.0}
    optimizer = optim.make_optimizer(config, lambda _: RATE, toy_specs(params))
    grads = {"blocks": {"kernel": jnp.ones((2, 4, 4))}, "kernel": jnp.zeros((4, 4))}
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["kernel"], -RATE, rtol=1e-4)
    assert not np.any(updates["kernel"])


def test_with_moments_in_16_bits_it_stays_near():
    ours = trained(
        optim.make_optimizer({**LAMB, "moments": "bfloat16"}, lambda _: RATE, SPECS), PARAMS, GRADS
    )
    exact = trained(optim.make_optimizer(LAMB, lambda _: RATE, SPECS), PARAMS, GRADS)
    for (name, a), b in zip(unstacked(ours).items(), unstacked(exact).values(), strict=True):
        moved = np.linalg.norm(b - unstacked(PARAMS)[name])
        assert 0 < np.linalg.norm(a - b) < 0.01 * moved


def test_the_ratio_is_that_of_the_whole_layer_on_any_mesh():
    mesh = mesh_of(dict(fsdp=2, tensor=2))
    kernel = {"blocks": {"mlp": {"fc": {"kernel": PARAMS["blocks"]["kernel"]}}}}
    specs = toy_specs(kernel)
    optimizer = optim.make_optimizer(LAMB, lambda _: RATE, specs)
    grads = jax.tree.map(jnp.cos, kernel)
    where = sharding.shardings(kernel, specs, mesh)
    update = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p)[0])
    shared = jax.jit(update, in_shardings=(where, where), out_shardings=where)(kernel, grads)
    spread = jax.tree.leaves(shared)[0]
    assert not spread.sharding.is_fully_replicated
    np.testing.assert_allclose(spread, jax.tree.leaves(update(kernel, grads))[0], rtol=1e-5)
