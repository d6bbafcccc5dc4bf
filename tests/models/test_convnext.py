"""ConvNeXt: its published sizes, any image size, training, rematerialisation, half precision."""

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
from clip_jax.models.architectures import TOWERS
from clip_jax.models.clip import CLIP, abstract_model, parameter_count, variables
from clip_jax.models.convnext_configs import ConvNeXtConfig
from clip_jax.models.convolution import Convolution
from clip_jax.models.initializers import normal
from clip_jax.models.model_config import CLIPConfig, TextConfig

TEXT = TextConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2)
VISION = ConvNeXtConfig(image_size=32, width=8, layers=(1, 2, 1, 1))
CONFIG = CLIPConfig(12, "gelu", vision=VISION, text=TEXT)


def images(size: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8))


# Millions of parameters with a classifier of 1,000 classes, and billions of multiplications of an
# image of 224 pixels: tables 9 and 12 of the paper.
@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    [
        ("convnext_tiny", 29, 4.5),
        ("convnext_small", 50, 8.7),
        ("convnext_base", 89, 15.4),
        ("convnext_large", 198, 34.4),
        ("convnext_xlarge", 350, 60.9),
    ],
)
def test_sizes_are_the_papers(name, millions, billions):
    vision = dataclasses.replace(TOWERS[name], projection="linear", projection_bias=True)
    model = abstract_model(CLIPConfig(1000, vision=vision, text=TEXT))
    assert round(parameter_count(model.vision) / 1e6) == millions
    assert vision.flops(1000) / 2e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize("size", [32, 52, 64])
def test_the_same_parameters_serve_any_image_size(size):
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    larger = dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, image_size=size))
    assert larger.vision.any_size
    params, stats = variables(model)
    assert VISION.resize_positions(params["vision"], size) is params["vision"]
    model = nnx.merge(nnx.graphdef(abstract_model(larger)), params, stats)
    features, grid = model.encode_grid(images(size))
    assert grid.shape == (3, *larger.vision.grid_shape())
    alone = model.encode_image(images(size), normalized=False)
    np.testing.assert_allclose(features, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(image_size=31), "image_size=31 is below the 32"),
        (dict(layers=(1, 1, 1)), "four stages"),
        (dict(layers=(1, 0, 1, 1)), "layers=0"),
        (dict(projection="cubic"), "projection='cubic'"),
        (dict(projection="none"), "embed_dim=12 must be the 64 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, **change))


@pytest.mark.slow
def test_it_learns_fixed_pairs():
    losses = steps.losses_of_fixed_pairs(CONFIG)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "remat"),
    [(dict(data=2, fsdp=2, tensor=2), "none"), (dict(data=1), "dots"), (dict(fsdp=2), "full")],
    ids=str,
)
def test_sharding_and_rematerialisation_change_no_gradient(mesh, remat):
    _, expected, _ = steps.alone(CONFIG)
    _, gradients, _ = steps.run(mesh, config=CONFIG, remat=remat)
    steps.assert_same_gradients(gradients, expected)


def test_a_bfloat16_tower_is_near_the_fp32_one():
    graph = nnx.graphdef(abstract_model(CONFIG, "bfloat16"))
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    half = nnx.merge(graph, *variables(model))
    a, b = (m.encode_image(images(), normalized=True) for m in (model, half))
    assert float(jnp.sum(a * b, axis=-1).min()) > 0.999


def test_a_convolution_adds_its_bias():
    options: Any = dict(kernel_init=normal(1.0), dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    for groups in (1, 4):
        plain = Convolution(4, 4, 3, groups=groups, **options, rngs=nnx.Rngs(0))
        biased = Convolution(
            4, 4, 3, groups=groups, bias_init=normal(1.0), **options, rngs=nnx.Rngs(0)
        )
        np.testing.assert_allclose(biased(x), plain(x) + biased.bias[...], atol=1e-6)
