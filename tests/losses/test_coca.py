"""CoCa's objective: both losses by one pass of each tower, on any mesh and in parts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recipes import EIGHT, recipe_of

from clip_jax.distributed.global_batch import global_batch
from clip_jax.errors import UserError
from clip_jax.losses.captioning import Captioning
from clip_jax.losses.coca import CoCa
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.losses.weighted import Weighted
from clip_jax.models.clip import CLIP, abstract_model, variables
from clip_jax.models.decoder import DecoderConfig
from clip_jax.training import flops
from clip_jax.training import train_step as step_lib
from jaxprs import count
from steps import COCA, TINY, batch
from support import says


def rows(n: int = 16, seed: int = 0) -> dict[str, Any]:
    """Captions of two to six words, with start 1, end 55 and padding 0."""
    data = batch(n, seed, COCA)
    rng = np.random.default_rng(seed)
    for row in data["tokens"]:
        end = int(rng.integers(3, 8))
        row[0], row[1:end], row[end], row[end + 1 :] = 1, rng.integers(2, 9, end - 1), 55, 0
    return data


@pytest.fixture(scope="module")
def model() -> CLIP:
    return CLIP(COCA, rngs=nnx.Rngs(0))


def test_the_loss_is_the_weighted_sum_of_both(model: CLIP) -> None:
    data, keys = jax.tree.map(jnp.asarray, rows()), jax.random.split(jax.random.key(0), 16)
    objective = CoCa(Contrastive("dense"))
    loss, metrics = objective.loss(objective.features(model, data, keys), model, data)
    output = model(data["image"], data["tokens"])
    contrastive, _ = Contrastive("dense").loss_of_output(output, data)
    _, grid = model.encode_grid(data["image"])
    _, words = model.text.features_and_words(jnp.asarray(data["tokens"]))
    hidden = np.asarray(model.heads.decoder(grid, words), np.float64)
    logits = hidden @ np.asarray(model.heads.decoder.kernel[...], np.float64)
    shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [
        -shares[i, j, token]
        for i, row in enumerate(data["tokens"].tolist())
        for j, token in enumerate(row[1:])
        if token
    ]
    np.testing.assert_allclose(metrics["captioning_loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(loss, contrastive + 2 * np.mean(losses), rtol=1e-5)

    half = nnx.merge(nnx.graphdef(abstract_model(COCA, "bfloat16")), *variables(model))
    rounded, _ = objective.loss(objective.features(half, data, keys), half, data)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, loss, rtol=1e-2)


def test_a_token_sees_itself_and_those_before_it_and_the_image(model: CLIP) -> None:
    data = rows(4)

    def hidden(image: Any, tokens: Any) -> np.ndarray:
        _, words = model.text.features_and_words(jnp.asarray(tokens))
        return np.asarray(model.heads.decoder(model.encode_grid(image)[1], words))

    before = hidden(data["image"], data["tokens"])
    other = data["tokens"].copy()
    other[:, 3] = 30
    after = hidden(data["image"], other)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before - after)[:, 3].max(axis=-1).all()
    assert (hidden(data["image"][::-1], data["tokens"]) != before).any(axis=-1).all()


@pytest.mark.slow
def test_steps_are_the_same_on_any_mesh_in_parts_and_recomputed() -> None:
    def trained(shape: dict[str, int], accumulate: int = 1, **keys: Any) -> list[float]:
        recipe = recipe_of(COCA, shape, accumulate, keys={"objective.name": "coca", **keys})
        state = step_lib.init_state(
            recipe.architecture, recipe.optimizer, 0, recipe.mesh, recipe.state_options
        )
        step = step_lib.compile_step(recipe.train_step, recipe.state_like, recipe.mesh)
        losses = []
        for _ in range(4):
            state, metrics = step(state, global_batch(rows(), recipe.mesh))
            losses.append(float(jax.block_until_ready(metrics["loss"])))
        return losses

    one = trained(dict(data=1))
    assert one[3] < one[0]
    options = {"remat": "full", "loss.layout": "ring"}
    np.testing.assert_allclose(trained(EIGHT, 2, **options), one, rtol=5e-5)


def features_flops(config: Any, objective: Any, **extra: Any) -> int:
    """FLOPs of an objective's features for three rows, in training."""
    model = CLIP(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    data = {**batch(3, 0, config), **extra}

    def features(state: Any, data: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 3)
        return objective.features(nnx.merge(graph, state), data, keys)

    return count(jax.make_jaxpr(features)(state, data)).flops


def test_flops_are_those_of_one_pass_of_each_tower() -> None:
    objective = CoCa(Contrastive("dense"))
    towers = sum(flops.forward(COCA))
    once = 2 * 6 * 16**2  # the queries' projection
    similarities = 2 * 3 * 3 * 16
    traced = features_flops(COCA, objective) + similarities - once
    assert traced == 3 * towers + objective.flops(COCA, 3)


@pytest.mark.slow
def test_a_mix_runs_the_image_tower_once() -> None:
    decoder = DecoderConfig(width=16, layers=1, heads=2)
    vision = dataclasses.replace(TINY.vision, pool="mean", patch_dropout=0.5)
    config = dataclasses.replace(TINY, vision=vision, heads=(("decoder", decoder),))
    parts: dict[str, Any] = {"contrastive": Contrastive("dense"), "captioning": Captioning()}
    mix = Weighted(parts, {"contrastive": 1.0, "captioning": 2.0})
    span = {"span": np.full((3, 2), 2, np.int32)}
    alone = [features_flops(config, part, **span) for part in parts.values()]
    image = 3 * flops.forward(config).image
    assert features_flops(config, mix, **span) == sum(alone) - image

    model, keys = CLIP(config, rngs=nnx.Rngs(0)), jax.random.split(jax.random.key(1), 3)
    data = jax.tree.map(jnp.asarray, {**batch(3, 0, config), **span})
    shared = mix.features(model, data, keys)
    for name, part in parts.items():
        for ours, single in zip(
            jax.tree.leaves(shared[name]),
            jax.tree.leaves(part.features(model, data, keys)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "keys", "words"),
    [
        (COCA, {"objective.options": {"captioning_weight": -1}}, ["captioning_weight=-1"]),
        (COCA, {"objective.options": {"label_smoothing": 0.1}}, ["label_smoothing", "config.loss"]),
        (COCA, {"objective.name": "captioning"}, ["captioning", "multimodal", "coca"]),
        (TINY, {}, ["coca_transformer", "transformer"]),
        (COCA, {"model.heads": {"decoder": {"kind": "decoder"}}}, ["multimodal", "decoder"]),
        (COCA, {"model.heads.decoder.width": 32}, ["width=32", "16"]),
        (COCA, {"model.vision.pool_heads": 3}, ["pool_heads=3"]),
        (COCA, {"model.vision.pool": "mean"}, ["pool='class'"]),
        (COCA, {"model.text.causal": False}, ["causal=True"]),
    ],
)
def test_mistakes_are_one_line(config: Any, keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        recipe_of(config, keys={"objective.name": "coca", **keys})
    assert says(caught.value, *words)
