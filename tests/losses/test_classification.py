"""Supervised classification: the loss by hand, on any mesh, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from recipes import EIGHT, flat, recipe_of

from clip_jax.distributed.global_batch import global_batch
from clip_jax.errors import UserError
from clip_jax.losses.classification import Classification
from clip_jax.models.classifier import ClassifierConfig
from clip_jax.models.clip import CLIP
from clip_jax.training import train_step as step_lib
from steps import TINY, batch

LABELS = ("a", "b", "c", "d", "e")
MODEL = dataclasses.replace(TINY, heads=(("classifier", ClassifierConfig(LABELS)),))
KEYS = {"objective.name": "classification", "data.label": "label"}


def rows(seed: int = 0) -> dict[str, np.ndarray]:
    label = np.random.default_rng(seed).integers(0, len(LABELS), 16, np.int32)
    return {**batch(16, seed), "label": label}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_of_scaled_features(smoothing: float) -> None:
    model, data = CLIP(MODEL, rngs=nnx.Rngs(0)), rows()
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(16, 5)), rng.normal(size=5)
    model.heads.classifier.kernel[...] = kernel.astype(np.float32)
    model.heads.classifier.bias[...] = bias.astype(np.float32)
    objective = Classification(smoothing)
    features = objective.features(model, data, jax.random.split(jax.random.key(0), 16))
    loss, metrics = objective.loss(features, model, data)
    x = np.asarray(model.encode_image(data["image"], normalized=True), np.float64)
    logits = x @ kernel / 0.07 + bias
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(5)[data["label"]] + smoothing / 5
    np.testing.assert_allclose(loss, -(targets * log_shares).sum(axis=1).mean(), rtol=1e-5)
    assert metrics["accuracy"] == np.mean(logits.argmax(axis=1) == data["label"])


@functools.cache
def one_device() -> tuple[list[float], list[dict[str, np.ndarray]]]:
    return trained(dict(data=1))


def trained(
    shape: dict[str, int], accumulate: int = 1
) -> tuple[list[float], list[dict[str, np.ndarray]]]:
    """The losses of four steps on one batch, and the parameters before and after."""
    recipe = recipe_of(MODEL, shape, accumulate, keys=KEYS)
    state = step_lib.init_state(MODEL, recipe.optimizer, 0, recipe.mesh, recipe.state_options)
    step = step_lib.compile_step(recipe.train_step, recipe.state_like, recipe.mesh)
    values, before = [], flat(jax.device_get(state.params))
    for _ in range(4):
        state, metrics = step(state, global_batch(rows(), recipe.mesh))
        values.append(float(metrics["loss"]))
    return values, [before, flat(jax.device_get(state.params))]


def test_it_is_the_same_on_any_mesh_and_in_parts() -> None:
    one, _ = one_device()
    assert one[0] == pytest.approx(np.log(5), rel=1e-6), "the kernel starts at zero"
    assert one[3] < one[2] < one[1] < one[0]
    for shape, accumulate in ((dict(data=1), 4), (EIGHT, 1)):
        np.testing.assert_allclose(trained(shape, accumulate)[0], one, rtol=2e-5)


def test_what_it_does_not_use_stays_bit_for_bit_in_spite_of_weight_decay() -> None:
    recipe = recipe_of(MODEL, keys=KEYS)
    assert recipe.config.optimizer.freeze == "text,logit_scale"
    _, (before, after) = one_device()
    for name, value in after.items():
        unused = name.startswith("text/") or name == "logit_scale"
        assert np.array_equal(value, before[name]) == unused, name
    state = flat(recipe.state_like.opt_state)
    assert any("heads/classifier/kernel" in name for name in state)
    assert not any("text/" in name for name in state)


def test_beside_another_objective_everything_learns() -> None:
    mix = {"objective.mix": {"contrastive": 1.0, "classification": 0.5}, "data.label": "label"}
    recipe = recipe_of(MODEL, keys=mix)
    assert recipe.groups is None and set(recipe.batch_like(8)) == {"image", "tokens", "label"}
    keys = mix | {"lora.rank": 2}
    adapted = recipe_of(MODEL, keys=keys)
    assert adapted.groups is not None
    learning = set(flat(adapted.groups.trainable(adapted.state_like.params)))
    assert {name.rpartition("/")[2] for name in learning} == {"lora_a", "lora_b", "kernel", "bias"}
    assert {n for n in learning if "lora" not in n} == {
        f"heads/classifier/{name}" for name in ("kernel", "bias")
    }


def test_without_classes_it_says_what_to_give() -> None:
    with pytest.raises(UserError, match=r"config\.classifier\.labels"):
        recipe_of(keys=KEYS)


def test_its_flops_are_those_of_the_image_tower_and_the_classifier() -> None:
    recipe = recipe_of(MODEL, keys=KEYS)
    image, head = MODEL.vision.flops(MODEL.embed_dim), 2 * MODEL.embed_dim * len(LABELS)
    assert recipe.step_flops() == 3 * 16 * (image + head)
