"""Towers of EVA and Perception Encoder: FLOPs, positions, precision, meshes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprs
import released
import steps
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.eva_configs import EvaConfig
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.weights import arrays, positions
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors
from tools import golden_models

TEXT = TextConfig(vocab_size=56, context_length=8, width=16, layers=1, heads=2)
SIZES: dict[str, Any] = dict(image_size=16, patch_size=4, width=32, layers=2, heads=4)
PERCEPTION: dict[str, Any] = dict(pool="map", ln_pre=True, key_bias=True, rotary=4, pool_heads=2)
TOWERS = {
    "EVA-01": EvaConfig(**SIZES),
    "EVA-02": EvaConfig(**SIZES, swiglu=True, rotary=5, mlp_ratio=2.7),
    "EVA-02-E": EvaConfig(**SIZES, post_norm=True),
    "Perception Encoder": EvaConfig(**SIZES, **PERCEPTION, pool_mlp_ratio=3.0),
    "without class token": EvaConfig(**SIZES, **PERCEPTION, class_token=False),
}
MODELS = {name: CLIPConfig(16, vision=tower, text=TEXT) for name, tower in TOWERS.items()}
each_tower = pytest.mark.parametrize("name", TOWERS)


def images(size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


@each_tower
def test_the_formula_counts_what_the_program_multiplies(name):
    graph, params = nnx.split(abstract_model(MODELS[name]).vision)
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def every_place(params: Any, image: Any) -> Any:
        return nnx.merge(graph, params).features_and_grid(image)

    counted = jaxprs.count(jax.make_jaxpr(every_place)(params, image)).flops
    assert counted == TOWERS[name].flops(16)


@each_tower
def test_the_places_are_those_of_the_features(name):
    model = CLIP(MODELS[name], rngs=nnx.Rngs(0))
    features, grid = model.encode_grid(images())
    assert grid.shape == (3, *TOWERS[name].grid_shape())
    alone = model.encode_image(images(), normalized=False)
    np.testing.assert_allclose(features, alone, atol=1e-5 * np.abs(alone).max())


@each_tower
def test_half_precision_is_close(name):
    graph, params = nnx.split(CLIP(MODELS[name], rngs=nnx.Rngs(0)), nnx.Param)
    exact = nnx.merge(graph, params).encode_image(images())
    for dtype in ("bfloat16", "mixed"):
        model = nnx.merge(nnx.graphdef(abstract_model(MODELS[name], dtype)), params)
        np.testing.assert_allclose(model.encode_image(images()), exact, atol=0.03)


def test_keys_have_a_bias_only_where_it_is_a_parameter():
    paths = {name: dict(arrays.flat(variables(abstract_model(MODELS[name]))[0])) for name in MODELS}
    attention = "vision/transformer/blocks/attention"
    assert paths["Perception Encoder"][f"{attention}/qkv/bias"].shape == (2, 96)
    for name in ("EVA-01", "EVA-02", "EVA-02-E"):
        assert f"{attention}/qkv/bias" not in paths[name]
        assert paths[name][f"{attention}/q_bias"].shape == (2, 32)
        assert paths[name][f"{attention}/v_bias"].shape == (2, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EVA-02", "EVA-02-E", "Perception Encoder"])
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (dict(data=2, fsdp=2, tensor=2), {}),
        (dict(data=1), dict(remat="dots")),
        (dict(data=2), dict(remat="full", chunks=(4, 4))),
    ],
    ids=["mesh", "remat", "chunks"],
)
def test_gradients_are_the_same_on_any_mesh_and_rematerialised(name, mesh, options):
    _, gradients, _ = steps.run(mesh, config=MODELS[name], **options)
    steps.assert_same_gradients(gradients, steps.alone(MODELS[name])[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(image_size=18), "patch_size=4 does not divide"),
        (dict(heads=5), "heads=5 does not divide"),
        (dict(pool="mean"), "'class' or 'map'"),
        (dict(class_token=False), "needs model.vision.class_token"),
        (dict(pool="map", pool_heads=3), "pool_heads=3 does not divide"),
        (dict(heads=16, rotary=4), "multiple of 4 features, not 2"),
        (dict(projection="none"), "embed_dim=16 must be the 32 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        CLIPConfig(16, vision=dataclasses.replace(TOWERS["EVA-01"], **change), text=TEXT)


FAMILIES = golden_models.eva.FAMILIES


def released_model(family: str) -> tuple[golden_models.Model, CLIPConfig]:
    _, build = FAMILIES[family]
    model = build(released.open_clip())
    return model, CLIPConfig.from_dict(model.ours)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_another_size_gives_the_features_of_timm_at_that_size(family, tmp_path):
    import torch

    theirs, config = released_model(family)
    golden_models.randomize(theirs.module, 3)
    write_safetensors(tmp_path / "weights.safetensors", golden_models.state(theirs))
    with open_tensors(tmp_path / "weights.safetensors") as tensors:
        params, _ = arrays.to_variables(tensors, config, "open_clip")
    theirs.module.visual.trunk.set_input_size(img_size=20)
    pixels = np.random.default_rng(0).standard_normal((2, 20, 20, 3), np.float32)
    with torch.no_grad():
        wanted = theirs.module.visual.trunk(torch.tensor(pixels).permute(0, 3, 1, 2))
    params, config = positions.resize_model(params, config, image_size=20)
    model = nnx.merge(nnx.graphdef(abstract_model(config)), params)
    ours = model.encode_image(pixels, normalized=False)
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * float(wanted.abs().max()))
