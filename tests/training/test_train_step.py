"""The step: the same on any mesh, and what it does to each parameter."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clip_jax import optim
from clip_jax.distributed.global_batch import global_batch
from clip_jax.inference.model_source import open_run
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.clip import abstract_model, specs_of
from clip_jax.optim import low_precision
from clip_jax.training import checkpointing
from clip_jax.training import train_step as step
from steps import (
    ADAM,
    GRADIENTS,
    TINY,
    alone,
    assert_same_gradients,
    batch,
    fresh,
    mesh_of,
    run,
)

SPECS = specs_of(TINY)

MESHES = [
    dict(data=1),
    dict(data=2),
    dict(data=4),
    dict(data=8),
    dict(data=1, fsdp=4),
    dict(data=2, fsdp=2, tensor=2),
]


@pytest.mark.parametrize("shape", [MESHES[0], MESHES[-1]], ids=str)
def test_a_fresh_state_is_the_same_on_any_mesh(shape):
    state = step.init_state(TINY, GRADIENTS, 0, mesh_of(shape))
    assert jax.tree.structure(state.params) == jax.tree.structure(fresh(TINY)[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh(TINY)[0])


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_loss_and_gradients_are_those_of_one_device(shape):
    before, gradients, metrics = run(shape)
    _, expected_gradients, expected = alone()
    assert metrics[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6)
    assert len(gradients) == len(jax.tree.leaves(before))
    assert all(np.linalg.norm(theirs) > 0 for theirs in expected_gradients)
    assert_same_gradients(gradients, expected_gradients)


def test_the_first_loss_is_the_definition_of_the_global_batch():
    before, _, metrics = alone()
    model = nnx.merge(nnx.graphdef(abstract_model(TINY, "float32", "none")), before)
    rows = batch()
    image, text, scale, _ = model(rows["image"], rows["tokens"])
    logits = np.asarray(scale * image @ text.T, np.float64)
    log_rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    log_columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    assert metrics[0]["loss"] == pytest.approx((log_rows + log_columns).mean() / 2, abs=1e-5)


def training(shape, text_weights="float32", **options):
    """A state of AdamW with these options, its shapes, and the step compiled for them."""
    optimizer = optim.make_optimizer({**ADAM, **options}, optim.learning_rate(3e-3, 2, 40), SPECS)
    mesh, stored = mesh_of(shape), step.StateOptions(text_weights=text_weights)
    like = step.abstract_state(TINY, optimizer, mesh, stored)
    graph = nnx.graphdef(abstract_model(TINY, "float32", "none"))
    train_step = step.make_train_step(graph, Contrastive("dense"), optimizer, 0)
    rows = jax.eval_shape(batch)
    compiled = step.compile_step(train_step, like, mesh).lower(like, rows).compile()
    return step.init_state(TINY, optimizer, 0, mesh, stored), like, compiled


def trained(state, train_step, shape, steps):
    """The state after that many more steps, and their losses."""
    rows = global_batch(batch(), mesh_of(shape))
    losses = []
    for _ in range(steps):
        state, out = train_step(state, rows)
        losses.append(float(out["loss"]))
    return state, losses


TWO, EIGHT = dict(data=2), dict(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def losses():
    """Those of 40 steps with everything in float32."""
    state, _, train_step = training(TWO)
    state, losses = trained(state, train_step, TWO, 40)
    assert int(state.step) == 40
    return losses


def test_adam_learns_the_batch_and_the_scale_stays_below_100(losses):
    assert losses[-1] < 0.2 * losses[0]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """40 steps with moments and text weights in 16 bits; its checkpoints of steps 3 and 40."""
    workdir = tmp_path_factory.mktemp("halves")
    state, like, train_step = training(TWO, "bfloat16", moments="bfloat16")
    checkpoints = checkpointing.Checkpoints(workdir, keep=2)
    state, first = trained(state, train_step, TWO, 3)
    checkpoints.save(3, state, {}, {}, force=True)
    state, rest = trained(state, train_step, TWO, 37)
    checkpoints.save(40, state, {}, {}, force=True)
    checkpoints.close()
    return workdir, like, train_step, state, [*first, *rest]


@pytest.mark.slow
def test_in_16_bits_it_learns_as_in_32(halves, losses):
    ours, theirs = np.asarray(halves[-1]), np.asarray(losses)
    assert np.max(np.abs(ours - theirs)) < 0.02 * theirs[0]
    assert ours[0] == pytest.approx(theirs[0], rel=5e-3), "the text weights were rounded once"


def numbers(tree):
    return [np.asarray(leaf).astype(np.float32) for leaf in jax.tree.leaves(tree)]


def test_resumed_in_16_bits_it_goes_on_to_the_bit(halves):
    workdir, like, train_step, state, _ = halves
    checkpoints = checkpointing.Checkpoints(workdir)
    resumed, _ = checkpoints.restore(3, like)
    checkpoints.close()
    assert jax.tree.map(lambda x: x.dtype, resumed) == jax.tree.map(lambda x: x.dtype, like)
    resumed, _ = trained(resumed, train_step, TWO, 37)
    for ours, theirs in zip(numbers(resumed), numbers(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_in_16_bits_is_read_in_32(halves):
    workdir, _, _, state, _ = halves
    config = {"model": TINY.to_dict(), "dtype": "float32", "tokenizer": "clip"}
    (workdir / checkpointing.CONFIG).write_text(json.dumps(config))
    source = open_run(workdir)
    params, _ = source.read("float32")
    assert source.config == TINY
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    for ours, theirs in zip(numbers(params), numbers(state.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_chance_is_the_same_on_any_mesh(halves):
    """What a sum in another order changes may change a rounding, but of a few numbers only."""
    workdir = halves[0]
    state, like, train_step = training(EIGHT, "bfloat16", moments="bfloat16")
    state, _ = trained(state, train_step, EIGHT, 3)
    checkpoints = checkpointing.Checkpoints(workdir)
    other, _ = checkpoints.restore(3, like)
    checkpoints.close()
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    pairs = [
        (np.asarray(ours, np.float32), np.asarray(theirs, np.float32))
        for ours, theirs in leaves
        if ours.dtype == jnp.bfloat16
    ]
    assert len(pairs) == 7 + 2 * 14
    same = [np.mean(ours == theirs) for ours, theirs in pairs]
    assert min(same) > 0.97 and np.mean(same) > 0.99, same


def test_a_state_around_given_weights_keeps_them_as_it_shall():
    optimizer, mesh = optim.make_optimizer(ADAM, lambda _: 1e-3, SPECS), mesh_of(EIGHT)
    weights = alone()[0], {}
    like = step.abstract_state(TINY, optimizer, mesh, step.StateOptions(text_weights="bfloat16"))
    state = step.state_of(
        TINY, weights, optimizer, mesh, step.StateOptions(text_weights="bfloat16")
    )
    jax.tree.map(same_place, like, state)
    for ours, theirs in zip(numbers(state.params), numbers(weights[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2**-8)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)} == {
        np.dtype("float32"), np.dtype("int32")
    }  # fmt: skip


def test_text_weights_in_16_bits_have_the_gradients_of_those_in_32():
    graph = nnx.graphdef(abstract_model(TINY, "bfloat16", "none"))
    low = low_precision.text_weights(jax.tree.map(jnp.asarray, alone()[0]), SPECS, "bfloat16")
    computed, _ = step._with_gradient_dtypes(graph, (low, {}))
    tokens = jnp.asarray(batch()["tokens"])
    towards = np.random.default_rng(0).normal(size=(16, 16))

    def loss(params):
        return jnp.vdot(nnx.merge(graph, params, {}).text(tokens), towards)

    ours, theirs = jax.jit(lambda *p: [jax.grad(loss)(q)["text"] for q in p])(
        computed, low_precision.upcast(low)
    )
    assert ours["projection"]["kernel"].dtype == jnp.bfloat16, "half the memory"
    for a, b in zip(numbers(ours), numbers(theirs), strict=True):
        assert np.any(b)
        # where both are rounded to bfloat16, XLA may leave out a rounding of the second
        np.testing.assert_allclose(a, b, rtol=2**-8)


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_text_weights_are_widened_where_the_model_computes_in_32_bits(dtype):
    graph = nnx.graphdef(abstract_model(TINY, dtype, "none"))
    low = low_precision.text_weights(jax.tree.map(jnp.asarray, alone()[0]), SPECS, "bfloat16")
    computed, _ = step._with_gradient_dtypes(graph, (low, {}))
    assert {leaf.dtype for leaf in jax.tree.leaves(computed)} == {np.dtype("float32")}


@pytest.mark.parametrize(("start", "end"), [(20.0, math.log(100)), (-5.0, 0.0)])
def test_the_scale_is_clamped_after_the_update(start, end):
    clamped = step.clamp_logit_scale(
        {"logit_scale": jnp.asarray(start), "other": jnp.ones(2)}, 100.0
    )
    assert float(clamped["logit_scale"]) == pytest.approx(end)
    assert clamped["other"].tolist() == [1, 1]


def test_the_state_is_donated():
    mesh = mesh_of(dict(data=1))
    optimizer = optax.sgd(0.1)
    state = step.init_state(TINY, optimizer, 0, mesh)
    graph = nnx.graphdef(abstract_model(TINY, "float32", "none"))
    train_step = step.compile_step(
        step.make_train_step(graph, Contrastive("dense"), optimizer, 0), state, mesh
    )
    kernel = state.params["vision"]["projection"]["kernel"]
    train_step(state, global_batch(batch(), mesh))
    assert kernel.is_deleted()


@pytest.mark.slow
def test_patch_dropout_depends_on_seed_and_step_only():
    vision = dataclasses.replace(TINY.vision, patch_dropout=0.5)
    config = dataclasses.replace(TINY, vision=vision)
    first, again = run(MESHES[0], config=config)[2], run(MESHES[2], config=config)[2]
    assert first[0]["loss"] == pytest.approx(again[0]["loss"], rel=1e-6)
    assert abs(first[0]["loss"] - alone()[2][0]["loss"]) > 1e-4
    same, other = (run(MESHES[0], config=config, seed=seed)[2][0]["loss"] for seed in (0, 1))
    assert same == first[0]["loss"] != other


def same_place(a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_the_abstract_state_is_the_real_one():
    mesh = mesh_of(dict(data=2, fsdp=2, tensor=2))
    optimizer = optim.make_optimizer(ADAM, optim.learning_rate(1e-3, 1, 2), SPECS)
    like = step.abstract_state(TINY, optimizer, mesh)
    real = step.init_state(TINY, optimizer, 0, mesh)

    jax.tree.map(same_place, like, real)
    moments = jax.tree.leaves(real.opt_state)
    split = [m for m in moments if m.ndim == 3 and not m.sharding.is_fully_replicated]
    assert split, "the moments lie where their parameters lie"
