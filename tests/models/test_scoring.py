"""Labels scored by the log-probabilities of their prompts, against each prompt by itself."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.distributed import sharding
from clip_jax.errors import UserError
from clip_jax.inference.prompts import count_equal, label_prompts
from clip_jax.models import scoring
from clip_jax.models.clip import CLIP
from clip_jax.models.coca_configs import CoCaTextConfig, CoCaVisionConfig, MultimodalConfig
from clip_jax.models.decoder import DecoderConfig
from clip_jax.models.scoring import label_scores, scoring_head
from clip_jax.models.words import WordsConfig
from steps import TINY, batch
from support import Letters

LETTERS = Letters(8)
CONFIG = dataclasses.replace(
    TINY.with_text(vocab_size=128),
    heads=(("decoder", DecoderConfig(width=16, layers=2, heads=2)), ("words", WordsConfig())),
)
# of two prompts, with a common prefix, one that is another's prefix, repeated letters, too long
TEXTS = [["abc", "abd"], ["ab"], ["xaab"], ["abcdefgh"]]


@pytest.fixture(scope="module")
def model() -> CLIP:
    return nnx.jit(lambda: CLIP(CONFIG, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return batch(4, 0, CONFIG)["image"]


def log_softmax(logits: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))


def by_decoder(
    model: CLIP, images: np.ndarray, mean: bool, labels: list[list[str]] = TEXTS
) -> np.ndarray:
    """The score of each label by a forward pass for each prompt."""
    decoder = model.heads.decoder.writer(model.text)
    bias = 0 if decoder.output_bias is None else decoder.output_bias[...]
    _, grid = model.encode_grid(images)

    def of_prompt(text: str) -> np.ndarray:
        row = LETTERS(text, truncate=True)
        tokens = jnp.repeat(jnp.asarray(row), len(images), axis=0)
        shares = log_softmax(decoder.caption_features(grid, tokens) @ decoder.output_kernel + bias)
        end = int(np.flatnonzero(row[0])[-1]) + 1  # the end token is predicted, the start is not
        each = np.stack([shares[:, i, row[0, i]] for i in range(1, end)], axis=1)
        return each.mean(1) if mean else each.sum(1)

    return np.stack([np.mean([of_prompt(t) for t in texts], axis=0) for texts in labels], axis=1)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_a_decoder_scores_all_prompts_as_it_scores_each(
    model: CLIP, images: np.ndarray, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scoring_head(model.config) == "decoder"
    expected = by_decoder(model, images, score == "mean")
    prompts = label_prompts("decoder", LETTERS, TEXTS, score)
    assert len(prompts.tokens) == 1
    run = nnx.jit(label_scores)
    np.testing.assert_allclose(run(model, images, prompts), expected, rtol=2e-5)
    monkeypatch.setattr("clip_jax.inference.prompts._PREFIXES", 9)
    monkeypatch.setattr(scoring, "_MAX_BYTES", 2 * 16 * 128 * 4)
    chunks = label_prompts("decoder", LETTERS, TEXTS, score)
    assert len(chunks.tokens) > 1
    jax.clear_caches()
    np.testing.assert_allclose(run(model, images, chunks), expected, rtol=2e-5)


def test_the_decoder_of_coca_scores_so_too(images: np.ndarray) -> None:
    small = dict(width=16, layers=2, heads=2)
    vision = CoCaVisionConfig(
        image_size=16, patch_size=4, pool_queries=6, pool_width=16, pool_heads=2, **small
    )
    text = CoCaTextConfig(vocab_size=128, context_length=8, **small)
    heads = (("decoder", MultimodalConfig(**small)),)
    config = dataclasses.replace(TINY, vision=vision, text=text, heads=heads)
    model = nnx.jit(lambda: CLIP(config, rngs=nnx.Rngs(0)))()
    texts = [*TEXTS, ["a\0bc"], ["a\0\0\0d"]]  # with padding inside
    scores = nnx.jit(label_scores)(model, images, label_prompts("decoder", LETTERS, texts))
    np.testing.assert_allclose(scores, by_decoder(model, images, False, texts), rtol=2e-5)


def test_truncated_prompts_with_equal_tokens_are_counted() -> None:
    assert count_equal(LETTERS, [["abcdefgh", "abcdefghi"], ["abcdefghi", "abd"], ["abe"]]) == 1


def test_common_prefixes_are_one() -> None:
    prompts = label_prompts("decoder", LETTERS, [["abc"], ["abd"], ["abc"]])
    lengths = np.asarray(prompts.lengths[0])
    # the empty prefix, start, a, b, and c and d before the end
    assert sorted(lengths[lengths > 0]) == [1, 2, 3, 4, 4]


def test_words_score_by_the_mean_of_distinct_words(model: CLIP, images: np.ndarray) -> None:
    shares = log_softmax(model.heads.words(model.encode_image(images)))
    texts = [["abc", "abd"], ["ab"], ["xaab"]]
    expected = np.zeros((len(images), len(texts)))
    for j, prompts in enumerate(texts):
        for text in prompts:
            words = sorted({ord(c) for c in text})
            expected[:, j] += shares[:, words].mean(1) / len(prompts)
    config = dataclasses.replace(CONFIG, heads=CONFIG.heads[1:])
    assert scoring_head(config) == "words"
    bags = label_prompts("words", LETTERS, texts)
    own = CLIP(config, rngs=nnx.Rngs(0))
    nnx.update(own, nnx.state({"vision": model.vision, "heads": {"words": model.heads.words}}))
    np.testing.assert_allclose(nnx.jit(label_scores)(own, images, bags), expected, rtol=2e-5)
    with pytest.raises(UserError, match="no words"):
        label_prompts("words", LETTERS, [*texts, [""]])


def test_scores_are_the_same_on_any_mesh(model: CLIP, images: np.ndarray) -> None:
    prompts = label_prompts("decoder", LETTERS, TEXTS)
    mesh = sharding.make_mesh({"data": 4}, jax.devices()[:4])
    expected = nnx.jit(label_scores)(model, images, prompts)
    graph, state = nnx.split(model)

    @jax.jit
    def on_mesh(state: nnx.State, images: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return label_scores(nnx.merge(graph, state), images, prompts)

    where = sharding.replicated(mesh)
    placed = jax.device_put(jnp.asarray(images), sharding.batch_sharding(mesh))
    scores = on_mesh(jax.device_put(state, where), placed)
    np.testing.assert_allclose(jax.block_until_ready(scores), expected, rtol=2e-5)
