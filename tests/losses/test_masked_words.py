"""Masked words: which are chosen, what they are predicted from, and the loss by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from losses.test_words import arrays, keys_of, log_softmax, rows
from recipes import flat, recipe_of

from clip_jax.errors import UserError
from clip_jax.losses import bag_of_words
from clip_jax.losses.bag_of_words import BagOfWords, is_word
from clip_jax.losses.masked_words import MaskedWords, mask_words, masked_count
from clip_jax.models.clip import CLIP
from clip_jax.models.masked_words import MaskedWordsConfig
from clip_jax.models.model_config import BertConfig, TextConfig
from clip_jax.models.words import WordsConfig
from clip_jax.training import train_step as step_lib
from jaxprs import count
from steps import TINY

OWN = MaskedWordsConfig(width=16, layers=1, text_layers=1, heads=2)
ATTENTION = dataclasses.replace(OWN, fusion="att_fc")
TOWER = dataclasses.replace(OWN, text_layers=0, mask_id=54)
BERT = BertConfig(56, 8, width=32, layers=1, heads=2, positions=8)


def config_of(head: MaskedWordsConfig, **changes: Any) -> Any:
    heads = (("masked_words", head), ("words", WordsConfig()))
    return dataclasses.replace(TINY, heads=heads, **changes)


@pytest.mark.parametrize("share", [0.0, 1e-5, 0.4])
def test_masks_are_a_function_of_the_row_and_hide_words_alone(share: float) -> None:
    data, keys = arrays(rows()), keys_of()
    tokens, span = data["tokens"], data["span"].at[3].set(1)  # a caption without words
    masked = mask_words(tokens, span, keys, share, TINY.text)
    last = mask_words(tokens[8:], span[8:], keys[8:], share, TINY.text)
    jax.tree.map(np.testing.assert_array_equal, last, jax.tree.map(lambda x: x[8:], masked))
    cut = mask_words(tokens[:, :7], span, keys, share, TINY.text)
    np.testing.assert_array_equal(cut.hidden, masked.hidden[:, :7])
    words = np.asarray(is_word(tokens, span))
    expected = np.maximum(np.ceil(share * words.sum(1) - 1e-4), np.minimum(words.sum(1), 1))
    np.testing.assert_array_equal(masked.counts.sum(1), expected)
    assert masked.positions.shape[1] == masked_count(share, 8)
    predicted = np.zeros_like(words)
    for row, positions, counts in zip(predicted, masked.positions, masked.counts, strict=True):
        row[np.asarray(positions)[np.asarray(counts) > 0]] = True
    assert not (predicted & ~words).any() and not (masked.hidden & ~predicted).any()
    same = np.asarray(masked.tokens == tokens)
    assert same[~predicted].all()
    if not share:
        np.testing.assert_array_equal(masked.hidden, predicted)


def test_a_share_masks_replaces_and_leaves_words_by_the_rule() -> None:
    tokens = jnp.full((400, 20), 7)
    span = jnp.tile(jnp.array([0, 20]), (400, 1))
    text = TextConfig(vocab_size=10_000, context_length=20)
    masked = mask_words(tokens, span, keys_of(400), 0.5, text)
    hidden, replaced = np.mean(masked.hidden), np.mean(masked.tokens != tokens)
    np.testing.assert_allclose([hidden, replaced], [0.5 * 0.85, 0.5 * 0.1], atol=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("head", [OWN, ATTENTION])
def test_the_loss_is_the_mean_over_masked_words_plus_that_of_the_tags(head: Any) -> None:
    model, data = CLIP(config_of(head), rngs=nnx.Rngs(0)), arrays(rows())
    objective, keys = MaskedWords(share=0.4, tag_weight=0.5), keys_of()
    loss, metrics = objective.loss(objective.features(model, data, keys), model, data)
    masked = mask_words(data["tokens"], data["span"], keys, 0.4, TINY.text)
    text = jnp.arange(8) <= data["span"][:, 1:]
    module, (_, grid) = model.heads.masked_words, model.encode_grid(data["image"], key=keys)
    encoded = module.text(masked.tokens, masked.hidden, text)
    shares = log_softmax(module.output(module(grid, encoded, text, masked.positions)))
    each, hits = [], []
    for i, j in zip(*np.nonzero(np.asarray(masked.counts)), strict=True):
        word = data["tokens"][i, masked.positions[i, j]]
        each.append(-shares[i, j, word])
        hits.append(shares[i, j].argmax() == word)
    assert float(metrics["word_loss"]) == pytest.approx(np.mean(each), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(hits))
    bag = BagOfWords()
    tags, _ = bag.loss(bag.features(model, data, keys), model, data)
    assert float(loss) == pytest.approx(np.mean(each) + 0.5 * float(tags), rel=1e-5)


@pytest.mark.parametrize("head", [OWN, ATTENTION])
def test_a_masked_word_is_predicted_from_the_text_and_the_image(head: Any) -> None:
    model, data = CLIP(config_of(head), rngs=nnx.Rngs(0)), arrays(rows())
    module, (_, grid) = model.heads.masked_words, model.encode_grid(data["image"])
    tokens, text = data["tokens"], jnp.arange(8) <= data["span"][:, 1:]
    hidden, positions = jnp.arange(8)[None] == jnp.full((16, 1), 2), jnp.full((16, 1), 2)

    @jax.jit
    def result(grid: Any, tokens: Any) -> Any:
        return module(grid, module.text(tokens, hidden, text), text, positions)

    first = result(grid, tokens)
    np.testing.assert_array_equal(first, result(grid, tokens.at[:, 2].set(30)))
    padding = jnp.where(text, tokens, 9)
    np.testing.assert_array_equal(first, result(grid, padding))
    for other in (result(jnp.roll(grid, 1, axis=0), tokens), result(grid, tokens.at[:, 1].set(30))):
        assert np.asarray(first != other).any(axis=-1).all()


def keys_for(**more: Any) -> dict[str, Any]:
    head = {"width": 16, "layers": 1, "text_layers": 1, "heads": 2, **more}
    return {"objective.name": "masked_words", "model.heads": {"masked_words": head}}


def test_a_frozen_text_encoder_learns_nothing() -> None:
    whole = recipe_of(TINY, keys=keys_for())
    recipe = recipe_of(TINY, keys=keys_for(), freeze="heads.masked_words.text")
    group = {"pattern": "heads/masked_words/text/.*", "frozen": True}
    by_group = recipe_of(TINY, keys=keys_for(), groups=(group,))
    names = [
        {n for n in flat(r.state_like.opt_state) if "masked_words/text/" in n}
        for r in (whole, recipe, by_group)
    ]
    assert names[0] and not names[1] and not names[2]
    assert any("masked_words/output" in n for n in flat(recipe.state_like.opt_state))


@pytest.mark.slow
def test_a_frozen_bert_encodes_the_captions() -> None:
    config = dataclasses.replace(TINY, text=BERT)
    keys = keys_for(text_layers=0, mask_id=54)
    recipe = recipe_of(config, keys=keys, freeze="text", accumulate=2)
    assert recipe.objective.text_tower
    state = step_lib.init_state(recipe.architecture, recipe.optimizer, 0, recipe.mesh)
    before = jax.device_get(flat(state.params))
    step = step_lib.compile_step(recipe.train_step, recipe.state_like, recipe.mesh)
    losses = []
    for _ in range(4):
        state, metrics = step(state, arrays(rows(config)))
        losses.append(float(metrics["loss"]))
    assert losses[3] < losses[0]
    changed = {n for n, x in jax.device_get(flat(state.params)).items() if (x != before[n]).any()}
    assert not any(n.startswith("text/") for n in changed)
    assert any(n.startswith("heads/masked_words/tokens") for n in changed)
    learning = recipe_of(config, keys=keys)
    names = flat(learning.state_like.opt_state)
    assert any("text/transformer" in n for n in names)
    assert not any("text/pro" in n or "pooler" in n for n in names)


@pytest.mark.parametrize("head", [OWN, ATTENTION, TOWER])
def test_flops_of_the_head_are_those_of_its_products(head: Any) -> None:
    config = config_of(head, text=BERT)
    model, objective = CLIP(config, rngs=nnx.Rngs(0)), MaskedWords(0.4, 0.5)
    graph, state = nnx.split(model.heads)

    def forward(state: Any, grid: Any, tokens: Any, features: Any) -> Any:
        heads = nnx.merge(graph, state)
        module, text = heads.masked_words, jnp.ones((3, 8), bool)
        x = features if head is TOWER else module.text(tokens, text, text)
        positions = jnp.zeros((3, masked_count(0.4, 8)), jnp.int32)
        return module.output(module(grid, x, text, positions)), heads.words(jnp.zeros((3, 16)))

    grid, tokens = jnp.zeros((3, *config.vision.grid_shape())), jnp.zeros((3, 8), jnp.int32)
    traced = jax.make_jaxpr(forward)(state, grid, tokens, jnp.zeros((3, 8, 32)))
    assert count(traced).flops == objective.flops(config, 3)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"objective.options": {"share": 1.5}}, "options.share=1.5"),
        ({"objective.options": {"tags": 1}}, "options.tags"),
        (keys_for(fusion="mlp"), "masked_words.fusion='mlp'"),
        (keys_for(heads=3), "masked_words.heads=3"),
        (keys_for(text_layers=2000), "masked_words.text_layers=2000"),
        (keys_for(text_layers=0), "text_layers=0 needs a text tower"),
    ],
)
def test_mistakes_are_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_of(TINY, keys={"objective.name": "masked_words", **keys})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_mask_token_is_one_of_the_vocabulary() -> None:
    with pytest.raises(UserError, match=r"mask_id=-1 must be"):
        recipe_of(dataclasses.replace(TINY, text=BERT), keys=keys_for(text_layers=0))


def test_tags_need_their_head() -> None:
    assert MaskedWords.heads({"tag_weight": 0.5}).keys() == {"masked_words", bag_of_words.HEAD}
    assert MaskedWords.heads({"share": 0.5}).keys() == {"masked_words"}
