"""MobileCLIP-B's image tower: FLOPs, positions, precision, meshes, what cannot be."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprs
import steps
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.mci_vit_configs import MCiViTConfig
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.weights import positions

TEXT = TextConfig(vocab_size=56, context_length=8, width=16, layers=1, heads=2)
VISION = MCiViTConfig(image_size=48, width=16, layers=2, heads=2)
CONFIG = CLIPConfig(12, vision=VISION, text=TEXT)


def images(size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def test_the_formula_counts_what_the_program_multiplies():
    graph, state = nnx.split(abstract_model(CONFIG).vision)
    image = jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state).features_and_grid(x))(
        state, image
    )
    assert jaxprs.count(traced).flops == VISION.flops(12)


def test_the_class_token_has_no_position():
    model = CLIP(CONFIG, rngs=nnx.Rngs(0)).vision
    tokens = model._tokens(jnp.zeros((2, 48, 48, 3)), train=False)
    assert tokens.shape == (2, VISION.tokens, 16)
    np.testing.assert_array_equal(tokens[0, 0], model.class_embedding[...])


def test_another_size_stretches_the_positions():
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    params, stats = variables(model)
    params_after, config = positions.resize_model(params, CONFIG, image_size=80)
    larger = nnx.merge(nnx.graphdef(abstract_model(config)), params_after, stats)
    features, grid = larger.encode_grid(images(80))
    assert grid.shape == (3, 25, 16)
    np.testing.assert_allclose(
        features, larger.encode_image(images(80), normalized=False), atol=1e-5
    )


def test_training_uses_the_statistics_of_the_batch():
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    before = np.asarray(model.vision.stem.bn1.mean[...])
    rested = model.encode_image(images())
    trained = model.encode_image(images(), key=jax.random.key(0))
    assert not np.allclose(rested, trained)
    assert not np.allclose(model.vision.stem.bn1.mean[...], before)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed"])
def test_half_precision_is_close(dtype):
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    half = nnx.merge(nnx.graphdef(abstract_model(CONFIG, dtype)), *variables(model))
    exact = model.encode_image(images())
    np.testing.assert_allclose(
        half.encode_image(images()), exact, atol=0.03 * float(jnp.abs(exact).max())
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "remat"),
    [(dict(data=2, fsdp=2, tensor=2), "none"), (dict(data=1), "dots"), (dict(data=1), "full")],
    ids=str,
)
def test_gradients_are_the_same_on_any_mesh_and_rematerialised(mesh, remat):
    _, gradients, _ = steps.run(mesh, config=CONFIG, remat=remat)
    _, alone, _ = steps.alone(CONFIG)
    size = np.sqrt(sum(np.sum(b**2) for b in alone))
    for a, b in zip(gradients, alone, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(image_size=40), "no multiple of 16"),
        (dict(width=18), "no multiple of 4"),
        (dict(heads=3), "heads=3 does not divide"),
        (dict(projection="none"), "embed_dim=12 must be the 16 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        CLIPConfig(12, vision=dataclasses.replace(VISION, **change), text=TEXT)
