"""What is kept in 16 bits: unbiased, never stalled, and nobody else's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import optim
from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import path_name
from clip_jax.models.architectures import find_architecture
from clip_jax.models.clip import abstract_model, specs_of, variables
from clip_jax.optim import low_precision
from steps import ADAM, mesh_of, toy_specs

HALF = {**ADAM, "moments": "bfloat16"}
SIZE = 64
KEY = jax.random.key(7)
stochastic_round = jax.jit(low_precision.stochastic_round)


def floats(bits):
    return np.asarray(bits, np.uint32).view(np.float32)


def bits_of(x):
    """The bits of bfloat16 numbers, as those of the float32 numbers that they are."""
    return np.asarray(x).view(np.uint16).astype(np.uint32) << 16


@given(st.lists(st.integers(0, 2**32 - 1), min_size=SIZE, max_size=SIZE), st.integers(0, 2**31))
def test_any_number_becomes_one_of_its_two_neighbours(bits, seed):
    x, bits = floats(bits), np.asarray(bits, np.uint32)
    rounded = bits_of(stochastic_round(x, jax.random.key(seed)))
    below = bits & 0xFFFF0000
    finite = np.isfinite(x)
    exact = finite & (bits == below)
    assert np.all(rounded[exact] == below[exact])
    assert np.all(np.isin(rounded[finite] - below[finite], [0, 0x10000]))
    np.testing.assert_array_equal(floats(rounded)[~finite], x[~finite])


def test_every_number_of_bfloat16_stays_as_it_is():
    x = floats(np.arange(2**16, dtype=np.uint32) << 16)
    rounded = floats(bits_of(stochastic_round(x, KEY)))
    np.testing.assert_array_equal(rounded, x)
    assert np.all(np.signbit(rounded) == np.signbit(x))


def test_a_nan_whose_bits_are_all_cut_off_stays_one():
    x = floats([0x7F800001, 0xFF80FFFF, 0x7F80FFFF, 0x7FFFFFFF])
    assert np.all(np.isnan(floats(bits_of(stochastic_round(x, KEY)))))


LARGEST = 0x7F7F0000  # of bfloat16; its upper neighbour is infinity


@pytest.mark.parametrize("below", [0x3F800000, 0xBCA30000, 0x00010000, 0x80000000, LARGEST])
@pytest.mark.parametrize("rest", [1, 0x4000, 0x8000, 0xFFFF])
def test_the_chance_of_the_upper_neighbour_is_the_distance_from_the_lower(below, rest):
    """Of all 2¹⁶ draws exactly `rest` go up: a number at rest / 2¹⁶ of the way, no bias at all."""
    x = np.full(2**16, floats(below + rest))
    rounded = bits_of(jax.jit(low_precision._round)(x, np.arange(2**16, dtype=np.uint16)))
    assert np.sum(rounded == below + 0x10000) == rest
    assert np.sum(rounded == below) == 2**16 - rest


def test_draws_are_even_and_a_keys_own():
    x = np.full(2**16, floats(0x3F800000 + 0x4000))  # a quarter of the way up
    first, again, other = (
        bits_of(stochastic_round(x, key)) for key in (KEY, KEY, jax.random.key(8))
    )
    np.testing.assert_array_equal(first, again)
    assert abs(np.mean(first != other) - 2 * 0.25 * 0.75) < 0.01
    assert abs(np.mean(first != 0x3F800000) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2**16)


def test_a_thousand_small_steps_arrive():
    def add(rounded):
        def step(w, i):
            return rounded(w.astype(jnp.float32) + 1e-5, jax.random.fold_in(KEY, i)), None

        start = jnp.full(1024, 0.02, jnp.bfloat16)
        return np.asarray(jax.lax.scan(step, start, jnp.arange(1000))[0].astype(jnp.float32))

    stalled = add(lambda w, _: w.astype(jnp.bfloat16))
    assert np.all(stalled == stalled[0]) and stalled[0] == pytest.approx(0.02002, abs=1e-5)
    assert add(low_precision.stochastic_round).mean() == pytest.approx(0.0300, abs=1e-4)


def test_rounded_alike_wherever_it_lies():
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    mesh = mesh_of(dict(data=2, fsdp=2, tensor=2))
    where = NamedSharding(mesh, P("fsdp", ("tensor", "data")))
    shared = jax.jit(
        low_precision.stochastic_round, in_shardings=(where, None), out_shardings=where
    )(x, KEY)
    np.testing.assert_array_equal(bits_of(shared), bits_of(stochastic_round(x, KEY)))


def after(optimizer, params, gradients, steps):
    """The optimizer's state after that many of `gradients(i)`."""

    def step(state, i):
        return optimizer.update(gradients(i), state, params)[1], None

    return jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), jnp.arange(steps))[0])()


