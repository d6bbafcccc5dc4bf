"""What a vision Transformer may have besides the paper's: pooling, registers, ragged patches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.models.clip import CLIP, abstract_model, parameter_count
from clip_jax.models.initializers import SIGLIP_BLOCK
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.models.transformer import AttentionPool
from clip_jax.models.vit import patches

VISION = VisionConfig(image_size=8, patch_size=4, width=16, layers=2, heads=2)
TEXT = TextConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2)


def model(**change) -> CLIP:
    config = CLIPConfig(12, vision=dataclasses.replace(VISION, **change), text=TEXT)
    return CLIP(config, rngs=nnx.Rngs(0))


def images(size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


@pytest.mark.parametrize("pool", ["class", "mean", "map"])
@pytest.mark.parametrize("registers", [0, 3])
def test_every_pooling_reads_all_patches_and_learns_all_its_parameters(pool, registers):
    graph, params = nnx.split(model(pool=pool, registers=registers), nnx.Param)

    def total(params, image):
        return (nnx.merge(graph, params).encode_image(image) ** 2).sum()

    image = jnp.asarray(images(), jnp.float32) / 128 - 1
    gradients, by_pixel = jax.grad(total, (0, 1))(params, image)
    for path, value in jax.tree_util.tree_flatten_with_path(gradients["vision"])[0]:
        assert np.abs(value).max() > 0, jax.tree_util.keystr(path)
    assert (np.abs(by_pixel).sum((1, 2, 3)) > 0).all()
    assert (np.abs(by_pixel).reshape(3, -1).max(1) > 0).all()


def test_registers_are_parameters_that_change_the_features_and_are_not_read_out():
    with_them, without = model(registers=3), model()
    assert parameter_count(with_them) == parameter_count(without) + 3 * 16
    assert not np.allclose(with_them.encode_image(images()), without.encode_image(images()))
    mean = model(registers=2, pool="mean")
    tokens = mean.vision._tokens(jnp.zeros((1, 8, 8, 3)), None)
    assert tokens.shape == (1, 4 + 2, 16)
    np.testing.assert_array_equal(tokens[0, 4:], mean.vision.registers[...])


def test_the_query_pools_by_its_formula():
    pool = AttentionPool(VISION, "gelu", init=SIGLIP_BLOCK, dtype="float32", rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 16)))
    q = np.asarray(pool.probe[...]) @ np.asarray(pool.q.kernel[...])
    k, v = np.split(x[0] @ np.asarray(pool.kv.kernel[...]), 2, axis=-1)
    heads = []
    for h in range(2):
        part = slice(8 * h, 8 * h + 8)
        weights = np.exp(k[:, part] @ q[part] / np.sqrt(8))
        heads.append(weights @ v[:, part] / weights.sum())
    pooled = np.concatenate(heads) @ np.asarray(pool.out.kernel[...])
    expected = pooled + np.asarray(pool.mlp(pool.ln(jnp.asarray(pooled))))
    np.testing.assert_allclose(pool(jnp.asarray(x))[0], expected, rtol=1e-4, atol=1e-5)


def test_pixels_that_fill_no_patch_are_left_out():
    image = images(9)
    result = patches(jnp.asarray(image, jnp.float32), 4)
    assert result.shape == (3, 4, 48)
    np.testing.assert_array_equal(result, patches(jnp.asarray(image[:, :8, :8], jnp.float32), 4))
    ragged = model(image_size=9, ragged=True)
    changed = image.copy()
    changed[:, 8:], changed[:, :, 8:] = 0, 255
    np.testing.assert_array_equal(ragged.encode_image(image), ragged.encode_image(changed))


def test_patch_dropout_and_registers_go_together():
    config = CLIPConfig(
        12, vision=dataclasses.replace(VISION, registers=2, patch_dropout=0.5), text=TEXT
    )
    model = CLIP(config, rngs=nnx.Rngs(0))
    tokens = model.vision._tokens(jnp.zeros((2, 8, 8, 3)), jax.random.split(jax.random.key(0), 2))
    assert tokens.shape == (2, 1 + 2 + 2, 16)


def test_the_released_siglip_is_this_tower():
    shapes = abstract_model(
        CLIPConfig(
            16,
            "gelu_tanh",
            vision=dataclasses.replace(
                VISION, pool="map", ln_pre=False, projection=False, patch_bias=True
            ),
            text=TEXT,
        )
    )
    names = set(nnx.to_pure_dict(nnx.state(shapes.vision, nnx.Param)))
    assert names == {
        "patch_embedding",
        "positional_embedding",
        "transformer",
        "ln_post",
        "pool",
    }
