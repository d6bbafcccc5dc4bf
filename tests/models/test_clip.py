"""The towers: exact sizes, and equalities that must hold."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES, name_of
from clip_jax.models.clip import CLIP, normalize, parameter_count
from clip_jax.models.initializers import clip_text_block
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.models.transformer import ACTIVATIONS, Block, Transformer
from clip_jax.models.vit import drop_patches
from clip_jax.tokenizers import packing

TINY = CLIPConfig(
    16,
    vision=VisionConfig(image_size=16, patch_size=4, width=32, layers=3, heads=4),
    text=TextConfig(vocab_size=50, context_length=8, width=24, layers=2, heads=2),
)


@pytest.fixture(scope="module")
def model():
    return CLIP(TINY, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
    tokens = np.zeros((5, 8), np.int32)
    for row, length in zip(tokens, (3, 8, 5, 4, 6), strict=True):
        row[:length] = [48, *rng.integers(1, 48, length - 2), 49]
    return image, tokens


@pytest.mark.parametrize(
    ("name", "total", "visual"),
    [
        ("ViT-B/32", 151_277_313, 87_849_216),
        ("ViT-B/16", 149_620_737, 86_192_640),
        ("ViT-L/14", 427_616_513, 303_966_208),
        ("ViT-L/14@336px", 427_944_193, 304_293_888),
    ],
)
def test_parameter_counts_are_the_papers(name, total, visual):
    shapes = nnx.eval_shape(lambda: CLIP(ARCHITECTURES[name], rngs=nnx.Rngs(0)))
    assert all(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(shapes))
    )
    assert parameter_count(shapes) == total
    assert parameter_count(shapes.vision) == visual
    assert name in repr(shapes) and f"{total:,}" in repr(shapes)


def test_the_scan_is_the_blocks_one_after_the_other():
    stack = Transformer(
        TextConfig(width=32, layers=3, heads=4),
        "quick_gelu",
        init=clip_text_block(32, 3),
        causal=True,
        dtype=jnp.float32,
        remat="none",
        rngs=nnx.Rngs(1),
    )
    x = jax.random.normal(jax.random.key(0), (2, 6, 32))
    graph, params = nnx.split(stack.blocks)
    by_hand = x
    for i in range(3):
        block: Block = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], params))
        by_hand = block(by_hand, True)
    np.testing.assert_allclose(stack(x), by_hand, rtol=1e-5, atol=1e-6)


def test_the_block_is_the_papers_formula():
    block = Block(
        TextConfig(width=8, layers=1, heads=2),
        "quick_gelu",
        init=clip_text_block(8, 1),
        dtype=jnp.float32,
        rngs=nnx.Rngs(3),
    )
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 5, 8)))

    def norm(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    q, k, v = np.split(norm(x) @ np.asarray(block.attention.qkv.kernel[...]), 3, axis=-1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = q[0][:, part] @ k[0][:, part].T / 2
        scores = np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[0][:, part])
    y = x + np.concatenate(heads, -1) @ np.asarray(block.attention.out.kernel[...])
    fc, proj = block.mlp.fc, block.mlp.proj
    hidden = norm(y) @ np.asarray(fc.kernel[...]) + np.asarray(fc.bias[...])
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    y = y + hidden @ np.asarray(proj.kernel[...]) + np.asarray(proj.bias[...])
    np.testing.assert_allclose(block(jnp.asarray(x), True), y, rtol=1e-4, atol=1e-5)


def test_features_are_on_the_sphere_and_bytes_are_normalised_on_the_device(model, batch):
    image, tokens = batch
    output = model(image, tokens)
    for features in output[:2]:
        np.testing.assert_allclose(jnp.linalg.norm(features, axis=-1), 1, rtol=1e-5)
    assert float(output.logit_scale) == pytest.approx(1 / 0.07, rel=1e-5)
    mean, std = np.array(TINY.vision.mean), np.array(TINY.vision.std)
    by_hand = ((image / 255 - mean) / std).astype(np.float32)
    np.testing.assert_allclose(
        model.encode_image(by_hand), model.encode_image(image), rtol=1e-4, atol=1e-5
    )


def test_the_scale_is_used_as_it_is_and_only_training_bounds_it(batch):
    model = CLIP(TINY, rngs=nnx.Rngs(0))
    model.logit_scale[...] = jnp.asarray(math.log(117.3))  # as SigLIP's released weights have it
    output = model(*batch)
    assert float(output.logit_scale) == pytest.approx(117.3, rel=1e-5)
    cosines = np.asarray(output.image_features) @ np.asarray(output.text_features).T
    np.testing.assert_allclose(output.logits_per_image, 117.3 * cosines, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(output.logits_per_text, output.logits_per_image.T)


def test_text_is_read_out_at_its_end_and_later_tokens_change_nothing(model, batch):
    _, tokens = batch
    padded = np.where(np.cumsum(tokens == 49, axis=1) - (tokens == 49) > 0, 7, tokens)
    assert (padded != tokens).any()
    np.testing.assert_allclose(
        model.encode_text(padded), model.encode_text(tokens), rtol=1e-5, atol=1e-6
    )
    shorter = model.encode_text(tokens[:1, :3])
    np.testing.assert_allclose(shorter, model.encode_text(tokens[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(remat, batch):
    def gradient(remat):
        graph, params = nnx.split(CLIP(TINY, remat=remat, rngs=nnx.Rngs(0)), nnx.Param)

        def total(params):
            output = nnx.merge(graph, params)(*batch)
            return jnp.sum(output.image_features[:, 0] * output.text_features[:, 1])

        return jax.grad(total)(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(remat),
        gradient("none"),
    )


def test_bfloat16_features_point_where_fp32_ones_do(model, batch):
    half = CLIP(TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for wide, narrow in zip(model(*batch)[:2], half(*batch)[:2], strict=True):
        assert narrow.dtype == jnp.float32
        assert float(jnp.min(jnp.sum(wide * narrow, axis=-1))) > 0.99
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(half, nnx.Param)))


def test_patch_dropout_keeps_a_random_subset_and_only_with_a_key(batch):
    patches = jnp.arange(2 * 16 * 1, dtype=jnp.float32).reshape(2, 16, 1)
    keys = jax.random.split(jax.random.key(0), 2)
    subset = drop_patches(patches, 0.5, keys)
    assert subset.shape == (2, 8, 1)
    for row, all_patches in zip(subset, patches, strict=True):
        assert set(row[:, 0].tolist()) <= set(all_patches[:, 0].tolist())
        assert len(set(row[:, 0].tolist())) == 8
    assert not jnp.array_equal(subset, drop_patches(patches, 0.5, keys[::-1]))
    alone = drop_patches(patches[1:], 0.5, keys[1:])  # an image's chance is its own
    np.testing.assert_array_equal(alone[0], subset[1])
    config = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, patch_dropout=0.5))
    model, plain = CLIP(config, rngs=nnx.Rngs(0)), CLIP(TINY, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(model.encode_image(batch[0]), plain.encode_image(batch[0]))
    dropped = model.encode_image(batch[0], key=jax.random.key(0))
    assert not jnp.allclose(dropped, plain.encode_image(batch[0]))


def test_activations_have_their_published_values():
    x = jnp.asarray([-2.0, -0.5, 0.0, 1.0, 3.0])
    np.testing.assert_allclose(
        ACTIVATIONS["quick_gelu"](x), [-0.064335, -0.149620, 0.0, 0.845796, 2.981933], atol=1e-5
    )
    np.testing.assert_allclose(
        ACTIVATIONS["gelu"](x), [-0.045500, -0.154269, 0.0, 0.841345, 2.995950], atol=1e-5
    )
    np.testing.assert_allclose(
        ACTIVATIONS["gelu_tanh"](x), [-0.045402, -0.154286, 0.0, 0.841192, 2.996363], atol=1e-5
    )


def test_a_zero_vector_has_a_finite_gradient():
    assert jnp.isfinite(jax.grad(lambda v: normalize(v).sum())(jnp.zeros(4))).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(vision=VisionConfig(width=100, heads=12)), "model.vision.heads"),
        (dict(text=TextConfig(width=100, heads=12)), "model.text.heads"),
        (dict(vision=VisionConfig(patch_size=15)), "model.vision.patch_size"),
        (dict(vision=VisionConfig(patch_dropout=1.0)), "model.vision.patch_dropout"),
    ],
)
def test_an_impossible_architecture_is_named(change, word):
    with pytest.raises(UserError, match=word):
        CLIPConfig(**change)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match="quick_gelu"):
        CLIP(dataclasses.replace(TINY, activation="swish"), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="dots"):
        CLIP(TINY, remat="some", rngs=nnx.Rngs(0))


def test_a_config_survives_its_dictionary():
    for name, config in ARCHITECTURES.items():
        assert CLIPConfig.from_dict(config.to_dict()) == config
        assert name_of(config) == name
    assert name_of(TINY) is None


def test_wrong_shapes_are_refused(model):
    with pytest.raises(UserError, match="16, 16, 3"):
        model.encode_image(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="takes 8"):
        model.encode_text(np.zeros((1, 9), np.int32))


def test_a_bag_of_words_sees_which_tokens_there_are_and_nothing_else():
    bag = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, layers=0))
    model = CLIP(bag, rngs=nnx.Rngs(0))
    end, start = TINY.text.vocab_size - 1, TINY.text.vocab_size - 2
    rows = jnp.zeros((4, TINY.text.context_length), jnp.int32)
    rows = rows.at[0, :5].set(jnp.asarray([start, 3, 4, 5, end]))
    rows = rows.at[1, :5].set(jnp.asarray([start, 5, 3, 4, end]))
    rows = rows.at[2, :4].set(jnp.asarray([start, 3, 4, end]))
    rows = rows.at[3, :2].set(jnp.asarray([start, end]))
    words, turned, fewer, none = model.encode_text(rows)
    np.testing.assert_allclose(words, turned, rtol=1e-5, atol=1e-6)
    assert not jnp.allclose(words, fewer, atol=1e-3)
    assert not jnp.any(none)  # the mean of nothing, and not NaN
    padded = model.encode_text(rows[:1].at[0, 7].set(9))
    np.testing.assert_allclose(padded[0], words, rtol=1e-5, atol=1e-6)
    embedding = nnx.state(model.text, nnx.Param)["token_embedding"]["embedding"][...]
    by_hand = model.text.projection(model.text.ln_final(embedding[jnp.asarray([3, 4, 5])].mean(0)))
    np.testing.assert_allclose(words, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("vision", "text"), [(0, 1), (1, -1)])
def test_a_depth_that_cannot_be_is_named(vision, text):
    with pytest.raises(UserError, match=f"layers={vision if vision < 1 else text} "):
        dataclasses.replace(
            TINY,
            vision=dataclasses.replace(TINY.vision, layers=vision),
            text=dataclasses.replace(TINY.text, layers=text),
        )


@pytest.mark.parametrize("layers", [0, 2])
def test_trimming_unused_columns_changes_no_gradient(layers, batch):
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, layers=layers))
    graph, params = nnx.split(CLIP(config, rngs=nnx.Rngs(0)), nnx.Param)
    end = config.text.vocab_size - 1
    rows = np.zeros((3, config.text.context_length), np.int32)
    rows[0, :4], rows[1, :3], rows[2, :2] = (48, 5, 7, end), (48, 9, end), (48, end)

    def total(params, rows):
        return jnp.sum(nnx.merge(graph, params).encode_text(rows)[:, 0])

    full = jax.value_and_grad(total)(params, rows)
    cut = jax.value_and_grad(total)(params, packing.trim(rows, 4))
    assert packing.trim(rows, 4).shape == (3, 4)

    def close(a, b):  # to the last bits of what is summed, which is as large as the largest
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(1, np.abs(a).max()))

    jax.tree.map(close, full, cut)
