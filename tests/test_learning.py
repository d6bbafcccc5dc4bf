"""A step here against a step of open_clip's, and what `benchmarks/learning.py` measures with."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import released
from benchmarks import learning_data, parity
from clip_jax import optim
from clip_jax.data.captions import Alternatives
from clip_jax.data.example import Pair
from clip_jax.losses import contrastive
from clip_jax.models.architectures import find_architecture
from clip_jax.models.clip import abstract_model, specs_of, variables
from clip_jax.weights import arrays
from clip_jax.weights.param_mapping import leaves
from support import Letters, encoded, picture
from tools import golden_models

SIZES = dict(
    patch_size=8, vision_width=32, vision_layers=2, text_width=32, text_layers=2, head_width=16,
    context_length=16, embed_dim=16, vocab_size=60,
)  # fmt: skip
TINY = {
    (tower, loss): parity.architecture(tower, loss, image_size=size, stages=(2, 1, 1, 1), **SIZES)
    for tower, size in (("vit", 16), ("rn", 32))
    for loss in ("softmax", "sigmoid")
}
HYPER = parity.Hyperparameters(batch_size=16, steps=20, warmup_steps=5)


def batches(model, steps, rows=16):
    rng, size = np.random.default_rng(0), model.vision.image_size
    for _ in range(steps):
        tokens = np.zeros((rows, 16), np.int32)
        for row, length in zip(tokens, rng.integers(2, 16, rows), strict=True):
            row[:length] = [*rng.integers(1, 59, length - 1), 59]
        yield {"image": rng.integers(0, 256, (rows, size, size, 3), np.uint8), "tokens": tokens}


@functools.cache
def ours(case, hyper):
    """Weights before, the loss of each step, and the weights after, by open_clip's names."""
    model = TINY[case]
    here = parity.Ours(model, hyper)
    before = parity.exported(model, here.variables)
    losses = [here.step(batch) for batch in batches(model, hyper.steps)]
    return before, np.array(losses), parity.exported(model, here.variables)


def theirs(case, hyper, before):
    """The loss of each step, and the weights after."""
    released.open_clip()
    trainer = parity.Theirs(TINY[case], hyper, before)
    losses = [trainer.step(batch) for batch in batches(TINY[case], hyper.steps)]
    return np.array(losses), trainer.tensors()


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (("vit", "softmax"), {}),
        (("vit", "sigmoid"), dict(schedule="constant", clip_norm=0.1)),
        pytest.param(("rn", "softmax"), {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_twenty_losses_from_equal_weights_and_batches_are_open_clips(case, options):
    released.open_clip()
    hyper = dataclasses.replace(HYPER, **options)
    before, losses, after = ours(case, hyper)
    expected, weights = theirs(case, hyper, before)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
    assert np.ptp(losses) > 0.1, "something was trained"
    assert after.keys() == weights.keys()
    if case[0] == "vit":  # a whole batch's statistics spread a rounding over all of a ResNet
        for name, array in after.items():
            np.testing.assert_allclose(array, weights[name], rtol=0, atol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [dict(warmup_steps=6), dict(weight_decay=0.1), dict(eps=1e-4)],
    ids=str,
)
def test_another_hyperparameter_shows(fault):
    released.open_clip()
    case = ("vit", "softmax")
    before, losses, _ = ours(case, HYPER)
    apart = np.abs(losses - theirs(case, dataclasses.replace(HYPER, **fault), before)[0])
    assert apart[0] < 1e-5, "before the first update nothing differs"
    assert apart.max() > 1e-4


@given(st.integers(0, 12), st.integers(1, 30), st.sampled_from(["cosine", "constant"]))
def test_the_rate_of_every_step_is_open_clips(warmup, rest, schedule):
    pytest.importorskip("open_clip_train")
    from open_clip_train import scheduler

    class Optimizer:
        param_groups = ()

    steps = warmup + rest
    if schedule == "cosine":
        theirs, final = scheduler.cosine_lr(Optimizer, 1e-3, warmup, steps), 0.0
    else:
        theirs, final = scheduler.const_lr(Optimizer, 1e-3, warmup, steps), 1e-3
    ours = optim.learning_rate(1e-3, warmup, steps, final)
    for step in range(steps):
        assert float(ours(step)) == pytest.approx(theirs(step), rel=1e-5, abs=1e-10)


def our_decays(model):
    """Of each of open_clip's parameters, by name, whether ours of the same numbers decays."""
    mask = dict(arrays.flat(optim.decay_mask(variables(abstract_model(model))[0], specs_of(model))))
    named = {leaf.path: leaf.tensors for leaf in leaves(model, "open_clip")}
    assert mask.keys() <= named.keys()
    return {name: decays for path, decays in mask.items() for name in named[path]}


@pytest.mark.parametrize("case", [("vit", "softmax"), ("rn", "softmax")])
def test_the_same_parameters_decay_as_in_open_clip(case):
    released.open_clip()
    theirs = parity.decays(parity.Theirs(TINY[case], HYPER).module)
    assert our_decays(TINY[case]) == theirs
    assert set(theirs.values()) == {True, False}


def test_only_siglips_probe_decays_in_open_clip_and_not_here():
    """open_clip tells gains and biases by their axes, and its probe has three, two of them 1."""
    theirs = parity.decays(golden_models.timm.open_clip_siglip(released.open_clip()).module)
    model = find_architecture("siglip-b16")
    small = dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, layers=2),
        text=dataclasses.replace(model.text, layers=2),
    )
    ours = our_decays(small)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == [
        "visual.trunk.attn_pool.latent"
    ]
    assert theirs["visual.trunk.attn_pool.latent"]


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_test_loss_is_the_objectives(sigmoid):
    rng = np.random.default_rng(0)
    image, text = unit(rng, 40, 8), unit(rng, 40, 8)
    batch_loss = learning_data.batch_loss(image, text, 9.0, -3.0 if sigmoid else 0.0, sigmoid)
    arrays = (jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32), jnp.asarray(9.0))
    loss = contrastive.sigmoid_loss if sigmoid else contrastive.softmax_loss
    expected, _ = loss(*arrays, *((jnp.asarray(-3.0),) if sigmoid else ()))
    assert batch_loss == pytest.approx(float(expected), rel=1e-5)


