"""Text towers that are not CLIP's: BERT and SigLIP's, what they see of a row."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.model_config import BertConfig, CLIPConfig, TextConfig, VisionConfig
from clip_jax.tokenizers import packing

VISION = VisionConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2)
BERT = BertConfig(vocab_size=50, context_length=32, width=16, layers=2, heads=2, positions=40)
SIGLIP = TextConfig(
    vocab_size=50, context_length=8, width=16, layers=2, heads=2, causal=False, pool="last"
)


def model(text) -> CLIP:
    return CLIP(CLIPConfig(12, "gelu", vision=VISION, text=text), rngs=nnx.Rngs(0))


def rows(*lengths: int, width: int, pad: int = 0) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = np.full((len(lengths), width), pad, np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = rng.integers(2, 50, length)
    return tokens


def test_bert_does_not_see_padding_and_may_be_trimmed():
    bert, tokens = model(BERT), rows(5, 9, 3, width=32)
    features = bert.encode_text(tokens)
    trimmed = packing.trim(tokens, 16, pad_id=BERT.pad_id)
    assert trimmed.shape == (3, 16) and BERT.blind_to_padding
    np.testing.assert_allclose(bert.encode_text(trimmed), features, rtol=1e-5, atol=1e-6)
    changed = tokens.copy()
    changed[0, 2] = 49 if changed[0, 2] != 49 else 48
    assert not np.allclose(bert.encode_text(changed)[0], features[0], atol=1e-4)
    np.testing.assert_allclose(bert.encode_text(changed)[1:], features[1:], rtol=1e-5, atol=1e-6)


def test_the_mean_of_a_bert_is_that_over_its_text():
    mean, tokens = model(dataclasses.replace(BERT, pool="mean")), rows(5, 9, 3, width=32)
    tower, features = mean.text, mean.encode_text(tokens)
    np.testing.assert_allclose(mean.encode_text(tokens[:, :16]), features, rtol=1e-5, atol=1e-6)
    for row, length in zip(range(3), (5, 9, 3), strict=True):
        alone = tokens[row : row + 1, :length]
        x = tower.ln_embedding(
            tower.token_embedding(alone)
            + tower.positional_embedding[:length]
            + tower.segment_embedding[0]
        )
        expected = tower.projection(tower.transformer(x).mean(axis=1))
        np.testing.assert_allclose(features[row : row + 1], expected, rtol=1e-5, atol=1e-5)
    assert np.isfinite(mean.encode_text(np.zeros((1, 32), np.int32))).all()


def test_a_bert_may_have_an_activation_of_its_own():
    tokens = rows(6, width=32)
    own = dataclasses.replace(BERT, activation="quick_gelu")
    features = [model(text).encode_text(tokens) for text in (BERT, own)]
    assert not np.allclose(*features, atol=1e-4)
    named = dataclasses.replace(BERT, activation="gelu")
    np.testing.assert_array_equal(model(named).encode_text(tokens), features[0])


def test_bert_reads_both_ways():
    bert, tokens = model(BERT), rows(6, width=32)
    turned = tokens.copy()
    turned[0, 1:6] = turned[0, 5:0:-1]
    assert not np.allclose(bert.encode_text(tokens), bert.encode_text(turned), atol=1e-4)


def test_siglip_reads_its_padding_and_every_place():
    assert not SIGLIP.blind_to_padding
    siglip, tokens = model(SIGLIP), rows(4, width=8, pad=1)
    features = siglip.encode_text(tokens)
    for place in range(8):
        changed = tokens.copy()
        changed[0, place] = 49 if changed[0, place] != 49 else 48
        assert not np.allclose(siglip.encode_text(changed), features, atol=1e-5), place


def test_a_causal_tower_does_not_read_later_tokens():
    causal = dataclasses.replace(SIGLIP, causal=True, pool="end")
    clip, tokens = model(causal), rows(4, width=8)
    tokens[0, 3] = 49
    changed = tokens.copy()
    changed[0, 5] = 7
    np.testing.assert_allclose(
        clip.encode_text(changed), clip.encode_text(tokens), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("text", [BERT, SIGLIP])
def test_too_long_a_row_is_refused(text):
    with pytest.raises(UserError, match=f"takes {text.context_length}"):
        model(text).encode_text(np.zeros((1, text.context_length + 1), np.int32))