def moment(state, name):
    """The moments of a state whose leaves' paths hold `name`, in float32."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    arrays = [x for path, x in leaves if f"/{name}/" in f"/{path_name(path)}"]
    assert arrays
    return [np.asarray(x.astype(jnp.float32)) for x in arrays]


def both(config, params, gradients, steps):
    """The state with float32 and with bfloat16 moments."""
    kinds = [{**config, "moments": kind} for kind in ("float32", "bfloat16")]
    optimizers = [optim.make_optimizer(kind, lambda _: 1e-3, toy_specs(params)) for kind in kinds]
    return [after(optimizer, params, gradients, steps) for optimizer in optimizers]


PARAMS = {"kernel": jnp.zeros((32, 16))}


@pytest.mark.parametrize(("b2", "steps"), [(0.999, 1370), (0.9999, 13700)])
def test_a_second_moment_decays_as_in_float32(b2, steps):
    def gradients(i):  # one, then none
        return {"kernel": jnp.full((32, 16), (i == 0) / np.sqrt(1 - b2), jnp.float32)}

    naive = jnp.ones((), jnp.bfloat16)
    for _ in range(3):
        naive = (jnp.float32(b2) * naive).astype(jnp.bfloat16)
    assert naive == 1, "rounded to the nearest it would stay where it is"
    exact, low = both({**ADAM, "b2": b2}, PARAMS, gradients, steps)
    (theirs,), (ours,) = moment(exact, "nu"), moment(low, "nu")
    assert theirs[0, 0] == pytest.approx(0.254, abs=1e-3)
    assert ours.mean() == pytest.approx(theirs[0, 0], rel=0.015)
    assert np.all(np.abs(ours / theirs - 1) < 0.5)


@pytest.mark.parametrize("b2", [0.98, 0.9999])
def test_moments_follow_float32_through_noise(b2):
    def gradients(i):
        sizes = jnp.logspace(-12, 6, 32)[:, None]  # of rows: rare words beside common ones
        return {"kernel": sizes * jax.random.normal(jax.random.fold_in(KEY, i), (32, 16))}

    exact, low = both({**ADAM, "b2": b2}, PARAMS, gradients, 300)
    (theirs,), (ours,) = moment(exact, "nu"), moment(low, "nu")
    assert np.all(np.abs((ours / theirs).mean(axis=1) - 1) < 0.05), "no row is off"
    assert np.std(ours / theirs) < 0.06
    (theirs,), (ours,) = moment(exact, "mu"), moment(low, "mu")
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert np.all(error < 0.02)


def test_the_first_step_is_float32s():
    params = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    grads = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape), params)
    updates = []
    for config in (ADAM, HALF):
        optimizer = optim.make_optimizer(config, lambda _: 1e-3, toy_specs(params))
        state = optimizer.init(params)
        updates.append(jax.jit(optimizer.update)(grads, state, params)[0])
    jax.tree.map(np.testing.assert_array_equal, *updates)


def test_a_hostile_gradient_spoils_its_own_entry_alone():
    hostile = np.array([np.inf, -np.inf, np.nan, 0, 1e-30, 1e-8, 1e15, -3e38], np.float32)
    spoilt = hostile[:3].size
    noise = np.random.default_rng(0).normal(size=(6, 8, 8)).astype(np.float32)
    params = {"kernel": jnp.ones((8, 8))}
    optimizer = optim.make_optimizer(HALF, lambda _: 1e-3, toy_specs(params))

    def states(first):
        state = optimizer.init(params)
        results = []
        for grad in [first, *noise[1:]]:
            updates, state = jax.jit(optimizer.update)({"kernel": grad}, state, params)
            results.append([np.asarray(x, np.float32) for x in jax.tree.leaves((updates, state))])
        return results

    first = noise[0].copy()
    first[0] = hostile
    for with_it, without in zip(states(first), states(noise[0]), strict=True):
        for a, b in zip(with_it, without, strict=True):
            if a.ndim == 2:
                np.testing.assert_array_equal(a[1:], b[1:])
                assert np.all(np.isfinite(a[0, spoilt:-1]))
        assert not np.any(np.isfinite(with_it[0][0, :spoilt])), "what is spoilt does not hide"


def test_small_entries_beside_large_ones_move_as_far():
    config = {**HALF, "eps": 1e-30, "weight_decay": 0.0}
    grads = {"kernel": jnp.logspace(-15, 15, 31)[None]}
    params = {"kernel": jnp.zeros((1, 31))}
    optimizer = optim.make_optimizer(config, lambda _: 1e-3, toy_specs(params))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(20):
        updates, state = update(grads, state, params)
        np.testing.assert_allclose(updates["kernel"], -1e-3, rtol=0.05)


def test_nothing_moves_where_nothing_pulls():
    zero = {"kernel": jnp.zeros((4, 4))}
    config = {**HALF, "weight_decay": 0.0}
    optimizer = optim.make_optimizer(config, lambda _: 1e-3, toy_specs(zero))
    updates, state = jax.jit(optimizer.update)(zero, optimizer.init(zero), zero)
    assert not jnp.any(updates["kernel"]) and not moment(state, "nu")[0].any()


def test_two_parameters_and_two_steps_have_chances_of_their_own():
    params = {"a": {"kernel": jnp.zeros((64, 64))}, "b": {"kernel": jnp.zeros((64, 64))}}
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 0.1001), params)
    optimizer = optim.make_optimizer({**HALF, "b1": 0.0}, lambda _: 1e-3, toy_specs(params))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    rounded = []
    for _ in range(2):
        state = update(grads, state, params)[1]
        rounded += moment(state, "mu")
    assert len(rounded) == 4
    for i, values in enumerate(rounded):
        assert len(np.unique(values)) == 2
        assert all(np.any(values != other) for other in rounded[:i])


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def params_of(model):
    return variables(abstract_model(find_architecture(model)))[0], specs_of(
        find_architecture(model)
    )


def test_moments_take_half_the_bytes():
    params, specs = params_of("ViT-B/32")
    exact, low = (
        jax.eval_shape(optim.make_optimizer(config, lambda _: 1e-3, specs).init, params)
        for config in (ADAM, HALF)
    )
    assert bytes_of(low) / bytes_of(exact) == pytest.approx(0.5, abs=1e-3)


def halves_of(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path) for path, leaf in leaves if leaf.dtype == jnp.bfloat16}


@pytest.mark.parametrize("name", ["ViT-B/32", "align-base"])
def test_matrices_are_kept_in_16_bits_and_no_gain_bias_or_temperature(name):
    params, specs = params_of(name)
    state = jax.eval_shape(optim.make_optimizer(HALF, lambda _: 1e-3, specs).init, params)
    weights = jax.eval_shape(lambda p: low_precision.text_weights(p, specs, "bfloat16"), params)
    halves = halves_of(weights)
    layers = {"blocks", "rest"}
    matrices = {
        name
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if leaf.ndim - bool(layers & set((name := path_name(path)).split("/"))) > 1
    }
    assert halves == {name for name in matrices if name.startswith("text/")}
    assert {"text/token_embedding/embedding", "text/projection/kernel"} < halves
    for moment in ("mu", "nu"):
        names = {name.partition(f"{moment}/")[2] for name in halves_of(state)}
        assert names - {""} == matrices


def test_muon_keeps_its_momentum_and_adams_in_16_bits():
    config = {**ADAM, "learning_rate": 0.01, "muon_learning_rate": 0.1}
    head = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    params = {"head": head, "embedding": jnp.ones((9, 8))}

    def gradients(i):
        keys = jax.random.fold_in(KEY, i)
        return jax.tree.map(lambda p: jax.random.normal(keys, p.shape) + 1, params)

    exact, low = both(config, params, gradients, 50)
    assert len(moment(low, "mu")) == 3 and len(moment(low, "nu")) == 2
    kinds = [x.dtype == jnp.bfloat16 for x in jax.tree.leaves(low)]
    assert sum(kinds) == 3, "Muon's, and two of the embedding"
    for name in ("mu", "nu"):
        for theirs, ours in zip(moment(exact, name), moment(low, name), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0.1, atol=0.02)


def test_new_parameters_are_as_the_old():
    old = {"text": {"kernel": jnp.ones((64, 64), jnp.bfloat16), "bias": jnp.ones(64)}}
    new = jax.tree.map(lambda p: jnp.full(p.shape, 1.001, jnp.float32), old)
    downcast = low_precision.downcast_like(old, new, jnp.int32(3))
    assert downcast["text"]["bias"] is new["text"]["bias"]
    assert downcast["text"]["kernel"].dtype == jnp.bfloat16
    assert downcast["text"]["kernel"].astype(jnp.float32).mean() == pytest.approx(1.001, abs=1e-3)
    assert np.any(
        downcast["text"]["kernel"]
        != low_precision.downcast_like(old, new, jnp.int32(4))["text"]["kernel"]
    )
    same = low_precision.downcast_like(old, new, jnp.int32(3))
    jax.tree.map(np.testing.assert_array_equal, downcast, same)


def test_the_chain_of_names_is_that_of_the_parameters():
    """Metadata is found by the end of a path: a moment is sharded as its parameter is."""
    params = {"text": {"projection": {"kernel": jnp.ones((8, 8))}}}
    config = {**HALF, "clip_norm": 1.0}
    state = optim.make_optimizer(config, lambda _: 1e-3, toy_specs(params)).init(params)
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert sum(name.endswith("/text/projection/kernel") for name in names) == 2
    assert isinstance(optax.tree.get(state, "mu")["text"]["projection"]["kernel"], jax.Array)


def test_each_device_draws_for_its_own_share():
    """Nothing travels, and no array of a whole parameter is made, that of the chances included."""
    mesh = mesh_of(dict(fsdp=4))
    params = {"mlp": {"fc": {"kernel": jnp.ones((32, 96))}}}
    specs = toy_specs(params)
    optimizer = optim.make_optimizer(HALF, lambda _: 1e-3, specs)
    param_shardings = sharding.shardings(params, specs, mesh)
    placed = jax.device_put(params, param_shardings)
    state = optimizer.init(params)
    where = sharding.shardings(state, specs, mesh)
    program = jax.jit(optimizer.update, out_shardings=(param_shardings, where))
    lowered = program.lower(placed, jax.device_put(state, where), placed)
    text = lowered.compile().as_text()
    assert "u32[8,96]" in text and "[32,96]" not in text
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)
    shared = program(placed, jax.device_put(state, where), placed)
    alone = jax.jit(optimizer.update)(params, state, params)
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(x) for x in (shared, alone)))
