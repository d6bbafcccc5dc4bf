"""Models as plain objects: copied, pickled, exported with any batch size, given no rows."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.models.architectures.siglip import siglip
from clip_jax.models.clip import CLIP
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig
from clip_jax.models.convnext_configs import ConvNeXtConfig
from clip_jax.models.model_config import (
    BertConfig,
    CLIPConfig,
    EfficientNetConfig,
    ResNetConfig,
    TextConfig,
    VisionConfig,
)
from clip_jax.models.swin_configs import SwinConfig
from clip_jax.models.vitamin_configs import ViTaminConfig

SMALL: dict[str, Any] = dict(width=16, layers=2, heads=2)
WORDS: dict[str, Any] = dict(vocab_size=100, context_length=12)
EFFICIENT = EfficientNetConfig(image_size=33, width=0.1, depth=0.1)
CONFIGS = {
    "class token": CLIPConfig(
        12,
        vision=VisionConfig(image_size=16, patch_size=8, **SMALL),
        text=TextConfig(**WORDS, **SMALL),
    ),
    "attention pool": siglip("gelu", dict(image_size=16, patch_size=8, **SMALL), WORDS | SMALL),
    "mean pool": CLIPConfig(
        12,
        vision=VisionConfig(image_size=16, patch_size=8, pool="mean", stem=8, registers=2, **SMALL),
        text=TextConfig(**WORDS, **SMALL | {"layers": 0}),
    ),
    "resnet": CLIPConfig(
        12, vision=ResNetConfig(32, 8, (1, 1, 1, 1), 8), text=TextConfig(**WORDS, **SMALL)
    ),
    "efficientnet": CLIPConfig(
        EFFICIENT.channels(EFFICIENT.stages[-1][4]),
        "gelu",
        temperature=1.0,
        log_scale=False,
        max_logit_scale=0.0,
        vision=EFFICIENT,
        text=BertConfig(**WORDS, **SMALL),
    ),
    "convnext": CLIPConfig(
        12,
        vision=ConvNeXtConfig(32, width=4, layers=(1, 1, 2, 1)),
        text=TextConfig(**WORDS, **SMALL),
    ),
    "swin": CLIPConfig(
        12, vision=SwinConfig(16, 2, 8, (2, 2), 4, 4), text=TextConfig(**WORDS, **SMALL)
    ),
    "vitamin": CLIPConfig(
        12,
        vision=ViTaminConfig(32, stem=4, stem_layers=(1, 2), **SMALL),
        text=TextConfig(**WORDS, **SMALL),
    ),
    "coca": CLIPConfig(
        12,
        vision=CoCaVisionConfig(
            image_size=16, patch_size=8, pool_queries=3, pool_width=8, pool_heads=2, **SMALL
        ),
        text=CoCaTextConfig(**WORDS, **SMALL),
    ),
    "efficientnet-lite": CLIPConfig(
        12,
        vision=dataclasses.replace(
            EFFICIENT, squeeze=0.0, activation="relu6", head=24, projection=True
        ),
        text=BertConfig(**WORDS, **SMALL, pool="mean", activation="gelu"),
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> CLIP:
    return CLIP(CONFIGS[request.param], rngs=nnx.Rngs(0))


def batch(model: CLIP, rows: int) -> tuple[np.ndarray, np.ndarray]:
    side = model.config.vision.image_size
    image = np.random.default_rng(0).integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    tokens = np.zeros((rows, 12), np.int32)
    tokens[:, 0], tokens[:, 1], tokens[:, 2] = 98, np.arange(rows), 99
    return image, tokens


@pytest.mark.slow
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_the_same(model: CLIP, way: Any) -> None:
    image, tokens = batch(model, 3)
    again = way(model)
    assert again is not model and again.config == model.config
    np.testing.assert_array_equal(again.encode_image(image), model.encode_image(image))
    np.testing.assert_array_equal(again.encode_text(tokens), model.encode_text(tokens))
    assert nnx.graphdef(again) == nnx.graphdef(model)  # so nothing compiles again


@pytest.mark.slow
def test_an_empty_batch_has_no_features(model: CLIP) -> None:
    image, tokens = batch(model, 0)
    for normalized in (False, True):
        assert model.encode_image(image, normalized=normalized).shape == (0, model.config.embed_dim)
        assert model.encode_text(tokens, normalized=normalized).shape == (0, model.config.embed_dim)
    assert model(image, tokens).logits_per_image.shape == (0, 0)
    assert model(batch(model, 2)[0], tokens).logits_per_image.shape == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("normalized", [False, True])
def test_an_export_takes_any_batch(model: CLIP, normalized: bool) -> None:
    (b,) = jax.export.symbolic_shape("b")
    image, tokens = batch(model, 3)
    towers = ((model.encode_image, image), (model.encode_text, tokens))
    for encode, rows in towers:
        exported = jax.export.export(jax.jit(lambda x, f=encode: f(x, normalized=normalized)))(
            jax.ShapeDtypeStruct((b, *rows.shape[1:]), rows.dtype)
        )
        for some in (rows, rows[:1]):
            expected = encode(some, normalized=normalized)
            np.testing.assert_allclose(exported.call(jnp.asarray(some)), expected, 1e-4, 1e-5)
