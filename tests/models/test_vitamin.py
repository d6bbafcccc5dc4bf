"""ViTamin: its published sizes, positions, training, rematerialisation, half precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import steps
from clip_jax.errors import UserError
from clip_jax.models import flop_counts
from clip_jax.models.architectures import TOWERS
from clip_jax.models.clip import CLIP, abstract_model, parameter_count, variables
from clip_jax.models.convolution import centred_pool
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.models.vitamin_configs import ViTaminConfig

TEXT = TextConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2)
VISION = ViTaminConfig(32, 16, 2, 2, stem=4, stem_layers=(1, 2))
CONFIG = CLIPConfig(12, "gelu", vision=VISION, text=TEXT)


def images(size: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8))


def changed(**values: Any) -> CLIPConfig:
    return dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, **values))


# Millions of parameters and billions of multiplications of the image towers, as published, where
# the products of queries, keys and values do not count.
@pytest.mark.parametrize(
    ("name", "embed_dim", "millions", "billions"),
    [
        ("vitamin_small_224", 384, 22.0, 5.50),
        ("vitamin_base_224", 512, 87.5, 21.8),
        ("vitamin_large_224", 768, 333.3, 72.6),
        ("vitamin_large_256", 768, 333.4, 94.8),
        ("vitamin_large_336", 768, 333.6, 163.4),
        ("vitamin_xlarge_256", 1152, 436.1, 125.3),
    ],
)
def test_sizes_are_the_papers(name, embed_dim, millions, billions):
    vision: Any = dataclasses.replace(TOWERS[name], projection="linear")  # type: ignore[type-var]
    model = abstract_model(CLIPConfig(embed_dim, vision=vision, text=TEXT))
    assert parameter_count(model.vision) / 1e6 == pytest.approx(millions, abs=0.06)
    attention = vision.layers * flop_counts.attention(vision.tokens, vision.tokens, vision.width)
    assert (vision.flops(embed_dim) - attention) / 2e9 == pytest.approx(billions, rel=0.005)


def test_positions_are_resized_and_a_tower_without_them_takes_any_size():
    params, _ = variables(CLIP(CONFIG, rngs=nnx.Rngs(0)))
    resized = VISION.resize_positions(params["vision"], 64)
    assert resized["positional_embedding"].shape == (16, 16)
    without = changed(positions=False).vision
    assert without.resize_positions(params["vision"], 64) is params["vision"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(image_size=40), "image_size=40 is no multiple of 16"),
        (dict(heads=3), "heads=3 does not divide"),
        (dict(stem=0), "stem=0"),
        (dict(stem_layers=(1,)), "depths of two stages"),
        (dict(stem_layers=(1, 0)), "stem_layers=0"),
        (dict(projection="none"), "embed_dim=12 must be the 16 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        changed(**change)


def test_a_pool_does_not_count_what_is_outside_the_image():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    pooled = centred_pool(x)[0, :, :, 0]
    np.testing.assert_allclose(pooled, [[2.5, 4], [8.5, 10]])


@pytest.mark.slow
def test_it_learns_fixed_pairs():
    losses = steps.losses_of_fixed_pairs(CONFIG)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (dict(data=2, fsdp=2, tensor=2), {}),
        (dict(data=1), dict(remat="dots")),
        (dict(fsdp=2), dict(remat="full", chunks=(1, 0))),
    ],
    ids=str,
)
def test_sharding_rematerialisation_and_chunks_change_no_gradient(mesh, options):
    _, expected, _ = steps.alone(CONFIG)
    _, gradients, _ = steps.run(mesh, config=CONFIG, **options)
    steps.assert_same_gradients(gradients, expected)


def test_a_bfloat16_tower_is_near_the_fp32_one():
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    half = nnx.merge(nnx.graphdef(abstract_model(CONFIG, "bfloat16")), *variables(model))
    a, b = (m.encode_image(images(), normalized=True) for m in (model, half))
    assert float(jnp.sum(a * b, axis=-1).min()) > 0.999


def test_the_grid_is_the_tokens_beside_the_features_of_a_call():
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    features, grid = model.encode_grid(images())
    assert grid.shape == (3, *VISION.grid_shape())
    np.testing.assert_allclose(features, model.encode_image(images(), normalized=False), atol=1e-5)
    last = model.encode_image(images(), normalized=False, output="layer:2")
    np.testing.assert_allclose(model.vision.ln_post(last), grid, atol=1e-5)
