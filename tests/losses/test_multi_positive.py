"""Tests losses with several positives against their definition, in all layouts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.distributed import sharding
from clip_jax.losses.contrastive import sigmoid_loss, softmax_loss
from clip_jax.models.clip import normalize

N, WIDTH = 40, 16
LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
SCALARS = {"softmax": (14.3,), "sigmoid": (10.0, -5.0)}
MESHES = {"1 device": (1, 1, 1), "8 devices": (2, 2, 2)}
GROUPS = np.random.default_rng(1).integers(0, 12, N)
IDS = np.random.default_rng(2).integers(0, 30, N)


@functools.cache
def features():
    """Features whose pairs are similar, as those of a trained model."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(N, WIDTH)) + 2 * rng.normal(size=(12, WIDTH))[GROUPS]
    text = rng.normal(size=(N, WIDTH)) + image
    return tuple(np.asarray(normalize(jnp.asarray(x, jnp.float32))) for x in (image, text))


@functools.cache
def evaluated(
    kind, layout, mesh=(1, 1, 1), smoothing=0.0, groups="groups", dtype="float32", weight=0.5
):
    """((loss, metrics), gradients by features and scalars) in a layout on a mesh."""
    devices = jax.devices()[: math.prod(mesh)]
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)), devices)
    options = {"label_smoothing": smoothing, "image_weight": weight} if kind == "softmax" else {}
    if groups != "none":
        columns = {"groups": GROUPS, "all differ": np.arange(N)}[groups]
        options["groups"] = jnp.asarray(np.stack([columns // 3, columns % 3], 1), jnp.uint32)
    ids = jnp.asarray(IDS if groups == "groups" else np.arange(N))[:, None]

    @jax.jit
    def value_and_gradients(image, text, *scalars):
        loss = functools.partial(LOSSES[kind], layout=layout, ids=ids, block=7, **options)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            argnums = tuple(range(2 + len(scalars)))
            return jax.value_and_grad(loss, argnums, has_aux=True)(image, text, *scalars)

    rows = tuple(jnp.asarray(x, dtype) for x in features())
    rows = jax.device_put(rows, sharding.batch_sharding(mesh))
    scalars = [jnp.float32(x) for x in SCALARS[kind]]
    return jax.device_get(value_and_gradients(*rows, *scalars))


def by_definition(kind, smoothing=0.0, weight=0.5):
    """The loss, its gradients and the accuracies in float64."""
    image, text = (x.astype(np.float64) for x in features())
    scale, bias = SCALARS[kind][0], (*SCALARS[kind], 0.0)[1]
    positive = GROUPS[:, None] == GROUPS
    candidate = positive | (IDS[:, None] != IDS)
    logits = scale * image @ text.T + bias
    top = [
        np.where(positive, logits, -np.inf).max(axis)
        > np.where(candidate & ~positive, logits, -np.inf).max(axis)
        for axis in (1, 0)
    ]
    if kind == "sigmoid":
        labels = np.where(positive, 1, -1)
        loss = (candidate * np.logaddexp(0, -labels * logits)).sum() / N
        by_logit = -labels * candidate / (1 + np.exp(labels * logits)) / N
    else:
        loss, by_logit = 0.0, np.zeros((N, N))
        for transpose, factor in ((False, weight / N), (True, (1 - weight) / N)):
            x, p, c = (m.T if transpose else m for m in (logits, positive, candidate))
            exponentials = c * np.exp(x - x.max())
            probability = exponentials / exponentials.sum(1, keepdims=True)
            target = (1 - smoothing) * p / p.sum(1, keepdims=True)
            target = target + smoothing * c / c.sum(1, keepdims=True)
            loss -= (target * np.log(np.where(c, probability, 1))).sum() * factor
            gradient = (probability - target) * factor
            by_logit += gradient.T if transpose else gradient
    by_scale = (by_logit * (image @ text.T)).sum()
    gradients = scale * by_logit @ text, scale * by_logit.T @ image, by_scale, by_logit.sum()
    return loss, gradients[: 2 + len(SCALARS[kind])], [x.mean() for x in top]


CASES = [("softmax", 0.0), ("softmax", 0.1), ("sigmoid", 0.0)]


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
@pytest.mark.parametrize("layout", ["dense", "blockwise", "ring"])
@pytest.mark.parametrize("kind, smoothing", CASES)
def test_every_layout_on_every_mesh_equals_the_definition(kind, smoothing, layout, mesh):
    (loss, metrics), gradients = evaluated(kind, layout, mesh, smoothing)
    expected_loss, expected_gradients, accuracies = by_definition(kind, smoothing)
    assert abs(loss - expected_loss) <= 1e-6 * max(1, expected_loss)
    assert list(metrics.values()) == pytest.approx(accuracies)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert abs(gradient - expected).max() <= 1e-6 * max(1, abs(np.asarray(expected)).max())


@pytest.mark.parametrize("layout", ["dense", "blockwise", "ring"])
def test_one_direction_weighs_more_in_every_layout(layout):
    mesh = MESHES["8 devices"] if layout == "ring" else MESHES["1 device"]
    (loss, _), gradients = evaluated("softmax", layout, mesh, 0.1, weight=0.75)
    expected_loss, expected_gradients, _ = by_definition("softmax", 0.1, 0.75)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert abs(gradient - expected).max() <= 1e-6 * max(1, abs(np.asarray(expected)).max())


@pytest.mark.parametrize("layout", ["dense", "blockwise"])
@pytest.mark.parametrize("kind, smoothing", CASES)
def test_groups_that_all_differ_give_the_usual_loss(kind, smoothing, layout):
    (loss, metrics), gradients = evaluated(kind, layout, (1, 1, 1), smoothing, "all differ")
    (usual_loss, usual_metrics), usual = evaluated(kind, layout, (1, 1, 1), smoothing, "none")
    assert abs(loss - usual_loss) <= 1e-6 * max(1, usual_loss)
    assert metrics == usual_metrics
    for gradient, expected in zip(gradients, usual, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_of_bfloat16_features_are_bfloat16(kind):
    (loss, _), gradients = evaluated(kind, "ring", (2, 2, 2), dtype="bfloat16")
    (dense_loss, _), expected = evaluated(kind, "dense", dtype="bfloat16")
    assert loss == pytest.approx(dense_loss, rel=1e-6)
    assert gradients[0].dtype == expected[0].dtype == jnp.bfloat16
    one, other = (np.asarray(x[0], np.float64) for x in (gradients, expected))
    assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other)


@pytest.mark.parametrize("layout", ["dense", "blockwise"])
def test_perfect_features_at_scale_100_have_the_entropy_of_the_target(layout):
    rows = jnp.eye(4)[jnp.array([0, 1, 2, 2])]
    groups = jnp.array([[0], [1], [2], [2]])
    loss, metrics = softmax_loss(rows, rows, jnp.float32(100), layout=layout, groups=groups)
    assert float(loss) == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert set(map(float, metrics.values())) == {1}
