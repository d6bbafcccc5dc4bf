"""Outputs of an image tower beside its features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import released
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.coca_configs import CoCaVisionConfig
from clip_jax.models.model_config import (
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.weights import library
from tools import golden_models

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
WORDS = TextConfig(vocab_size=40, context_length=8, width=16, layers=1, heads=2)
VIT = VisionConfig(image_size=12, patch_size=4, width=16, layers=3, heads=2)
MAP = dataclasses.replace(
    VIT, pool="map", ln_pre=False, patch_bias=True, projection=False, registers=2
)
EFFICIENTNET = EfficientNetConfig(
    image_size=40,
    width=0.25,
    depth=0.3,
    stages=((3, 1, 1, 32, 16, 1), (3, 2, 2, 16, 32, 2)),
    projection=True,
)


def model_of(vision: Any) -> CLIP:
    return CLIP(CLIPConfig(16, vision=vision, text=WORDS), rngs=nnx.Rngs(0))


def images(side: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("vision", [VIT, MAP, ResNetConfig(64, 2, (1, 1, 1, 1), 2), EFFICIENTNET])
def test_patches_are_in_the_space_of_texts(vision: Any) -> None:
    model, image = model_of(vision), images(vision.image_size)
    patches = model.encode_image(image, output="patches", normalized=True)
    assert patches.shape == (3, vision.grid_shape()[0], 16)
    np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, rtol=1e-5)
    batched = model.encode_image(image[1:2], output="patches", normalized=True)
    np.testing.assert_allclose(patches[1:2], batched, atol=1e-5)


def test_an_image_of_one_patch_is_what_its_patch_gives() -> None:
    model = model_of(dataclasses.replace(MAP, image_size=4, registers=0))
    image = images(4)
    patches = model.encode_image(image, output="patches")
    np.testing.assert_allclose(patches[:, 0], model.encode_image(image), atol=1e-5)


def test_the_mean_of_patches_is_the_features_where_the_tower_takes_the_mean() -> None:
    model, image = model_of(EFFICIENTNET), images(40)
    patches = model.encode_image(image, output="patches")
    np.testing.assert_allclose(patches.mean(1), model.encode_image(image), atol=1e-5)


def test_pooled_features_become_features_by_the_projection() -> None:
    model, image = model_of(VIT), images(12)
    pooled = model.encode_image(image, output="pooled")
    features = model.encode_image(image)
    np.testing.assert_allclose(model.vision.project(pooled), features, atol=1e-6)


def test_layers_and_patches_are_transformers() -> None:
    transformers = released.transformers()
    torch = pytest.importorskip("torch")
    folder = GOLDEN / "hugging_face_clip"
    weights = library.find_weights(folder)
    model = nnx.merge(
        nnx.graphdef(CLIP(weights.config, rngs=nnx.Rngs(0))), *library.read_variables(weights)
    )
    theirs = transformers.CLIPModel.from_pretrained(folder)
    image, _ = golden_models.core.inputs(8, 0)
    with torch.no_grad():
        pixels = torch.tensor(image).permute(0, 3, 1, 2)
        hidden = theirs.vision_model(pixels, output_hidden_states=True).hidden_states
        normed = theirs.vision_model.post_layernorm(hidden[-1][:, 1:])
        patches = theirs.visual_projection(normed)
    for layer in (1, 2):
        ours = model.encode_image(image, output=f"layer:{layer}")
        np.testing.assert_allclose(ours, hidden[layer].numpy(), atol=1e-5)
    ours = model.encode_image(image, output="patches")
    np.testing.assert_allclose(ours, patches.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("vision", "output", "words"),
    [
        (VIT, "tokens", "features, pooled, patches, layer:N"),
        (VIT, "layer:4", "1 to 3"),
        (VIT, "layer:0", "1 to 3"),
        (EFFICIENTNET, "layer:1", "no layers"),
        (ResNetConfig(64, 2, (1, 1, 1, 1), 2), "pooled", "resnet has no such output"),
        (
            CoCaVisionConfig(**dataclasses.asdict(VIT), pool_width=16, pool_heads=2),
            "patches",
            "coca_vit has no such output",
        ),
    ],
)
def test_an_output_that_there_is_not_is_refused(vision: Any, output: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        model_of(vision).encode_image(images(vision.image_size), output=output)


def test_training_has_no_other_outputs() -> None:
    with pytest.raises(UserError, match="training"):
        model_of(VIT).encode_image(images(12), output="patches", key=jax.random.key(0))
