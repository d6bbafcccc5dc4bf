"""Frozen parameters in the training step: no gradient, no optimizer state, the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recipes import EIGHT, flat, recipe_of, train

from clip_jax.distributed.global_batch import global_batch
from clip_jax.models.model_config import CLIPConfig, ResNetConfig
from clip_jax.training import train_step as step_lib
from steps import TINY, batch

RESNET = CLIPConfig(16, vision=ResNetConfig(32, 8, (2, 1, 1, 1), 4), text=TINY.text)


def assert_frozen(recipe, before, after):
    groups = recipe.groups
    for name, old in flat(before.params).items():
        new = flat(after.params)[name]
        learns = np.array([int(i) in groups.learning for i in np.ravel(groups.assignment[name])])
        if np.ndim(groups.assignment[name]):
            np.testing.assert_array_equal(new[~learns], old[~learns], err_msg=name)
            changed = [
                not np.array_equal(a, b) for a, b in zip(new[learns], old[learns], strict=True)
            ]
            assert all(changed), name
        elif not learns[0]:
            np.testing.assert_array_equal(new, old, err_msg=name)
        elif old.size > 1:
            assert not np.array_equal(new, old), name


@pytest.mark.parametrize("shape", [dict(data=1), EIGHT], ids=str)
def test_frozen_parameters_keep_their_bits_for_a_hundred_steps(shape):
    recipe = recipe_of(shape=shape, freeze="vision.blocks[:1],text.token_embedding,logit_scale")
    before, after, _ = train(recipe, 100)
    assert_frozen(recipe, before, after)


@pytest.mark.parametrize("options", [dict(accumulate=2), dict(shape=EIGHT)], ids=str)
def test_the_gradients_of_the_rest_are_those_without_freezing(options):
    eps = 1e-3  # the biases of keys have no gradient but rounding, which Adam would amplify
    one = train(recipe_of(freeze="text,vision.blocks[:1]", eps=eps, **options), 1)
    still = ({"pattern": "text/.*|vision/.*/0/.*", "learning_rate": 0.0},)
    slow = train(recipe_of(groups=still, eps=eps), 1)
    for name, leaf in flat(slow[1].params).items():
        np.testing.assert_allclose(
            flat(one[1].params)[name], leaf, rtol=2e-4, atol=2e-5, err_msg=name
        )


def test_batch_statistics_of_a_frozen_tower_stay_and_are_used():
    recipe = recipe_of(RESNET, freeze="vision")
    before, after, metrics = train(recipe, 3, RESNET)
    assert flat(before.stats).keys() == flat(after.stats).keys() and flat(after.stats)
    for name, old in flat(before.stats).items():
        np.testing.assert_array_equal(flat(after.stats)[name], old, err_msg=name)
    moving = recipe_of(RESNET, freeze="text")
    before, after, others = train(moving, 3, RESNET)
    assert any(
        not np.array_equal(flat(after.stats)[name], old) for name, old in flat(before.stats).items()
    )
    assert metrics["loss"] != others["loss"]


def test_the_loss_of_a_frozen_resnet_is_that_of_its_running_statistics():
    recipe = recipe_of(RESNET, freeze="vision")
    state = step_lib.init_state(RESNET, recipe.optimizer, 0, recipe.mesh, recipe.state_options)
    rows = batch(16, config=RESNET)
    model = nnx.merge(recipe.graph, *state.variables)
    image = model.encode_image(rows["image"], normalized=True)
    text = model.encode_text(rows["tokens"], normalized=True)
    expected, _ = recipe.objective.loss((image, text), model, rows)
    step = step_lib.compile_step(recipe.train_step, recipe.state_like, recipe.mesh)
    _, metrics = step(state, global_batch(rows, recipe.mesh))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_frozen_weights_in_bfloat16_cost_half_and_learn_the_same():
    full, half = (recipe_of(freeze="vision", frozen_weights=w) for w in ("float32", "bfloat16"))
    sizes = [
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(r.state_like.params))
        for r in (full, half)
    ]
    matrices = sum(
        leaf.size
        for name, leaf in flat(half.state_like.params).items()
        if leaf.dtype == jnp.bfloat16
    )
    assert sizes[0] - sizes[1] == 2 * matrices > 0
    before, after, metrics = train(half, 5)
    assert_frozen(half, before, after)
    assert abs(metrics["loss"] - train(full, 5)[2]["loss"]) < 0.02


def test_a_frozen_tower_has_no_backward_pass():
    def cost(**options):
        recipe = recipe_of(**options)
        return recipe.lower().compile().cost_analysis()["flops"]

    everything, text_only, image_only = cost(), cost(freeze="vision"), cost(freeze="text")
    forward = everything / 3
    # one tower forward only, the other forward and backward
    assert text_only < everything and image_only < everything
    assert text_only + image_only < everything + 1.25 * forward
