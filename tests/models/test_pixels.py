"""What `encode_image` is given: taken with the right answer, or refused in one line."""

from __future__ import annotations

import io
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.errors import GuessedWarning, UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import MEAN, STD, CLIPConfig, TextConfig, VisionConfig
from support import picture, says

SMALL: dict[str, Any] = dict(width=16, layers=1, heads=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
NORMALIZED = ((PIXELS / 255 - MEAN) / STD).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> CLIP:
    config = CLIPConfig(
        12,
        vision=VisionConfig(image_size=16, patch_size=8, **SMALL),
        text=TextConfig(vocab_size=50, context_length=8, **SMALL),
    )
    return CLIP(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "pixels",
    [
        *(PIXELS.astype(t) for t in (np.uint8, np.int16, np.int32, np.int64)),
        PIXELS.astype(np.uint16),
        jnp.asarray(PIXELS),
        jnp.asarray(PIXELS, jnp.int32),
        list(PIXELS),
        PIXELS.tolist(),
        NORMALIZED,
        NORMALIZED.astype(np.float64),
        jnp.asarray(NORMALIZED),
    ],
)
def test_the_same_pixels_have_the_same_features(model: CLIP, pixels: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuessedWarning)
        features = model.encode_image(pixels, normalized=True)
    expected = model.encode_image(PIXELS, normalized=True)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_integers_inside_a_program_are_pixels_too(model: CLIP) -> None:
    encode = jax.jit(lambda x: model.encode_image(x, normalized=True))
    expected = model.encode_image(PIXELS, normalized=True)
    np.testing.assert_allclose(encode(PIXELS.astype(np.int32)), expected, atol=1e-5)


def test_tensors(model: CLIP) -> None:
    torch = pytest.importorskip("torch")
    expected = model.encode_image(PIXELS)
    np.testing.assert_array_equal(model.encode_image(torch.from_numpy(PIXELS.copy())), expected)
    with pytest.raises(UserError) as error:
        model.encode_image(torch.from_numpy(PIXELS.copy()).permute(0, 3, 1, 2))
    assert says(error.value, "permute(0, 2, 3, 1)")


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (PIXELS.astype(np.float32), ["not normalised", "astype('uint8')"]),
        (PIXELS.astype(np.int32) * 2, ["integers from", "0…255"]),
        (PIXELS.astype(np.int32) - 1, ["integers from -1"]),
        (PIXELS > 9, ["bool"]),
        (PIXELS.astype(complex), ["complex"]),
        (NORMALIZED * np.nan, ["nan"]),
        (PIXELS[0], ["image[None]"]),
        (PIXELS.transpose(0, 3, 1, 2), ["transpose(0, 2, 3, 1)"]),
        (np.concatenate([PIXELS, PIXELS[..., :1]], -1), ["fourth channel"]),
        (PIXELS[:, :8], ["(2, 8, 16, 3)", "(16, 16, 3)"]),
        ([PIXELS[0], PIXELS[0, :8]], ["list"]),
        (np.array("cat.png"), ["()"]),
        ("cat.png", ["str holds no pixels", "preprocess"]),
        ("http://localhost/cat.png", ["str holds no pixels"]),
        (b"bytes", ["bytes holds no pixels"]),
        (io.BytesIO(b"x"), ["BytesIO"]),
        (picture(), ["Image holds no pixels"]),
        ((p for p in PIXELS), ["generator holds no pixels"]),
        (None, ["NoneType"]),
    ],
)
def test_a_value_that_is_not_a_batch_of_pixels_is_a_one_line_error(
    model: CLIP, pixels: Any, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        model.encode_image(pixels)
    assert says(error.value, *words)


def test_pixels_scaled_to_one_are_reported(model: CLIP) -> None:
    with pytest.warns(GuessedWarning, match="taken for normalised"):
        model.encode_image((PIXELS / 255).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_image(np.zeros((1, 16, 16, 3), np.float32))
