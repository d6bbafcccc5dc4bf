"""What `encode_text` is given: taken with the right answer, or refused in one line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax import tokenizers
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from support import says

SMALL: dict[str, Any] = dict(width=16, layers=1, heads=2)
TOKENS = np.array([[48, 3, 4, 49, 0, 0, 0, 0], [48, 7, 49, 0, 0, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def model() -> CLIP:
    config = CLIPConfig(
        12,
        vision=VisionConfig(image_size=16, patch_size=8, **SMALL),
        text=TextConfig(vocab_size=50, context_length=8, **SMALL),
    )
    return CLIP(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "tokens",
    [
        *(TOKENS.astype(t) for t in (np.int64, np.uint8, np.uint16)),
        jnp.asarray(TOKENS),
        TOKENS.tolist(),
        list(TOKENS),
        TOKENS[:, :4],
    ],
)
def test_the_same_tokens_have_the_same_features(model: CLIP, tokens: Any) -> None:
    expected = model.encode_text(TOKENS)
    np.testing.assert_allclose(model.encode_text(tokens), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("a cat", ["texts are not tokens", "tokenize"]),
        (["a cat", "a dog"], ["texts are not tokens"]),
        (None, ["texts are not tokens"]),
        ([[1, 2], [3]], ["no array"]),
        (TOKENS[0], ["(8,)", "tokens[None]"]),
        (TOKENS[None, None], ["(1, 1, 2, 8)"]),
        (TOKENS.astype(np.float32), ["float32"]),
        (TOKENS > 0, ["bool"]),
        (TOKENS + 1, ["1 to 50", "0 to 49", "clip_jax.load"]),
        (jnp.asarray(TOKENS - 1), ["-1 to 48"]),
        (np.zeros((1, 9), np.int32), ["9 tokens", "takes 8"]),
        (TOKENS[:, :0], ["0 tokens"]),
    ],
)
def test_invalid_tokens_are_refused(model: CLIP, tokens: Any, words: list[str]) -> None:
    for encode in (model.encode_text, lambda x: model(np.zeros((1, 16, 16, 3), np.uint8), x)):
        with pytest.raises(UserError) as caught:
            encode(tokens)
        assert says(caught.value, *words)


def test_tokens_of_a_traced_program_are_taken_as_they_are(model: CLIP) -> None:
    features = jax.jit(model.encode_text)(TOKENS)
    np.testing.assert_allclose(features, model.encode_text(TOKENS), atol=1e-5)
    assert model.encode_text(TOKENS[:0]).shape == (0, 12)


def test_longer_texts_are_the_mean_of_their_windows() -> None:
    tokenizer = tokenizers.load("clip", 8)
    texts = ["a cat", "a photo of a cat that sits on a mat and looks at a dog"]
    tokens = tokenizers.windows(tokenizer, texts)
    assert tokens.shape == (2, 3, 8) and (tokens[0, 1:] == -1).all()
    assert [len(tokenizer.encode(text)) for text in texts] == [2, 15]
    model = CLIP(
        CLIPConfig(
            12,
            vision=VisionConfig(image_size=16, patch_size=8, **SMALL),
            text=TextConfig(context_length=8, **SMALL),
        ),
        rngs=nnx.Rngs(0),
    )
    features = model.encode_text(tokens, normalized=True)
    short = model.encode_text(tokenizer(texts[:1]), normalized=True)
    np.testing.assert_allclose(features[0], short[0], atol=1e-6)
    each = model.encode_text(tokens[1], normalized=True)
    mean = each.mean(0)
    np.testing.assert_allclose(model.encode_text(tokens)[1], mean, atol=1e-6)
    np.testing.assert_allclose(features[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(model.encode_text)(tokens), model.encode_text(tokens), atol=1e-6
    )
    with pytest.raises(UserError, match="no first window"):
        model.encode_text(np.full((1, 2, 8), -1))
