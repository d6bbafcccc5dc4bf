"""The Swin Transformer: windows, shifts, sizes, training, rematerialisation, half precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
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
from clip_jax.models.model_config import CLIPConfig, TextConfig
from clip_jax.models.swin import from_windows, relative_positions, shifted_mask, to_windows
from clip_jax.models.swin_configs import SwinConfig
from clip_jax.weights import arrays
from clip_jax.weights.tensor_writing import write_safetensors
from clip_jax.weights.tensors import open_tensors

TEXT = TextConfig(vocab_size=50, context_length=8, width=16, layers=1, heads=2)
VISION = SwinConfig(32, 4, 16, (2, 4), 8, 4)
CONFIG = CLIPConfig(12, "gelu", vision=VISION, text=TEXT)


def images(rows: int = 3, size: int = 32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), np.uint8))


def changed(**values: Any) -> CLIPConfig:
    return dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, **values))


def test_the_base_has_the_papers_size_and_flops():
    """88 million parameters and 15.4 billion multiplications, with 1,000 classes (table 1)."""
    vision: Any = dataclasses.replace(
        TOWERS["swin_base_patch4_window7_224"],  # type: ignore[type-var]
        projection="linear",
        projection_bias=True,
    )
    model = abstract_model(CLIPConfig(1000, vision=vision, text=TEXT))
    assert round(parameter_count(model.vision) / 1e6) == 88
    assert vision.flops(1000) / 2e9 == pytest.approx(15.4, abs=0.1)


def test_windows_are_squares_of_the_image_and_come_back():
    x = jnp.arange(2 * 16.0).reshape(2, 4, 4, 1)
    windows = to_windows(x, 2)
    assert windows.shape == (8, 4, 1)
    np.testing.assert_array_equal(windows[1, :, 0], [2, 3, 6, 7])
    np.testing.assert_array_equal(from_windows(windows, 4, 2), x)


def test_rows_of_the_table_tell_the_differences_of_places():
    index = relative_positions(2)
    assert index.shape == (4, 4) and set(np.diag(index)) == {4}  # of nine: no difference
    assert len(np.unique(index)) == 9
    assert index[0, 1] == index[2, 3] == 3  # the key is a column to the right
    assert index[3, 0] == 8 and index[0, 3] == 0


def test_a_shifted_window_hides_what_was_not_beside_it():
    mask = shifted_mask(4, 2, 1)
    assert mask.shape == (4, 4, 4)
    assert mask[0].all()
    columns = np.tile([0, 1], 2)
    np.testing.assert_array_equal(mask[1], columns[:, None] == columns)
    np.testing.assert_array_equal(mask[3], np.eye(4, dtype=bool))


def test_only_shifted_windows_pass_features_from_one_window_to_another():
    """A corner sees its own window; a place at four corners sees all four windows."""
    model = CLIP(changed(layers=(2,), width=12, head_width=6), rngs=nnx.Rngs(0))

    @jax.jit
    def by_pixel(image: jax.Array, place: jax.Array) -> jax.Array:
        def feature(image: jax.Array) -> jax.Array:
            return model.vision.features_and_grid(image)[1][0, place].sum()

        return jax.grad(feature)(image)[0]

    def reached(place: int) -> np.ndarray:
        gradient = np.abs(by_pixel(images(1) / 255, jnp.asarray(place))).max(-1)
        return gradient.reshape(8, 4, 8, 4).max((1, 3)) > 0  # by patch

    corner = reached(0)
    assert corner[:4, :4].all() and corner.sum() == 16
    assert reached(3 * 8 + 3).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(image_size=48), "image_size=48 is no multiple of 32"),
        (dict(layers=(2, 3)), "must be even"),
        (dict(layers=(2, 0)), "layers=0"),
        (dict(layers=()), "1 to 8 stages"),
        (dict(head_width=5), "head_width=5 does not divide"),
        (dict(projection="none"), "embed_dim=12 must be the 32 features"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        changed(**change)


def test_larger_images_have_more_windows_of_the_same_parameters():
    params, stats = variables(CLIP(CONFIG, rngs=nnx.Rngs(0)))
    assert VISION.resize_positions(params["vision"], 64) is params["vision"]
    larger = nnx.merge(nnx.graphdef(abstract_model(changed(image_size=64))), params, stats)
    assert larger.encode_image(images(size=64)).shape == (3, 12)


def test_tables_that_older_files_hold_are_left_out(tmp_path: Path):
    """timm once saved the indices of positions and the masks of shifted windows."""
    before = variables(CLIP(CONFIG, rngs=nnx.Rngs(0)))
    tensors = arrays.to_tensors(before, CONFIG, "open_clip")
    block = "visual.trunk.layers.0.blocks.1"
    tables = {
        f"{block}.attn.relative_position_index": relative_positions(4),
        f"{block}.attn_mask": np.where(shifted_mask(8, 4, 2), 0, -100).astype(np.float32),
    }
    assert not tables.keys() & tensors.keys()
    write_safetensors(tmp_path / "old.safetensors", {**tensors, **tables})
    with open_tensors(tmp_path / "old.safetensors") as old:
        after = arrays.to_variables(old, CONFIG, "open_clip")
    jax.tree.map(np.testing.assert_array_equal, before[0], after[0])


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
    model = CLIP(CONFIG, rngs=nnx.Rngs(0))
    half = nnx.merge(nnx.graphdef(abstract_model(CONFIG, "bfloat16")), *variables(model))
    a, b = (m.encode_image(images(), normalized=True) for m in (model, half))
    assert float(jnp.sum(a * b, axis=-1).min()) > 0.999
