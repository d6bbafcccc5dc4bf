"""What a config's loss comes to."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clip_jax.errors import UserError
from clip_jax.losses.contrastive import softmax_loss
from clip_jax.losses.objectives import Contrastive
from clip_jax.models.clip import Output, normalize
from support import says


def output(bias=None, n=6):
    image, text = (normalize(jax.random.normal(jax.random.key(i), (n, 4))) for i in range(2))
    return Output(image, text, jnp.float32(20), bias)


TOKENS = jnp.array([[1, 5, 9], [1, 6, 9], [1, 5, 9], [1, 7, 9], [1, 8, 9], [1, 6, 9]], jnp.int32)


def test_pairs_of_one_caption_are_negatives_unless_they_are_masked():
    found = output()
    same, _ = Contrastive("dense")(found, {"tokens": TOKENS})
    ids = jnp.array([[0], [1], [0], [2], [3], [1]], jnp.uint32)
    masked, metrics = Contrastive("dense", mask_duplicates=True)(found, {"tokens": TOKENS})
    assert float(same) == pytest.approx(float(softmax_loss(*found[:3])[0]))
    assert float(masked) == pytest.approx(float(softmax_loss(*found[:3], ids=ids)[0]))
    assert float(masked) < float(same)
    assert float(metrics["logit_scale"]) == 20


def test_a_model_with_a_bias_is_asked_pair_by_pair():
    loss, metrics = Contrastive("dense")(output(jnp.float32(-10)), {"tokens": TOKENS})
    assert float(metrics["logit_bias"]) == -10
    assert float(loss) != float(Contrastive("dense")(output(), {"tokens": TOKENS})[0])


def test_what_cannot_be_had_is_said():
    with pytest.raises(UserError) as error:
        Contrastive("sideways")
    assert says(error.value, "config.loss.layout='sideways'", "auto, dense, blockwise, ring")
    smooth = Contrastive(label_smoothing=0.1)
    smooth.check(sigmoid=False)
    with pytest.raises(UserError) as error:
        smooth.check(sigmoid=True)
    assert says(error.value, "config.loss.label_smoothing=0.1", "logit_bias")


@pytest.mark.parametrize("option", dataclasses.fields(Contrastive), ids=lambda f: f.name)
def test_every_option_is_a_key_of_the_configs(option):
    from configs import common

    assert common.get_config().loss[option.name] == option.default
