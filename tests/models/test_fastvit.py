"""FastViT: published sizes, FLOPs, single convolutions for branches, precision, meshes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprs
import steps
from clip_jax.errors import UserError
from clip_jax.models.architectures import TOWERS
from clip_jax.models.clip import CLIP, abstract_model, parameter_count, variables
from clip_jax.models.convolution import BatchNorm
from clip_jax.models.fastvit_configs import FastViTConfig
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.models.reparameterisation import reparameterised
from clip_jax.weights import positions

TEXT = TextConfig(vocab_size=56, context_length=8, width=16, layers=1, heads=2)
SIZES: dict[str, Any] = dict(image_size=32, width=8, layers=(1, 2, 2), mlp_ratio=1.5)
VISION = {
    "MobileCLIP": FastViTConfig(**SIZES, squeeze_stages=1),
    "MobileCLIP 2": FastViTConfig(**SIZES, squeeze_stages=0, layer_norm=True, stem_scale=False),
    "odd sides": FastViTConfig(**{**SIZES, "image_size": 37}),
}
MODELS = {name: CLIPConfig(12, vision=tower, text=TEXT) for name, tower in VISION.items()}
each_tower = pytest.mark.parametrize("name", VISION)


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def trained(name: str, dtype: str = "float32") -> CLIP:
    """A model whose every parameter and statistic is drawn at random."""
    rng = np.random.default_rng(1)

    def drawn(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        if x.dtype == jnp.int32:
            return np.zeros(x.shape, np.int32)
        where = jax.tree_util.keystr(path)
        if "var" in where:
            return rng.uniform(0.5, 2, x.shape).astype(np.float32)
        values = rng.standard_normal(x.shape).astype(np.float32)
        if "kernel" in where:
            return values / max(1, np.prod(x.shape[-4:-1])) ** 0.5
        return 1 + 0.3 * values if "scale" in where else 0.3 * values

    model = abstract_model(MODELS[name], dtype)
    values = jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(drawn, variables(model)))
    return nnx.merge(nnx.graphdef(model), *values)


def program_flops(config: CLIPConfig) -> int:
    graph, state = nnx.split(abstract_model(config).vision)
    size = config.vision.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda state, image: nnx.merge(graph, state)(image))(state, image)
    return jaxprs.count(traced).flops


@each_tower
@pytest.mark.parametrize("single", [False, True])
def test_the_formula_counts_what_the_program_multiplies(name, single):
    config = MODELS[name].with_vision(single=single)
    assert program_flops(config) == config.vision.flops(12)


@each_tower
def test_single_convolutions_compute_the_same_with_less(name):
    model = trained(name)
    single = reparameterised(model)
    image = images(VISION[name].image_size)
    before, after = model.encode_grid(image), single.encode_grid(image)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())
    assert single.config.vision.single
    assert parameter_count(single) < parameter_count(model)
    assert single.config.vision.flops(12) < model.config.vision.flops(12)
    norms = [part for _, part in nnx.iter_graph(single) if isinstance(part, BatchNorm)]
    assert len(norms) == (0 if VISION[name].layer_norm else 1)  # before attention


def test_single_convolutions_keep_the_rest_of_the_model_and_its_dtype():
    model = trained("MobileCLIP", "bfloat16")
    single = reparameterised(model)
    tokens = steps.batch(2, config=MODELS["MobileCLIP"])["tokens"]
    np.testing.assert_array_equal(single.encode_text(tokens), model.encode_text(tokens))
    assert single.dtype == "bfloat16"
    before, after = model.encode_image(images(32)), single.encode_image(images(32))
    np.testing.assert_allclose(after, before, atol=0.05 * float(jnp.abs(before).max()))


def test_what_has_no_branches_is_refused():
    single = reparameterised(trained("MobileCLIP"))
    with pytest.raises(UserError, match="fastvit 32px 1-2-2×8, and has no branches"):
        reparameterised(single)
    with pytest.raises(UserError, match="vit 16px/4"):
        reparameterised(abstract_model(steps.TINY))


# Millions of parameters of the image encoders in table 1 of MobileCLIP and of MobileCLIP 2, which
# count single convolutions.
@pytest.mark.parametrize(
    ("name", "embed_dim", "millions"),
    [
        ("fastvit_mci0", 512, 11.4),
        ("fastvit_mci1", 512, 21.5),
        ("fastvit_mci2", 512, 35.7),
        ("fastvit_mci3", 768, 125.1),
        ("fastvit_mci4", 768, 321.6),
    ],
)
def test_sizes_are_the_published_ones(name, embed_dim, millions):
    tower: Any = dataclasses.replace(TOWERS[name], projection_bias=True, single=True)
    model = abstract_model(CLIPConfig(embed_dim, vision=tower, text=TEXT))
    assert parameter_count(model.vision) / 1e6 == pytest.approx(millions, abs=0.15)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed"])
def test_half_precision_is_close(dtype):
    exact = trained("MobileCLIP").encode_image(images(32))
    half = trained("MobileCLIP", dtype).encode_image(images(32))
    np.testing.assert_allclose(half, exact, atol=0.03 * np.abs(exact).max())


def test_the_same_parameters_serve_any_image_size():
    model = trained("MobileCLIP")
    params, stats = variables(model)
    params_after, config = positions.resize_model(params, MODELS["MobileCLIP"], image_size=64)
    assert params_after["vision"] is params["vision"]
    larger = nnx.merge(nnx.graphdef(abstract_model(config)), params_after, stats)
    _, grid = larger.encode_grid(images(64))
    assert grid.shape == (3, *config.vision.grid_shape())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileCLIP", "MobileCLIP 2"])
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (dict(data=2, fsdp=2, tensor=2), {}),
        (dict(data=1), dict(remat="dots")),
        (dict(data=1), dict(remat="full")),
    ],
    ids=["mesh", "dots", "full"],
)
def test_gradients_are_the_same_on_any_mesh_and_rematerialised(name, mesh, options):
    config = MODELS[name]
    _, gradients, _ = steps.run(mesh, config=config, **options)
    _, alone, _ = steps.alone(config)
    size = np.sqrt(sum(np.sum(b**2) for b in alone))
    for a, b in zip(gradients, alone, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * size


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(layers=()), "1 to 8 stages"),
        (dict(layers=(1, 0, 1)), "layers=0"),
        (dict(width=6), "gives stage 3 24 channels"),
        (dict(mlp_ratio=1e-3), "leaves its MLPs no width"),
        (dict(projection="none"), "embed_dim=12 must be the 64 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        CLIPConfig(12, vision=dataclasses.replace(VISION["MobileCLIP"], **change), text=TEXT)
