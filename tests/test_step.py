"""The step: the same on any mesh, and what it does to each parameter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clip_jax import optim, step
from clip_jax.models.clip import abstract_model
from clip_jax.objectives import Contrastive
from clip_jax.rows import global_batch
from steps import ADAM, TINY, assert_same_gradients, batch, mesh_of, run

MESHES = [
    dict(data=1),
    dict(data=2),
    dict(data=4),
    dict(data=8),
    dict(data=1, fsdp=4),
    dict(data=2, fsdp=2, tensor=2),
]


@pytest.fixture(scope="module")
def single():
    return run(MESHES[0])


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_loss_and_gradients_are_those_of_one_device(shape, single):
    before, gradients, metrics = run(shape)
    jax.tree.map(np.testing.assert_array_equal, before, single[0])
    assert metrics[0]["loss"] == pytest.approx(single[2][0]["loss"], rel=1e-6)
    assert len(gradients) == len(jax.tree.leaves(before))
    assert all(np.linalg.norm(theirs) > 0 for theirs in single[1])
    assert_same_gradients(gradients, single[1])


def test_the_first_loss_is_the_definition_of_the_global_batch(single):
    model = nnx.merge(nnx.graphdef(abstract_model(TINY, "float32", "none")), single[0])
    rows = batch()
    image, text, scale, _ = model(rows["image"], rows["tokens"])
    logits = np.asarray(scale * image @ text.T, np.float64)
    log_rows = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    log_columns = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    assert single[2][0]["loss"] == pytest.approx((log_rows + log_columns).mean() / 2, abs=1e-5)


def test_adam_learns_the_batch_and_the_scale_stays_below_100():
    optimizer = optim.make_optimizer(ADAM, optim.learning_rate(3e-3, 2, 40))
    mesh = mesh_of(dict(data=2))
    state = step.init_state(TINY, optimizer, 0, mesh)
    graph = nnx.graphdef(abstract_model(TINY, "float32", "none"))
    train_step = step.compile_step(
        step.make_train_step(graph, Contrastive("dense"), optimizer, 0), state, mesh
    )
    rows = global_batch(batch(), mesh)
    losses = []
    for _ in range(40):
        state, out = train_step(state, rows)
        losses.append(float(out["loss"]))
    assert losses[-1] < 0.2 * losses[0]
    assert int(state.step) == 40


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


def test_patch_dropout_depends_on_seed_and_step_only():
    vision = dataclasses.replace(TINY.vision, patch_dropout=0.5)
    config = dataclasses.replace(TINY, vision=vision)
    first, again = run(MESHES[0], config=config)[2], run(MESHES[2], config=config)[2]
    assert first[0]["loss"] == pytest.approx(again[0]["loss"], rel=1e-6)
    plain = run(MESHES[0])[2]
    assert abs(first[0]["loss"] - plain[0]["loss"]) > 1e-4
    same_rows = [run(MESHES[0], config=config, seed=seed)[2][0]["loss"] for seed in (0, 0, 1)]
    assert same_rows[0] == same_rows[1] == first[0]["loss"] != same_rows[2]


def test_the_abstract_state_is_the_real_one():
    mesh = mesh_of(dict(data=2, fsdp=2, tensor=2))
    optimizer = optim.make_optimizer(ADAM, optim.learning_rate(1e-3, 1, 2))
    like = step.abstract_state(TINY, optimizer, mesh)
    real = step.init_state(TINY, optimizer, 0, mesh)

    def same(a, b):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)

    jax.tree.map(same, like, real)
    moments = jax.tree.leaves(real.opt_state)
    split = [m for m in moments if m.ndim == 3 and not m.sharding.is_fully_replicated]
    assert split, "the moments lie where their parameters lie"
