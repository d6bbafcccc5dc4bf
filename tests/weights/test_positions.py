"""Tables of positions at other sizes, held against open_clip's."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import released
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.decoder import DecoderConfig
from clip_jax.models.head import Head
from clip_jax.models.masked_words import MaskedWordsConfig
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.models.positions import resize_line
from clip_jax.weights import arrays, positions
from support import says

WORDS = TextConfig(vocab_size=40, context_length=12, width=16, layers=1, heads=2)
VIT = CLIPConfig(
    12,
    vision=VisionConfig(image_size=28, patch_size=4, width=16, layers=1, heads=2),
    text=WORDS,
)
MAP = dataclasses.replace(
    VIT,
    embed_dim=16,
    vision=dataclasses.replace(VIT.vision, pool="map", ln_pre=False, projection=False),
)
RESNET = CLIPConfig(12, vision=ResNetConfig(96, 2, (1, 1, 1, 1), 2), text=WORDS)
MODELS = {"vit": VIT, "map": MAP, "resnet": RESNET}
IMAGE_TABLE = {
    "vit": "vision/positional_embedding",
    "map": "vision/positional_embedding",
    "resnet": "vision/pool/positional_embedding",
}


def random_params(config: CLIPConfig, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = variables(abstract_model(config))[0]
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(s.dtype), shapes)


def table(params: dict[str, Any], path: str) -> np.ndarray:
    return np.asarray(dict(arrays.flat(params))[path])


def theirs_of_images(embedding: np.ndarray, side: int, before: int) -> np.ndarray:
    torch, model = pytest.importorskip("torch"), released.open_clip().model
    added = np.zeros((1 - before, embedding.shape[1]), np.float32)  # it counts on a class token
    state = {"visual.positional_embedding": torch.tensor(np.concatenate([added, embedding]))}
    visual = SimpleNamespace(grid_size=(side, side))
    model.resize_pos_embed(state, SimpleNamespace(visual=visual))
    return state["visual.positional_embedding"].numpy()[1 - before :]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [32, 64, 128, 160, 256])
def test_images_as_open_clip_resizes_them(kind: str, size: int) -> None:
    config = MODELS[kind]
    unit = 32 if kind == "resnet" else 4
    params = random_params(config)
    before = 0 if kind == "map" else 1
    wanted = theirs_of_images(table(params, IMAGE_TABLE[kind]), size // unit, before)
    params_after, config_after = positions.resize_model(params, config, image_size=size)
    assert config_after.vision.image_size == size and config_after.text == config.text
    np.testing.assert_allclose(table(params_after, IMAGE_TABLE[kind]), wanted, atol=1e-5)


@pytest.mark.parametrize("length", [3, 7, 11, 13, 24, 77])
def test_texts_as_open_clip_resizes_them(length: int) -> None:
    torch, model = pytest.importorskip("torch"), released.open_clip().model
    params = random_params(VIT)
    state = {"positional_embedding": torch.tensor(table(params, "text/positional_embedding"))}
    wanted = SimpleNamespace(positional_embedding=torch.zeros(length, 16))
    model.resize_text_pos_embed(state, wanted)
    params_after, config_after = positions.resize_model(params, VIT, context_length=length)
    assert config_after.text.context_length == length and config_after.vision == VIT.vision
    ours = table(params_after, "text/positional_embedding")
    np.testing.assert_allclose(ours, state["positional_embedding"].numpy(), atol=1e-5)


def test_long_clip_keeps_twenty_positions_and_stretches_the_others_fourfold() -> None:
    """77 positions become 248; between two old ones lie three new ones (Long-CLIP, section 3.1)."""
    old = np.random.default_rng(0).standard_normal((77, 5)).astype(np.float32)
    wanted = [*old[:20]]
    for i in range(20, 77):
        first, second = (old[i], old[i + 1]) if i < 76 else (old[75], old[76])
        base = first if i < 76 else second
        wanted += [base + quarter / 4 * (second - first) for quarter in range(4)]
    new = np.asarray(resize_line(old, 248, 20))
    np.testing.assert_allclose(new, np.stack(wanted), atol=1e-6)


def test_positions_that_stay_leave_the_towers_of_a_model_consistent() -> None:
    params = random_params(VIT)
    before = table(params, "text/positional_embedding")
    params_after, config_after = positions.resize_model(params, VIT, None, 30, 4)
    after = table(params_after, "text/positional_embedding")
    assert config_after.text.context_length == len(after) == 30
    np.testing.assert_array_equal(after[:5], before[:5])
    for keep, length in ((11, 30), (4, 4)):
        with pytest.raises(UserError, match="keep_positions"):
            positions.resize_model(params, VIT, None, length, keep)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_resized_and_what_is_left(kind: str) -> None:
    config, params = MODELS[kind], random_params(MODELS[kind])
    params_after, config_after = positions.resize_model(params, config, 64, 20)
    shapes = jax.tree.map(lambda s: s.shape, variables(abstract_model(config_after))[0])
    assert jax.tree.map(np.shape, params_after) == shapes
    moved = {IMAGE_TABLE[kind], "text/positional_embedding"}
    before, after = dict(arrays.flat(params)), dict(arrays.flat(params_after))
    for path in before.keys() - moved:
        assert after[path] is before[path]
    if kind != "map":
        np.testing.assert_array_equal(after[IMAGE_TABLE[kind]][0], before[IMAGE_TABLE[kind]][0])


def test_the_same_size_is_the_same_arrays() -> None:
    params = random_params(VIT)
    for sizes in ((None, None), (28, 12)):
        params_after, config_after = positions.resize_model(params, VIT, *sizes)
        assert config_after == VIT and params_after is params


def test_a_constant_table_stays_constant_and_a_line_a_line() -> None:
    params = random_params(VIT)
    params["vision"]["positional_embedding"] = np.full((50, 16), 3.0, np.float32)
    ramp = np.repeat(np.arange(12, dtype=np.float32)[:, None], 16, axis=1)
    params["text"]["positional_embedding"] = ramp
    params_after, _ = positions.resize_model(params, VIT, 64, 24)
    np.testing.assert_allclose(table(params_after, "vision/positional_embedding"), 3.0, atol=1e-5)
    line = table(params_after, "text/positional_embedding")[:, 0]
    np.testing.assert_allclose(line[1:-1], np.arange(24)[1:-1] / 2 - 0.25, atol=1e-5)
    assert line[0] == 0 and line[-1] == 11


def test_narrow_tables_stay_narrow() -> None:
    params = jax.tree.map(lambda x: x.astype(np.float16), random_params(VIT))
    params_after, _ = positions.resize_model(params, VIT, 64, 20)
    assert table(params_after, "vision/positional_embedding").dtype == np.float16
    assert table(params_after, "text/positional_embedding").dtype == np.float16


def test_align_has_no_positions_that_hang_on_sizes() -> None:
    config = ARCHITECTURES["align-base"]
    params: dict[str, Any] = {"vision": {}, "text": {}}
    params_after, config_after = positions.resize_model(params, config, 600, 77)
    assert params_after == params
    assert (config_after.vision.image_size, config_after.text.context_length) == (600, 77)
    with pytest.raises(UserError) as caught:
        positions.resize_config(config, context_length=513)
    assert says(caught.value, "context_length=513", "positions=512")


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        ("vit", 30, ["patch_size=4", "image_size=30"]),
        ("vit", 3, ["patch_size=4", "image_size=3"]),
        ("resnet", 100, ["image_size=100", "multiple of 32"]),
    ],
)
def test_a_size_that_cannot_be(kind: str, size: int, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        positions.resize_model(random_params(MODELS[kind]), MODELS[kind], image_size=size)
    assert says(caught.value, *words)


def test_the_resized_model_runs() -> None:
    from flax import nnx

    params, config = positions.resize_model(random_params(VIT), VIT, 64, 20)
    model: CLIP = nnx.merge(nnx.graphdef(abstract_model(config)), params, {})
    images, tokens = np.zeros((1, 64, 64, 3), np.float32), np.ones((1, 20), np.int32)
    assert model(images, tokens).logits_per_image.shape == (1, 1)


def test_a_file_fits_or_its_first_difference_is_named() -> None:
    def other(**values: Any) -> CLIPConfig:
        return dataclasses.replace(VIT, **values)

    wide = other(text=dataclasses.replace(WORDS, width=32))
    large = other(vision=dataclasses.replace(VIT.vision, image_size=64))
    grey = other(vision=dataclasses.replace(VIT.vision, mean=(0.5,) * 3, patch_dropout=0.5))
    positions.check_fits(VIT, grey, "x.pt", False, "--resize")
    positions.check_fits(other(temperature=0.5), VIT, "x.pt", False, "--resize")
    positions.check_fits(large, VIT, "x.pt", True, "--resize")
    with pytest.raises(UserError) as caught:
        positions.check_fits(large, VIT, "x.pt", False, "--resize")
    assert says(caught.value, "x.pt", "model.vision.image_size=64", "28", "--resize")
    with pytest.raises(UserError) as caught:
        positions.check_fits(wide, VIT, "x.pt", True, "--resize")
    assert says(caught.value, "x.pt", "model.text.width=32", "16")


@pytest.mark.parametrize("head", [DecoderConfig(16, 1, 2), MaskedWordsConfig(width=16, heads=2)])
def test_heads_are_resized_with_the_texts(head: Head) -> None:
    config = dataclasses.replace(VIT, heads=(("head", head),))
    params_after, config_after = positions.resize_model(random_params(config), config, None, 20)
    shapes = jax.tree.map(lambda s: s.shape, variables(abstract_model(config_after))[0])
    assert jax.tree.map(np.shape, params_after) == shapes
