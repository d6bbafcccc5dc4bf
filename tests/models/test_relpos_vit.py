"""The vision Transformer with relative positions: its logits, FLOPs, sizes, precision, meshes."""

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
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.models.relpos_vit import distances
from clip_jax.models.relpos_vit_configs import RelPosViTConfig
from clip_jax.weights import positions

TEXT = TextConfig(vocab_size=56, context_length=8, width=16, layers=1, heads=2)
VISION = RelPosViTConfig(
    image_size=16, patch_size=4, width=16, layers=2, heads=2, position_width=6, layer_scale=0.1
)
CONFIG = CLIPConfig(12, vision=VISION, text=TEXT)


def images(size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def test_distances_are_signed_logarithms_of_rows_and_columns():
    table, pairs = distances(3)
    assert table.shape == (25, 2) and pairs.shape == (9, 9)
    np.testing.assert_allclose(table[pairs[4, 4]], [0, 0])
    np.testing.assert_allclose(table[pairs[0, 8]], [-np.log(3), -np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(table[pairs[5, 3]], [0, np.log(3)], rtol=1e-6)
    np.testing.assert_array_equal(table[pairs], -table[pairs.T])


def test_what_attention_adds_depends_on_the_distance_alone():
    blocks = CLIP(CONFIG, rngs=nnx.Rngs(0)).vision.transformer.blocks
    graph, state = nnx.split(blocks.attention)
    attention = nnx.merge(graph, jax.tree.map(lambda x: x[0], state))
    logits = np.asarray(attention._position_logits())
    assert logits.shape == (2, 17, 17)
    assert not logits[:, 0].any() and not logits[:, :, 0].any()  # of the class token
    grid = logits[:, 1:, 1:].reshape(2, 4, 4, 4, 4)
    np.testing.assert_allclose(grid[:, 1:, 1:, 1:, 1:], grid[:, :-1, :-1, :-1, :-1], atol=1e-6)
    assert np.ptp(grid) > 0.1


def test_the_formula_counts_what_the_program_multiplies():
    """The positions of a batch are computed once, and do not count."""
    graph, state = nnx.split(abstract_model(CONFIG).vision)
    image = jax.ShapeDtypeStruct((5, 16, 16, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state).features_and_grid(x))(
        state, image
    )
    once = 2 * 7**2 * (2 * 6 + 6 * 2) * VISION.layers
    assert jaxprs.count(traced).flops == 5 * VISION.flops(12) + once


def test_the_same_parameters_serve_another_size():
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    params, config = positions.resize_model(variables(model)[0], CONFIG, image_size=24)
    larger = nnx.merge(nnx.graphdef(abstract_model(config)), params)
    features, grid = larger.encode_grid(images(24))
    assert grid.shape == (3, 36, 16)
    alone = larger.encode_image(images(24), normalized=False)
    np.testing.assert_allclose(features, alone, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed"])
def test_half_precision_is_close(dtype):
    graph, params = nnx.split(CLIP(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
    half = nnx.merge(nnx.graphdef(abstract_model(CONFIG, dtype)), params)
    exact = nnx.merge(graph, params).encode_image(images())
    atol = 0.03 * float(jnp.abs(exact).max())
    np.testing.assert_allclose(half.encode_image(images()), exact, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (dict(data=2, fsdp=2, tensor=2), {}),
        (dict(data=1), dict(remat="dots")),
        (dict(data=2), dict(remat="full", chunks=(4, 4))),
    ],
    ids=["mesh", "remat", "chunks"],
)
def test_gradients_are_the_same_on_any_mesh_and_rematerialised(mesh, options):
    _, gradients, _ = steps.run(mesh, config=CONFIG, **options)
    steps.assert_same_gradients(gradients, steps.alone(CONFIG)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(image_size=18), "patch_size=4 does not divide"),
        (dict(heads=3), "heads=3 does not divide"),
        (dict(layer_scale=0.0), "layer_scale=0.0 must be above 0"),
        (dict(projection="none"), "embed_dim=12 must be the 16 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        CLIPConfig(12, vision=dataclasses.replace(VISION, **change), text=TEXT)
