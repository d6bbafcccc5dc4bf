"""The modified ResNet: batch statistics, sharding, rematerialisation, its start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clip_jax.distributed import sharding
from clip_jax.distributed.global_batch import global_batch
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.convolution import BatchNorm, average_pool
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
)
from clip_jax.models.resnet import Bottleneck
from clip_jax.training import train_step as step

TEXT = TextConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2)
RESNET = CLIPConfig(
    12, vision=ResNetConfig(image_size=32, width=4, layers=(2, 1, 1, 2), heads=2), text=TEXT
)
EFFICIENTNET = CLIPConfig(
    8,
    "gelu",
    temperature=1.0,
    log_scale=False,
    max_logit_scale=0.0,
    vision=EfficientNetConfig(
        image_size=24,
        width=0.5,
        depth=1.0,
        divisor=4,
        stages=((3, 1, 1, 32, 16, 1), (5, 2, 4, 16, 16, 2)),
    ),
    text=BertConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2, positions=8),
)
MODELS = {"resnet": RESNET, "efficientnet": EFFICIENTNET}


def batch(config: CLIPConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size = config.vision.image_size
    tokens = rng.integers(1, 49, (16, 8)).astype(np.int32)
    tokens[:, 6], tokens[:, 7] = 49, 0
    return {"image": rng.integers(0, 256, (16, size, size, 3), np.uint8), "tokens": tokens}


def one_step(config: CLIPConfig, mesh_shape: dict[str, int], remat: str = "none"):
    """Variables before, and the state and metrics after a step."""
    devices = jax.devices()[: int(np.prod(list(mesh_shape.values())))]
    mesh = sharding.make_mesh(mesh_shape, devices)
    optimizer = optax.sgd(0.1)
    state = step.init_state(config, optimizer, 0, mesh)
    before = jax.tree.map(np.asarray, state.variables)
    graph = nnx.graphdef(abstract_model(config, "float32", remat))
    train_step = step.compile_step(
        step.make_train_step(graph, Contrastive("dense"), optimizer, 0, config.max_logit_scale),
        state,
        mesh,
    )
    state, metrics = train_step(state, global_batch(batch(config), mesh))
    return before, jax.tree.map(np.asarray, state), jax.tree.map(float, metrics)


@pytest.fixture(scope="module", params=MODELS)
def trained(request):
    config = MODELS[request.param]
    return config, *one_step(config, {"data": 1})


def same(one, other, tolerance=1e-5):
    """Equal to a share of each array's largest value."""

    def check(path, a, b):
        scale = max(1e-3, float(np.abs(b).max()) if b.size else 1)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(check, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(data=2, fsdp=2, tensor=2), dict(data=1, tensor=2)], ids=str)
def test_statistics_are_the_global_batchs_on_any_mesh(trained, mesh):
    config, _, single, metrics = trained
    _, sharded, other = one_step(config, mesh)
    assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert other["gradient_norm"] == pytest.approx(metrics["gradient_norm"], rel=1e-4)
    same(sharded.stats, single.stats, 1e-5)
    same(sharded.params, single.params, 1e-4)


@pytest.mark.slow
def test_rematerialisation_changes_no_number_and_counts_once(trained):
    config, _, plain, metrics = trained
    remat = "dots" if config is RESNET else "full"
    _, state, other = one_step(config, {"data": 1}, remat)
    assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    same(state.params, plain.params, 1e-5)
    same(state.stats, plain.stats, 1e-6)
    batches = {int(n) for n in jax.tree.leaves(state.stats) if n.dtype == np.int32 for n in n.flat}
    assert batches == {1}


def test_running_statistics_move_by_the_momentum(trained):
    config, before, after, _ = trained
    stem = "bn_stem" if config is EFFICIENTNET else None
    old, new = before[1]["vision"], after.stats["vision"]
    old, new = (s[stem] if stem else s["stem"]["bn1"] for s in (old, new))
    assert not np.allclose(new["mean"], 0) and not np.allclose(new["var"], 1)
    momentum = config.vision.momentum
    assert np.all(np.abs(new["var"]) >= (1 - momentum) * old["var"] - 1e-6)


@pytest.mark.slow
def test_evaluation_uses_the_running_statistics_and_changes_nothing():
    model = CLIP(RESNET, rngs=nnx.Rngs(0))
    image = batch(RESNET)["image"]
    before = jax.tree.map(np.asarray, variables(model)[1])
    alone, together = model.encode_image(image[:1]), model.encode_image(image)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, variables(model)[1])
    training = model.encode_image(image, key=jax.random.key(0))
    assert not np.allclose(training, together, atol=1e-3)
    assert not np.allclose(variables(model)[1]["vision"]["stem"]["bn1"]["mean"], 0)


def test_a_batch_norm_is_its_definition():
    norm = BatchNorm(3, eps=1e-3, momentum=0.25, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3)) * 3 + 1
    y = norm(x, True)
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-3)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 3), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.25 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.75 + 0.25 * flat.var(0, ddof=1), rtol=1e-5)
    assert int(norm.batches[...]) == 1
    again = norm(x, False)
    by_hand = (flat - norm.mean[...]) / np.sqrt(np.asarray(norm.var[...]) + 1e-3)
    np.testing.assert_allclose(np.asarray(again).reshape(-1, 3), by_hand, rtol=1e-4, atol=1e-5)


def test_the_statistics_of_half_precision_inputs_are_more_exact_than_they():
    norm = BatchNorm(3, eps=1e-5, momentum=1.0, rngs=nnx.Rngs(0))
    x = 8 + jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    x = x.at[..., 2].set(1 / 3).astype(jnp.bfloat16)
    norm(x, True)
    flat = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(norm.mean[...], flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], flat.var(0, ddof=1), rtol=1e-3, atol=1e-6)
    assert float(norm.var[...].min()) >= 0


def test_half_precision_inputs_are_normalised_in_full():
    norm = BatchNorm(2, eps=1e-5, momentum=0.1, rngs=nnx.Rngs(0))
    x = (1000 + jax.random.normal(jax.random.key(0), (8, 4, 4, 2))).astype(jnp.bfloat16)
    y = norm(x, True)
    assert y.dtype == jnp.bfloat16 and norm.mean[...].dtype == jnp.float32
    assert bool(jnp.isfinite(y.astype(jnp.float32)).all())


def test_a_fresh_bottleneck_is_its_shortcut():
    block = Bottleneck(16, 4, 1, RESNET.vision, dtype="float32", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 16))
    np.testing.assert_array_equal(block(x, True), jax.nn.relu(x))


def test_a_pool_leaves_out_incomplete_squares():
    x = jnp.arange(25.0).reshape(1, 5, 5, 1)
    pooled = average_pool(x, 2)
    assert pooled.shape == (1, 2, 2, 1)
    assert pooled[0, 0, 0, 0] == np.mean([0, 1, 5, 6])


def test_a_bfloat16_tower_is_near_the_fp32_one():
    images = batch(RESNET)["image"]
    graph = nnx.graphdef(abstract_model(RESNET, "bfloat16"))
    model = CLIP(RESNET, rngs=nnx.Rngs(0))
    half = nnx.merge(graph, *variables(model))
    a, b = (m.encode_image(images, normalized=True) for m in (model, half))
    assert float(jnp.sum(a * b, axis=-1).min()) > 0.99
