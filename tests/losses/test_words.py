"""Predicting the words of captions: bags of words and captions, by hand and on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recipes import EIGHT, flat, recipe_of

from clip_jax import tokenizers
from clip_jax.distributed.global_batch import global_batch
from clip_jax.errors import UserError
from clip_jax.losses.bag_of_words import BagOfWords, distinct_words
from clip_jax.losses.captioning import Captioning, is_predicted, reversed_words
from clip_jax.models.clip import CLIP
from clip_jax.models.decoder import DecoderConfig
from clip_jax.models.model_config import CLIPConfig, EfficientNetConfig, ResNetConfig
from clip_jax.models.words import WordsConfig
from clip_jax.tokenizers.packing import word_span
from clip_jax.training import train_step as step_lib
from jaxprs import count
from steps import TINY, batch
from support import Letters

DECODER = DecoderConfig(width=16, layers=2, heads=2)
BOTH = dataclasses.replace(DECODER, both_ways=True)


def rows(config: CLIPConfig = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    """Captions of two to six words, with start 1, end 55 and padding 0."""
    data = batch(16, seed, config)
    rng = np.random.default_rng(seed)
    tokens = np.zeros_like(data["tokens"])
    spans = []
    for row in tokens:
        end = int(rng.integers(3, 8))
        row[0], row[1:end], row[end] = 1, rng.integers(2, 9, end - 1), 55
        spans.append((1, end))
    return {**data, "tokens": tokens, "span": np.array(spans, np.int32)}


def arrays(data: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in data.items()}


def with_head(name: str, head: Any, config: CLIPConfig = TINY) -> CLIPConfig:
    return dataclasses.replace(config, heads=((name, head),))


def keys_of(n: int = 16) -> jax.Array:
    return jax.random.split(jax.random.key(0), n)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_spans_of_tokenizers_with_and_without_start_and_end() -> None:
    clip = tokenizers.load("clip", 8)
    full = clip("a b c d e f g h i j", truncate=True)[0]
    assert word_span(clip("a cat")[0], clip).tolist() == [1, 3]
    assert word_span(full, clip).tolist() == [1, 7]
    assert word_span(clip("")[0], clip).tolist() == [1, 1]
    letters = Letters(6)
    assert word_span(letters("ab")[0], letters).tolist() == [1, 3]
    siglip = tokenizers.load("siglip:tests/golden/siglip.model", 16)
    words = siglip.encode("two words")
    assert word_span(siglip("two words")[0], siglip).tolist() == [0, len(words)]


def test_distinct_words_leave_out_repetitions_and_specials() -> None:
    tokens = jnp.array([[1, 5, 6, 5, 55, 0, 0], [5, 5, 5, 7, 0, 0, 0]])
    span = jnp.array([[1, 4], [0, 4]])
    expected = [[0, 1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(distinct_words(tokens, span), np.array(expected, bool))


def test_bag_of_words_is_the_mean_of_the_distinct_words() -> None:
    model, data = CLIP(with_head("words", WordsConfig()), rngs=nnx.Rngs(0)), rows()
    data["tokens"][3, 1:], data["span"][3] = 0, (1, 1)  # a caption without words
    objective, given = BagOfWords(), arrays(data)
    loss, _ = objective.loss(objective.features(model, given, keys_of()), model, given)
    head = model.heads.words
    x = np.asarray(model.encode_image(data["image"]), np.float64)
    shares = log_softmax(x @ np.asarray(head.kernel[...], np.float64) + head.bias[...])
    each = [
        -np.mean([shares[i, w] for w in set(data["tokens"][i, 1:end])])
        for i, (_, end) in enumerate(data["span"])
        if i != 3
    ]
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    logits = model.heads.words(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(log_softmax(np.asarray(logits, np.float64)), shares, atol=1e-5)


def test_captions_are_reversed_between_start_and_end() -> None:
    tokens = jnp.array([[1, 5, 6, 7, 55, 0], [4, 5, 0, 0, 0, 0]])
    span = jnp.array([[1, 4], [0, 2]])
    back = reversed_words(tokens, span)
    np.testing.assert_array_equal(back, [[1, 7, 6, 5, 55, 0], [5, 4, 0, 0, 0, 0]])
    np.testing.assert_array_equal(reversed_words(back, span), tokens)
    predicted = [[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(is_predicted(tokens, span), np.array(predicted, bool))


@functools.cache
def captioner(both_ways: bool = False) -> CLIP:
    return CLIP(with_head("decoder", BOTH if both_ways else DECODER), rngs=nnx.Rngs(0))


def test_a_token_depends_on_the_image_and_on_the_tokens_before_it_alone() -> None:
    model, data = captioner(), arrays(rows())
    _, grid = model.encode_grid(data["image"])
    hidden = model.heads.decoder(grid, data["tokens"])
    other = data["tokens"].at[:, 4].set(30)
    changed = np.asarray(model.heads.decoder(grid, other) - hidden)
    assert not changed[:, :5].any() and changed[:, 5:].any(axis=-1).all()
    seen = np.asarray(model.heads.decoder(jnp.roll(grid, 1, axis=0), data["tokens"]) - hidden)
    assert seen.any(axis=-1).all()


def test_hidden_captions_depend_on_the_image_alone() -> None:
    model, data = captioner(), arrays(rows())
    _, grid = model.encode_grid(data["image"])
    some = jnp.arange(16) % 2 == 0
    decoder = model.heads.decoder
    hidden = decoder(grid, data["tokens"], parallel=some)
    other = decoder(grid, jnp.full_like(data["tokens"], 9), parallel=some)
    same = np.asarray(hidden == other).all(axis=(1, 2))
    np.testing.assert_array_equal(same, some)
    causal = decoder(grid, data["tokens"])
    np.testing.assert_allclose(hidden[1::2], causal[1::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_loss_is_the_mean_over_all_tokens(both_ways: bool) -> None:
    model, data = captioner(both_ways), arrays(rows())
    objective = Captioning(label_smoothing=0.1)
    loss, metrics = objective.loss(objective.features(model, data, keys_of()), model, data)
    _, grid = model.encode_grid(data["image"])
    decoder = model.heads.decoder

    def mean(tokens: jax.Array, **options: bool) -> float:
        hidden = np.asarray(decoder(grid, tokens, **options), np.float64)
        logits = hidden @ np.asarray(decoder.output_kernel, np.float64) + decoder.output_bias[...]
        shares = log_softmax(logits)
        losses = [
            -0.9 * shares[i, j, tokens[i, j]] - 0.1 * shares[i, j].mean()
            for i, (first, end) in enumerate(data["span"])
            for j in range(first, end + 1)
        ]
        return float(np.mean(losses))

    expected = mean(data["tokens"])
    if both_ways:
        back = mean(reversed_words(data["tokens"], data["span"]), backward=True)
        assert float(metrics["backward_loss"]) == pytest.approx(back, rel=1e-5)
        expected += back
    assert float(loss) == pytest.approx(expected, rel=1e-5)


SMALL = {"width": 16, "layers": 1, "text_layers": 1, "heads": 2}
OBJECTIVES = {
    "bag_of_words": {},
    "masked_words": {
        "model.heads": {"masked_words": SMALL},
        "objective.options": {"share": 0.4, "tag_weight": 0.5},
    },
    "captioning": {
        "model.heads": {"decoder": {"width": 16, "layers": 1, "heads": 2, "both_ways": True}},
        "objective.options": {"parallel": 0.5},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_are_the_same_on_any_mesh_and_in_parts(name: str) -> None:
    def trained(shape: dict[str, int], accumulate: int = 1) -> list[float]:
        keys = {"objective.name": name, **OBJECTIVES[name]}
        recipe = recipe_of(TINY, shape, accumulate, keys=keys)
        state = step_lib.init_state(
            recipe.architecture, recipe.optimizer, 0, recipe.mesh, recipe.state_options
        )
        state_names = [
            n.replace("heads/masked_words/text", "") for n in flat(recipe.state_like.opt_state)
        ]
        assert not any("text/" in name for name in state_names)
        step = step_lib.compile_step(recipe.train_step, recipe.state_like, recipe.mesh)
        losses = []
        for _ in range(4):
            state, metrics = step(state, global_batch(rows(), recipe.mesh))
            losses.append(float(jax.block_until_ready(metrics["loss"])))
        return losses

    one = trained(dict(data=1))
    assert one[3] < one[0]
    np.testing.assert_allclose(trained(EIGHT, accumulate=2), one, rtol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "vision",
    [
        TINY.vision,
        dataclasses.replace(TINY.vision, pool="mean"),
        dataclasses.replace(TINY.vision, pool="map", registers=2),
        dataclasses.replace(TINY.vision, registers=2),
        ResNetConfig(32, 4, (1, 1, 1, 1), 2),
        EfficientNetConfig(image_size=40, width=0.25, depth=0.1, divisor=4, projection=True),
        EfficientNetConfig(
            image_size=40, width=0.25, depth=0.1, divisor=4, projection=True, head=24, squeeze=0.0
        ),
    ],
)
def test_towers_give_places_beside_the_same_features(vision: Any) -> None:
    config = dataclasses.replace(TINY, vision=vision)
    model = CLIP(config, rngs=nnx.Rngs(0))
    image = jnp.asarray(batch(3, 0, config)["image"])
    features, grid = model.encode_grid(image)
    np.testing.assert_allclose(features, model.encode_image(image), rtol=1e-5, atol=1e-5)
    assert grid.shape == (3, *vision.grid_shape())


def test_flops_of_the_decoder_are_those_of_its_products() -> None:
    config = with_head("decoder", BOTH)
    model = CLIP(config, rngs=nnx.Rngs(0))
    decoder = model.heads.decoder
    graph, state = nnx.split(decoder)

    def forward(state: Any, grid: Any, tokens: Any) -> Any:
        decoder = nnx.merge(graph, state)
        ways = [
            decoder(grid, tokens, backward=way) @ decoder.output_kernel for way in (False, True)
        ]
        return ways

    grid, tokens = jnp.zeros((3, *config.vision.grid_shape())), jnp.zeros((3, 8), jnp.int32)
    traced = jax.make_jaxpr(forward)(state, grid, tokens)
    memory = 2 * 3 * 16 * 32 * 16  # is projected once in each direction here
    assert count(traced).flops == Captioning().flops(config, 3) + memory


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"objective.options": {"parallel": 2}}, "options.parallel=2"),
        ({"objective.options": {"smoothing": 0.1}}, "options.smoothing"),
        ({"model.heads": {"decoder": {"heads": 3}}}, "heads=3"),
        ({"model.heads": {"decoder": {"layers": 0}}}, "layers"),
        ({"model.heads": {"decoder": {"depth": 2}}}, "model.heads.decoder.depth"),
    ],
)
def test_mistakes_are_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_of(TINY, keys={"objective.name": "captioning", **keys})
    assert words in str(caught.value) and "\n" not in str(caught.value)
