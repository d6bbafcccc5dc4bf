"""The step: the same on any mesh, and what it does to each parameter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clip_jax import optim, partition, step
from clip_jax.models.clip import abstract_model
from clip_jax.models.zoo import CLIPConfig, TextConfig, VisionConfig
from clip_jax.objectives import contrastive

TINY = CLIPConfig(
    16,
    vision=VisionConfig(image_size=16, patch_size=4, width=32, layers=2, heads=4),
    text=TextConfig(vocab_size=56, context_length=8, width=32, layers=2, heads=4),
)
ADAM = dict(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, clip_norm=0.0)
MESHES = [
    dict(data=1),
    dict(data=2),
    dict(data=4),
    dict(data=8),
    dict(data=1, fsdp=4),
    dict(data=2, fsdp=2, tensor=2),
]


def batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 55, (n, 8), np.int32)
    tokens[:, -1] = 55
    return {"image": rng.integers(0, 256, (n, 16, 16, 3), np.uint8), "tokens": tokens}


def mesh_of(shape):
    return partition.make_mesh(shape, jax.devices()[: math.prod(shape.values())])


def run(shape, *, steps=1, optimizer=None, config=TINY, seed=0):
    """Parameters before, gradients (with the default optimizer) and metrics of each step."""
    mesh = mesh_of(shape)
    # keeps the gradient as its state and changes nothing
    optimizer = optimizer or optax.chain(optax.trace(decay=0.0), optax.scale(0.0))
    state = step.init_state(config, optimizer, seed, mesh)
    before = jax.tree.map(np.asarray, state.params)
    graph = nnx.graphdef(abstract_model(config, "float32", "none"))
    train_step = step.compile_step(
        step.make_train_step(graph, contrastive, optimizer, seed), state, mesh
    )
    metrics = []
    for i in range(steps):
        state, out = train_step(state, partition.global_batch(batch(seed=i), mesh))
        metrics.append({k: float(v) for k, v in out.items()})
    return before, jax.tree.map(np.asarray, jax.tree.leaves(state.opt_state)), metrics


@pytest.fixture(scope="module")
def single():
    return run(MESHES[0])


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_loss_and_gradients_are_those_of_one_device(shape, single):
    before, gradients, metrics = run(shape)
    jax.tree.map(np.testing.assert_array_equal, before, single[0])
    assert metrics[0]["loss"] == pytest.approx(single[2][0]["loss"], rel=1e-6)
    assert len(gradients) == len(jax.tree.leaves(before))
    pairs = list(zip(gradients, single[1], strict=True))
    assert all(np.linalg.norm(theirs) > 0 for _, theirs in pairs)
    size = np.sqrt(sum(np.sum(theirs**2) for _, theirs in pairs))
    error = np.sqrt(sum(np.sum((ours - theirs) ** 2) for ours, theirs in pairs))
    assert error <= 1e-6 * size
    for ours, theirs in pairs:  # one array may be an ill-conditioned sum: a wrong one is far off
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


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
        step.make_train_step(graph, contrastive, optimizer, 0), state, mesh
    )
    rows = partition.global_batch(batch(), mesh)
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
        step.make_train_step(graph, contrastive, optimizer, 0), state, mesh
    )
    kernel = state.params["vision"]["projection"]["kernel"]
    train_step(state, partition.global_batch(batch(), mesh))
    assert kernel.is_deleted()


def test_patch_dropout_depends_on_seed_and_step_only():
    vision = dataclasses.replace(TINY.vision, patch_dropout=0.5)
    config = dataclasses.replace(TINY, vision=vision)
    first, again = run(MESHES[0], config=config)[2], run(MESHES[2], config=config)[2]
    assert first[0]["loss"] == pytest.approx(again[0]["loss"], abs=1e-6)
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