def test_the_test_loss_leaves_out_an_incomplete_batch():
    rng = np.random.default_rng(1)
    image, text = unit(rng, 150, 8), unit(rng, 150, 8)
    order = np.random.default_rng(0).permutation(150)[:128]
    want = learning_data.batch_loss(image[order], text[order], 5.0)
    assert learning_data.batch_loss(image, text, 5.0) == pytest.approx(want, rel=1e-12)


def pair(i, caption):
    return Pair(encoded(picture(i)), {"caption": caption, "kind": f"k{i % 3}"}, f"{i}.png")


class Perfect:
    """Features that are equal for what belongs together, and at right angles for the rest."""

    def __init__(self, test):
        self.test = test

    def features(self, images, tokens):
        prompts = 20 + np.arange(len(self.test.label_tokens))
        text = np.concatenate([self.test.text_group, prompts])
        assert len(text) == len(tokens)
        return np.eye(32)[self.test.image_group], np.eye(32)[text]

    def logit_scale_and_bias(self):
        return 100.0, 0.0


def test_a_test_set_groups_pictures_of_one_caption_and_captions_of_one_picture():
    source = [
        pair(0, Alternatives(["a", "b"])),
        pair(1, "c"),
        Pair(b"no picture", {"caption": "d"}, "broken"),
        pair(3, "c"),
    ]
    test = learning_data.read_test_set(source, "{caption}", Letters(8), 12, "kind", "a {}")
    assert test.image.shape == (3, 12, 12, 3) and test.image.dtype == np.uint8
    assert test.partner.tolist() == [0, 2, 2]
    assert test.image_group.tolist()[1] == test.image_group.tolist()[2] == test.text_group[2]
    assert test.text_group[0] == test.text_group[1] == test.image_group[0] != test.image_group[1]
    assert test.label.tolist() == [0, 1, 0] and len(test.label_tokens) == 2
    metrics = learning_data.evaluate(Perfect(test), test, sigmoid=False)
    assert metrics["R@1 i→t %"] == metrics["R@1 t→i %"] == 100
    # in a batch of three, two pictures share their caption: each takes half of the other's chance
    assert metrics["test loss"] == pytest.approx(2 / 3 * math.log(2))
    assert metrics["zero-shot %"] == 0 and metrics["logit scale"] == 100


def test_labels_that_some_picture_lacks_are_not_used():
    source = [pair(0, "a"), Pair(encoded(picture(1)), {"caption": "b"}, "1")]
    test = learning_data.read_test_set(source, "{caption}", Letters(8), 12, "kind", "{}")
    assert test.label is None and test.label_tokens is None


def test_a_split_leaves_no_pair_in_both():
    training, test = learning_data.split(list(range(25)), 10)
    both = [[part[i] for i in range(len(part))] for part in (training, test)]
    assert both[1] == [0, 10, 20] and sorted(both[0] + both[1]) == list(range(25))


def test_the_interval_over_seeds_is_students():
    mean, half = learning_data.mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert math.isnan(learning_data.mean_and_interval([1.0])[1])


def test_open_clips_own_rows_are_each_caption_once_an_epoch():
    released.open_clip()
    source = [pair(i, Alternatives([f"{i}a", f"{i}b"])) for i in range(6)]
    batches = learning_data.open_clip_batches(
        source, "{caption}", Letters(8), TINY["vit", "softmax"], 4, 0
    )
    first = [next(batches) for _ in range(3)]
    texts = {Letters(8).decode(row) for batch in first for row in batch["tokens"]}
    assert texts == {f"{i}{letter}" for i in range(6) for letter in "ab"}
    assert first[0]["image"].shape == (4, 3, 16, 16)
