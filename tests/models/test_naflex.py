"""SigLIP 2 NaFlex: images of any shape as patches with their places."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import released
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.models import patches
from clip_jax.models.architectures import find_architecture
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.models.naflex import axis_weights
from clip_jax.models.naflex_configs import NaFlexConfig
from clip_jax.models.patches import PLACE_BYTES, PatchBudget
from clip_jax.weights import arrays, configs
from clip_jax.weights.library import preprocess_of
from clip_jax.weights.mappings.leaf import pieces
from clip_jax.weights.param_mapping import leaves
from support import says

VISION = NaFlexConfig(
    max_num_patches=24, patch_size=4, positions=4, width=16, layers=2, heads=2, mlp_ratio=2.0
)
TEXT = TextConfig(
    vocab_size=40, context_length=8, width=16, layers=1, heads=2, causal=False, pool="last"
)
CONFIG = CLIPConfig(16, "gelu_tanh", vision=VISION, text=TEXT)
SIZES = ((30, 20), (9, 70), (64, 64), (1, 1), (5, 200))  # of pictures


def model(config: CLIPConfig = CONFIG, **options: Any) -> CLIP:
    return CLIP(config, rngs=nnx.Rngs(0), **options)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in SIZES]


def packed(budget: int = 24) -> np.ndarray:
    prepare = Preprocess(
        4, "patches", interpolation="bilinear", budget=PatchBudget(VISION.patch_size, budget)
    )
    return np.stack([prepare(picture) for picture in pictures()])


def more_padding(images: np.ndarray, patches: int) -> np.ndarray:
    padding = ((0, 0), (0, patches - images.shape[1]), (0, 0))
    return np.pad(images, padding)


def test_a_batch_equals_its_pictures_one_by_one() -> None:
    clip, images = model(), packed()
    together = clip.encode_image(images)
    alone = np.concatenate([clip.encode_image(image[None]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert np.ptp(alone, axis=0).min() > 1e-3  # the pictures differ


@pytest.mark.parametrize("output", ["features", "pooled", "patches", "layer:1", "layer:2"])
def test_padding_changes_nothing(output: str) -> None:
    clip, images = model(), packed()
    few = clip.encode_image(images, output=output)
    many = clip.encode_image(more_padding(images, 55), output=output)
    np.testing.assert_allclose(few, many[:, :24] if few.ndim == 3 else many, rtol=0, atol=1e-5)
    if few.ndim == 3:
        there = patches.unpack(more_padding(images, 55))[1].rows > 0
        assert (np.asarray(many)[~there] == 0).all()
        assert (np.abs(np.asarray(many)[there]).max(axis=-1) > 0).all()


def test_the_order_of_patches_means_nothing() -> None:
    clip, images = model(), packed()
    shuffled = images[:, np.random.default_rng(1).permutation(24)]
    ours, theirs = clip.encode_image(images), clip.encode_image(shuffled)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_row_without_an_image_gives_numbers() -> None:
    """Readers fill a batch up with zeros."""
    clip, images = model(), packed()
    images[1] = 0

    def loss(params: Any) -> Any:
        return (nnx.merge(graph, params).encode_image(images)[::2] ** 2).sum()

    graph, params = nnx.split(clip)
    assert np.isfinite(clip.encode_image(images)).all()
    gradients = jax.grad(loss)(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_and_chunks_give_the_same_gradients(remat: str) -> None:
    images = jnp.asarray(packed())

    def gradients(clip: CLIP) -> Any:
        graph, params = nnx.split(clip)
        loss = lambda p: (nnx.merge(graph, p).encode_image(images) ** 3).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    plain = gradients(model())
    chunks = (2, 0) if remat == "full" else (0, 0)
    other = gradients(model(remat=remat, chunks=chunks))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_bfloat16_is_close_to_float32() -> None:
    exact, rounded = (
        model(dtype=dtype).encode_image(packed(), normalized=True)
        for dtype in ("float32", "bfloat16")
    )
    assert (np.sum(np.asarray(exact) * np.asarray(rounded), axis=1) > 0.998).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (16, 16), (40, 3)])
def test_positions_are_resized_as_torch_resizes_pictures(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((16, 16, 5)).astype(np.float32)
    given = torch.tensor(table).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(
        given, size=size, mode="bilinear", antialias=True, align_corners=False
    )[0].permute(1, 2, 0)
    rows, columns = (
        axis_weights(jnp.arange(n)[None], jnp.full((1, n), n, jnp.int32), 16)[0] for n in size
    )
    ours = jnp.einsum("ri,cj,ijw->rcw", rows, columns, table)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)


def test_packing_there_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 3), np.uint8)
    image = PatchBudget(4, 13).pack(pixels)
    assert image.shape == (13, 56)
    np.testing.assert_array_equal(patches.picture(image), pixels)
    _, places = patches.unpack(image)
    assert places.row[:10].tolist() == [0] * 5 + [1] * 5
    assert places.column[:10].tolist() == [*range(5)] * 2
    assert (places.rows[:10] == 2).all() and (places.columns[:10] == 5).all()
    assert (image[10:] == 0).all()
    long = PatchBudget(1, 600).pack(np.zeros((1, 600, 3), np.uint8))
    assert patches.unpack(long)[1].column.tolist() == [*range(600)]
    np.testing.assert_array_equal(
        patches.grid(image, np.arange(13.0)), np.arange(10.0).reshape(2, 5)
    )


@pytest.mark.parametrize("budget", [1, 7, 128, 256, 576, 784, 1024])
def test_sizes_are_those_of_transformers(budget: int) -> None:
    released.transformers()
    from transformers.models.siglip2 import image_processing_pil_siglip2 as theirs

    rng = np.random.default_rng(budget)
    sizes = [*SIZES, *rng.integers(1, 4000, (60, 2)).tolist(), (480, 640), (10_000, 3)]
    for height, width in sizes:
        expected = theirs.get_image_size_for_max_num_patches(height, width, 16, budget)
        assert PatchBudget(16, budget).size_for(height, width) == expected


def test_pixels_are_those_of_transformers() -> None:
    released.transformers()
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    prepare = preprocess_of(find_architecture("google/siglip2-base-patch16-naflex"))
    for picture in pictures():
        theirs = Siglip2ImageProcessorPil()(picture, return_tensors="np")
        pixels, places = patches.unpack(prepare(picture))
        there = places.rows > 0
        np.testing.assert_array_equal(there, theirs["pixel_attention_mask"][0] == 1)
        shape = theirs["spatial_shapes"][0].tolist()
        assert [places.rows.max(), places.columns.max()] == shape
        values = (pixels / 255 - 0.5) / 0.5
        np.testing.assert_allclose(values[there], theirs["pixel_values"][0][there], atol=1e-5)


@pytest.mark.parametrize("name", ["base", "so400m"])
def test_names_and_shapes_of_the_released_models(name: str) -> None:
    torch, transformers = pytest.importorskip("torch"), released.transformers()
    config = find_architecture(f"google/siglip2-{name}-patch16-naflex")
    values = configs.to_hugging_face(config)
    with torch.device("meta"):
        module = transformers.Siglip2Model(transformers.Siglip2Config(**values))
    theirs = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    shapes, ours = dict(arrays.flat(*variables(abstract_model(config)))), {}
    for leaf in leaves(config, "hugging_face"):
        array = np.broadcast_to(np.float32(0), shapes[leaf.path].shape)
        for piece in pieces(leaf, array):
            first, end, parts = piece.rows or (0, 1, 1)
            rows = piece.view.shape[:1] if piece.view.ndim else ()
            whole = tuple(n * parts // (end - first) for n in rows)
            ours[piece.name] = (*whole, *piece.view.shape[1:])
    assert ours == theirs
    assert configs.from_hugging_face(module.config.to_dict()) == config


def test_other_input_is_refused() -> None:
    clip, images = model(), packed()
    moved = images.copy()
    moved[0, 0, -PLACE_BYTES] = 200  # its row, in a grid of fewer rows
    for wrong, words in (
        (moved, ["1 of the patches"]),
        (images[0], ["give image[None]"]),
        (images[..., :-1], ["(24, 56)", "patches with their places"]),
        (np.zeros((2, 16, 16, 3), np.uint8), ["patches with their places"]),
        (images.astype(np.float32), ["floats"]),
    ):
        with pytest.raises(UserError) as error:
            clip.encode_image(wrong)
        assert says(error.value, *words)
    with pytest.raises(ValueError, match="uint8"):
        jax.jit(clip.encode_image)(images.astype(np.float32))


def test_configs_that_do_not_fit_are_refused() -> None:
    for config, embed_dim, words in (
        (VISION, 17, "no projection"),
        (dataclasses.replace(VISION, heads=3), 16, "heads"),
        (dataclasses.replace(VISION, layers=0), 16, "layers"),
        (dataclasses.replace(VISION, activation="tanh"), 16, "activation"),
    ):
        with pytest.raises(UserError) as error:
            config.check(embed_dim)
        assert words in str(error.value)
    with pytest.raises(UserError) as error:
        CLIPConfig.from_dict({**CONFIG.to_dict(), "vision": dict(kind="naflex", max_num_patches=0)})
    assert "max_num_patches" in str(error.value)


def test_flops_are_those_of_every_product() -> None:
    n, p, w = 24, 4 * 4 * 3, 16
    embedding = 2 * n * p * w + 2 * n * 16 * w
    block = 2 * n * w * 4 * w + 2 * 2 * n * n * w + 2 * 2 * n * w * 32
    pool = 2 * w * w + 2 * n * w * 2 * w + 2 * 2 * n * w + 2 * w * w + 2 * 2 * w * 32
    assert VISION.flops(16) == embedding + 2 * block + pool


def test_the_square_picture_gives_the_image_size() -> None:
    for count in (1, 8, 9, 255, 256):
        budget = PatchBudget(16, count)
        assert math.prod(budget.size_for(500, 500)) == budget.side**2
