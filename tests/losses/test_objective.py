"""Tests objectives: the contrastive one, weighted sums, and the registry."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import steps
from clip_jax.config import typed
from clip_jax.errors import UserError
from clip_jax.losses.bag_of_words import BagOfWords
from clip_jax.losses.captioning import Captioning
from clip_jax.losses.contrastive import softmax_loss
from clip_jax.losses.contrastive.objective import Contrastive
from clip_jax.losses.masked_words import MaskedWords
from clip_jax.losses.objective import full_rows, unused_parts
from clip_jax.losses.registry import OBJECTIVES, make_objective
from clip_jax.losses.weighted import Weighted
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, Output, normalize
from clip_jax.models.model_config import CLIPConfig
from configs import common
from support import says


def model_output(bias=None, n=6):
    image, text = (normalize(jax.random.normal(jax.random.key(i), (n, 4))) for i in range(2))
    return Output(image, text, jnp.float32(20), bias)


TOKENS = jnp.array([[1, 5, 9], [1, 6, 9], [1, 5, 9], [1, 7, 9], [1, 8, 9], [1, 6, 9]], jnp.int32)


def test_pairs_with_equal_captions_are_negatives_unless_they_are_masked():
    output, batch = model_output(), {"tokens": TOKENS}
    unmasked, _ = Contrastive("dense").loss_of_output(output, batch)
    ids = jnp.array([[0], [1], [0], [2], [3], [1]], jnp.uint32)
    masking = Contrastive("dense", mask_duplicates=True)
    masked, metrics = masking.loss_of_output(output, batch)
    assert float(unmasked) == pytest.approx(float(softmax_loss(*output[:3])[0]))
    assert float(masked) == pytest.approx(float(softmax_loss(*output[:3], ids=ids)[0]))
    assert float(masked) < float(unmasked)
    assert float(metrics["logit_scale"]) == 20


def test_a_model_with_a_logit_bias_gets_the_sigmoid_loss():
    loss_of_output, batch = Contrastive("dense").loss_of_output, {"tokens": TOKENS}
    loss, metrics = loss_of_output(model_output(jnp.float32(-10)), batch)
    assert float(metrics["logit_bias"]) == -10
    assert float(loss) != float(loss_of_output(model_output(), batch)[0])


def test_a_wrong_layout_is_a_user_error():
    with pytest.raises(UserError) as error:
        Contrastive("sideways")
    assert says(error.value, "config.loss.layout='sideways'", "auto, dense, blockwise, ring")


@pytest.mark.parametrize(("key", "value"), [("label_smoothing", 0.1), ("image_weight", 0.75)])
def test_keys_of_the_softmax_with_a_bias_are_user_errors(key, value):
    for model in ("ViT-B/32", "siglip-b16"):
        c = common.get_config(model)
        c.loss[key] = value
        config, architecture = typed(c), CLIPConfig.from_dict(c.model.to_dict())
        if model == "ViT-B/32":
            assert make_objective(config, architecture) == Contrastive(**{key: value})
            continue
        with pytest.raises(UserError) as error:
            make_objective(config, architecture)
        assert says(error.value, f"config.loss.{key}={value}", "logit_bias")


@pytest.mark.parametrize("option", dataclasses.fields(Contrastive), ids=lambda f: f.name)
def test_every_option_is_a_config_key_with_the_same_default(option):
    assert common.get_config().loss[option.name] == option.default


def objective_from(architecture=None, **keys):
    c = common.get_config()
    with c.unlocked():
        c.objective.update(keys)
    config = typed(c)
    return make_objective(config, architecture or CLIPConfig.from_dict(config.model))


class CountingCalls(Contrastive):
    calls = 0

    def features(self, model, batch, keys):
        CountingCalls.calls += 1
        return super().features(model, batch, keys)


def test_a_mix_is_the_weighted_sum_and_shares_features():
    model, batch = CLIP(steps.TINY, rngs=nnx.Rngs(0)), steps.batch(4)
    keys = jax.random.split(jax.random.key(0), 4)
    mix = Weighted(
        {"a": CountingCalls(), "b": CountingCalls(label_smoothing=0.1)}, {"a": 1.0, "b": 2.5}
    )
    loss, metrics = mix.loss(mix.features(model, batch, keys), model, batch)
    assert CountingCalls.calls == 1, "objectives with the same `features` run the towers once"
    output = model(batch["image"], batch["tokens"], key=keys)
    a, b = (Contrastive(label_smoothing=x).loss_of_output(output, batch)[0] for x in (0.0, 0.1))
    assert float(loss) == pytest.approx(float(a) + 2.5 * float(b))
    assert float(metrics["b/loss"]) == pytest.approx(float(b))
    assert float(metrics["a/logit_scale"]) == pytest.approx(float(output.logit_scale))


def test_the_same_objective_with_other_options_has_features_of_its_own():
    def mixed(**options):
        return Weighted({"a": Captioning(), "b": Captioning(**options)}, {"a": 1.0, "b": 1.0})

    def number_of_features(mix):
        return len({mix._features_owner(name) for name in mix.objectives})

    assert number_of_features(mixed()) == 1
    assert number_of_features(mixed(parallel=1.0)) == number_of_features(mixed(label_smoothing=0.5))
    assert number_of_features(mixed(parallel=1.0)) == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "contrstive"}, ["config.objective.name=contrstive", "did you mean contrastive"]),
        ({"options": {"x": 1}}, ["config.objective.options={'x': 1}", "config.loss"]),
        ({"mix": {"contrastive": 0}}, ["config.objective.mix.contrastive.weight=0", "above 0"]),
        ({"mix": {"contrastive": "much"}}, ["config.objective.mix.contrastive.weight='much'"]),
        ({"mix": {"a": {"weight": 1}}}, ["config.objective.mix.a.name=a", "contrastive"]),
        ({"mix": {"contrastive": {"wieght": 1}}}, ["contrastive.wieght", "weight, name, options"]),
    ],
)
def test_a_wrong_objective_is_a_user_error(keys, words):
    with pytest.raises(UserError) as error:
        objective_from(**keys)
    assert says(error.value, *words)


def test_every_registered_objective_can_be_made_from_the_defaults():
    model = common.get_config().model.to_dict()
    model["heads"] = {"classifier": {"labels": ["a", "b"]}, "decoder": {}, "masked_words": {}}
    architecture = CLIPConfig.from_dict(model)
    for name in OBJECTIVES.names:
        made_for = ARCHITECTURES["coca_ViT-B-32"] if name == "coca" else architecture
        assert objective_from(made_for, name=name).flops(made_for, 8) > 0


def test_a_mix_freezes_and_trims_what_no_objective_needs():
    captioning = Captioning()
    masked = MaskedWords(text_tower=True)
    mix = Weighted({"a": captioning, "b": masked}, {"a": 1.0, "b": 1.0})
    both = set(unused_parts(mix))
    assert "text.pooler" in both and "logit_scale" in both and "text" not in both
    other = Weighted({"b": masked, "a": captioning}, {"a": 1.0, "b": 1.0})
    assert set(unused_parts(other)) == both
    assert not unused_parts(Weighted({"a": captioning, "b": Contrastive("dense")}, mix.weights))
    assert not full_rows(mix)
    assert full_rows(dataclasses.replace(mix, objectives={"a": Captioning(parallel=0.5)}))
    places = Captioning(pooling=("vision.pool",))
    unused = {"c": places, "d": MaskedWords(pooling=("vision.pool", "vision.projection"))}
    assert "vision.pool" in unused_parts(Weighted(unused, {}))
    assert "vision.pool" not in unused_parts(Weighted({**unused, "bag": BagOfWords()}, {}))
