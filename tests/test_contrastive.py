"""The loss against its definition, at every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import partition
from clip_jax.contrastive import sigmoid_loss, softmax_loss
from clip_jax.models.clip import normalize


def by_definition(image, text, scale):
    """Figure 3 of the paper in float64."""
    logits = scale * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T

    def cross_entropy(rows):
        peak = rows.max(1, keepdims=True)
        log_sum = peak[:, 0] + np.log(np.exp(rows - peak).sum(1))
        return (log_sum - np.diag(rows)).mean()

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def features(seed, n, d):
    return (normalize(jax.random.normal(jax.random.key(seed + i), (n, d))) for i in (0, 1000))


@settings(deadline=None, max_examples=25)
@given(
    n=st.sampled_from([1, 2, 3, 8, 33]),
    d=st.sampled_from([1, 4, 64]),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    seed=st.integers(0, 100),
)
def test_equals_its_definition(n, d, scale, seed):
    image, text = features(seed, n, d)
    loss, _ = softmax_loss(image, text, jnp.float32(scale))
    assert float(loss) == pytest.approx(by_definition(image, text, scale), rel=2e-5, abs=2e-5)


def test_is_log_n_for_features_that_say_nothing():
    same = jnp.ones((16, 4)) / 2
    loss, metrics = softmax_loss(same, same, jnp.float32(100))
    assert float(loss) == pytest.approx(np.log(16), rel=1e-6)
    assert float(metrics["image_to_text_accuracy"]) == 0  # none is likelier than another


def test_finite_at_scale_100_for_opposite_pairs():
    image = jnp.eye(8)
    loss, grads = jax.value_and_grad(lambda x: softmax_loss(x, -image, jnp.float32(100))[0])(image)
    assert float(loss) == pytest.approx(100 + np.log(7), rel=1e-3)
    assert jnp.isfinite(grads).all()


def test_perfect_pairs_cost_nothing():
    loss, metrics = softmax_loss(jnp.eye(8), jnp.eye(8), jnp.float32(100))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(metrics["image_to_text_accuracy"]) == 1
    assert float(metrics["text_to_image_accuracy"]) == 1


def test_the_two_sides_are_alike_and_the_order_of_pairs_does_not_matter():
    image, text = features(0, 12, 8)
    loss, metrics = softmax_loss(image, text, jnp.float32(20))
    swapped, other = softmax_loss(text, image, jnp.float32(20))
    assert float(loss) == pytest.approx(float(swapped), rel=1e-6)
    assert metrics["image_to_text_accuracy"] == other["text_to_image_accuracy"]
    order = np.random.default_rng(0).permutation(12)
    shuffled, _ = softmax_loss(image[order], text[order], jnp.float32(20))
    assert float(loss) == pytest.approx(float(shuffled), rel=1e-6)


def test_gradients_equal_finite_differences_of_the_definition():
    image, text = (np.asarray(x, np.float64) for x in features(3, 5, 4))
    grads = jax.grad(lambda *a: softmax_loss(*a)[0], argnums=(0, 1, 2))(
        *(jnp.asarray(x, jnp.float32) for x in (image, text, 10.0))
    )
    step = 1e-6
    for which, (x, grad) in enumerate(zip((image, text), grads, strict=False)):
        for at in [(0, 0), (2, 3), (4, 1)]:
            moved = [image.copy(), text.copy()]
            moved[which][at] += step
            up = by_definition(*moved, 10.0)
            moved[which][at] -= 2 * step
            slope = (up - by_definition(*moved, 10.0)) / (2 * step)
            assert float(grad[at]) == pytest.approx(slope, rel=1e-3, abs=1e-5), x.shape
    slope = (by_definition(image, text, 10 + step) - by_definition(image, text, 10 - step)) / (
        2 * step
    )
    assert float(grads[2]) == pytest.approx(slope, rel=1e-3)


@settings(deadline=None, max_examples=15)
@given(
    n=st.sampled_from([1, 3, 8]),
    scale=st.sampled_from([1.0, 10.0, 117.0]),
    bias=st.sampled_from([0.0, -10.0, -16.0]),
    seed=st.integers(0, 100),
)
def test_the_sigmoid_loss_equals_its_definition_and_so_do_its_gradients(n, scale, bias, seed):
    image, text = features(seed, n, 4)

    def definition(scale, bias):
        logits = scale * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T + bias
        signs = 2 * np.eye(n) - 1
        return np.logaddexp(0, -signs * logits).sum() / n

    loss, (by_scale, by_bias) = jax.value_and_grad(
        lambda *a: sigmoid_loss(image, text, *a)[0], argnums=(0, 1)
    )(jnp.float32(scale), jnp.float32(bias))
    assert float(loss) == pytest.approx(definition(scale, bias), rel=1e-4, abs=1e-4)
    h = 1e-5
    for gradient, up, down in (
        (by_scale, definition(scale + h, bias), definition(scale - h, bias)),
        (by_bias, definition(scale, bias + h), definition(scale, bias - h)),
    ):
        assert float(gradient) == pytest.approx((up - down) / (2 * h), rel=1e-3, abs=1e-3)


def test_the_sigmoid_loss_of_a_sharded_batch_is_that_of_the_whole():
    image, text = features(0, 16, 8)
    mesh = partition.make_mesh(dict(data=4, fsdp=2))
    where = partition.batch_sharding(mesh)
    loss = jax.jit(jax.value_and_grad(lambda *a: sigmoid_loss(*a)[0], argnums=(0, 1)))
    single = loss(image, text, jnp.float32(10), jnp.float32(-10))
    sharded = loss(*jax.device_put((image, text), where), jnp.float32(10), jnp.float32(-10))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), single, sharded
    )
