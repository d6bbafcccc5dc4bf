"""Writing captions: the cache changes nothing, beams find the likeliest, draws repeat."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP
from clip_jax.models.decoder import Decoder, DecoderConfig
from clip_jax.models.generation import Generation, _is_likely, generate
from clip_jax.models.model_config import TextConfig
from steps import TINY, batch

WORDS = 5  # pad 0, start 1, end 4
OPTIONS = Generation(end_id=4, pad_id=0, start_id=1, max_tokens=5)


@pytest.fixture(scope="module")
def writer() -> tuple[Decoder, jax.Array]:
    """A decoder over five tokens with clear preferences, and the places of four images."""
    text = TextConfig(vocab_size=WORDS, context_length=8, width=16, layers=1, heads=2)
    head = ("decoder", DecoderConfig(width=16, layers=2, heads=2))
    model = CLIP(dataclasses.replace(TINY, text=text, heads=(head,)), rngs=nnx.Rngs(0))
    decoder = model.heads.decoder
    rng = np.random.default_rng(3)
    table = 0.7 * rng.normal(size=decoder.token_embedding.embedding.shape)
    decoder.token_embedding.embedding[...] = jnp.asarray(table, jnp.float32)
    _, grid = model.encode_grid(jnp.asarray(batch(4)["image"]))
    return decoder, grid


def shares(decoder: Decoder, grid: jax.Array, tokens: jax.Array) -> np.ndarray:
    """Log-probabilities of each token by the decoder without a cache."""
    logits = decoder(grid, tokens) @ decoder.output_kernel + decoder.output_bias[...]
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


def test_the_cache_gives_the_logits_of_the_whole(writer) -> None:
    decoder, grid = writer
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, WORDS, (4, 8)), jnp.int32)
    whole = decoder(grid, tokens) @ decoder.output_kernel + decoder.output_bias[...]
    memory = decoder.start_generation(grid, 8)
    for position in range(8):
        before = tokens[:, position - 1] if position else None
        logits, memory = decoder.next_logits(before, jnp.int32(position), memory)
        np.testing.assert_allclose(logits, whole[:, position], rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [1, None])
def test_greedy_takes_the_likeliest_token_each_time(writer, start: int | None) -> None:
    decoder, grid = writer
    options = dataclasses.replace(OPTIONS, start_id=start)
    written = np.asarray(generate(decoder, grid, options, jax.random.key(0)))
    tokens = np.zeros((4, 5), np.int32)
    done = np.zeros(4, bool)
    first = 0
    if start is not None:
        tokens[:, 0], first = start, 1
    for position in range(first, 5):
        best = shares(decoder, grid, jnp.asarray(tokens))[:, position].argmax(axis=1)
        tokens[:, position] = np.where(done, 0, best)
        done |= tokens[:, position] == 4
    np.testing.assert_array_equal(written, tokens)


def test_enough_beams_find_the_likeliest_of_all_captions(writer) -> None:
    decoder, grid = writer
    options = dataclasses.replace(OPTIONS, max_tokens=4, beams=125)
    written = np.asarray(generate(decoder, grid, options, jax.random.key(0)))
    candidates = []
    for words in itertools.product(range(WORDS), repeat=3):
        row = [1, *words]
        if 4 in words:
            end = row.index(4)
            if any(row[end + 1 :]):
                continue
            candidates.append((row, end))
        else:
            candidates.append((row, 3))
    for image in range(4):
        rows = jnp.asarray([row for row, _ in candidates], jnp.int32)
        grids = jnp.repeat(grid[image : image + 1], len(rows), axis=0)
        scores = shares(decoder, grids, rows)
        means = [
            np.mean([scores[i, j, row[j]] for j in range(1, end + 1)])
            for i, (row, end) in enumerate(candidates)
        ]
        assert candidates[int(np.argmax(means))][0] == written[image].tolist()


def test_draws_repeat_by_key_and_keep_to_the_likeliest(writer) -> None:
    decoder, grid = writer
    options = dataclasses.replace(OPTIONS, temperature=1.0)
    keys = [jax.random.key(seed) for seed in (0, 0, 1, 2, 3)]
    first, again, *others = (np.asarray(generate(decoder, grid, options, key)) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert any(not np.array_equal(first, other) for other in others)
    hot = dataclasses.replace(options, temperature=50.0)
    few = dataclasses.replace(hot, vocabulary=3)
    most = [int(generate(decoder, grid, x, keys[0]).max()) for x in (hot, few)]
    assert most[0] > 2 >= most[1]
    cold = dataclasses.replace(options, top_p=1e-6)
    greedy = generate(decoder, grid, OPTIONS, keys[0])
    np.testing.assert_array_equal(generate(decoder, grid, cold, keys[0]), greedy)


def test_top_p_keeps_the_smallest_set_with_the_share() -> None:
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.25, 0.15], [0.25, 0.25, 0.25, 0.25]]))
    for top_p, counts in ((0.3, (1, 2)), (0.6, (2, 3)), (0.8, (3, 4)), (1.0, (4, 4))):
        kept = np.asarray(_is_likely(logits, top_p))
        assert tuple(kept.sum(axis=1)) == counts
        assert kept[0, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 1},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e-30},
        {"top_p": 0.0},
        {"top_p": 1e-45},
        {"top_p": 0.9},
        {"beams": 0},
        {"beams": True},
        {"beams": 100_000},
        {"beams": 2, "temperature": 1.0},
    ],
)
def test_nonsense_is_one_line(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError) as caught:
        dataclasses.replace(OPTIONS, **wrong)
    assert all(f"{name}=" in str(caught.value) for name in wrong)
    options = {"max_tokens", "min_tokens", "top_p", "beams"} - set(wrong)
    assert not any(f"{name}=" in str(caught.value) for name in options)
