"""Tests the losses against their definitions, and all layouts and meshes against the dense loss."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip_jax.distributed import sharding
from clip_jax.errors import UserError
from clip_jax.losses.contrastive import (
    LAYOUTS,
    caption_ids,
    choose_layout,
    sigmoid_loss,
    softmax_loss,
)
from clip_jax.losses.contrastive.tiling import make_tile_plan
from clip_jax.models.clip import normalize
from support import says

LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def features(seed, n, d):
    keys = jax.random.key(seed), jax.random.key(seed + 1000)
    return tuple(normalize(jax.random.normal(key, (n, d))) for key in keys)


@functools.cache
def compiled(kind, layout, block=0, smoothing=0.0, mesh=(1, 1, 1), weight=0.5):
    """A function of features, ids, scale (and bias): ((loss, metrics), gradients), on a mesh."""
    mesh = sharding.make_mesh(
        dict(zip(sharding.AXES, mesh, strict=True)), jax.devices()[: math.prod(mesh)]
    )
    options = {"label_smoothing": smoothing, "image_weight": weight} if kind == "softmax" else {}

    @jax.jit
    def value_and_gradients(image, text, ids, *scalars):
        loss = functools.partial(LOSSES[kind], layout=layout, ids=ids, block=block, **options)
        argnums = tuple(range(2 + len(scalars)))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss, argnums, has_aux=True)(image, text, *scalars)

    def evaluate(image, text, ids, *scalars):
        shards = sharding.batch_shards(mesh)
        rows_sharding = sharding.batch_sharding if len(image) % shards == 0 else sharding.replicated
        rows = jax.device_put((image, text, jnp.asarray(ids)), rows_sharding(mesh))
        scalars = jax.device_put([jnp.float32(x) for x in scalars], sharding.replicated(mesh))
        return jax.device_get(value_and_gradients(*rows, *scalars))

    return evaluate


def candidate_mask(n, ids):
    return (ids[:, None] != ids).any(-1) | np.eye(n, dtype=bool)


def softmax_by_definition(image, text, ids, scale, smoothing=0.0, weight=0.5):
    """The loss and its gradients in float64, by figure 3 of the paper."""
    image, text = (np.asarray(x, np.float64) for x in (image, text))
    mask = candidate_mask(len(image), ids)
    logits = np.where(mask, scale * image @ text.T, -np.inf)
    target = (1 - smoothing) * np.eye(len(image))
    target += smoothing * mask / mask.sum(1, keepdims=True)

    def cross_entropy(logits):
        shifted = logits - logits.max(1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -(target * np.where(mask, log_probs, 0)).sum(), np.exp(log_probs) - target

    (row_loss, by_row), (column_loss, by_column) = cross_entropy(logits), cross_entropy(logits.T)
    by_logit = (weight * by_row + (1 - weight) * by_column.T) / len(image)
    by_scale = (by_logit * (image @ text.T)).sum()
    gradients = scale * by_logit @ text, scale * by_logit.T @ image, by_scale
    return (weight * row_loss + (1 - weight) * column_loss) / len(image), gradients


def sigmoid_by_definition(image, text, ids, scale, bias):
    """The loss and its gradients in float64, by algorithm 1 of SigLIP."""
    image, text = (np.asarray(x, np.float64) for x in (image, text))
    mask = candidate_mask(len(image), ids)
    labels = 2 * np.eye(len(image)) - 1
    negated = -labels * (scale * image @ text.T + bias)
    by_logit = -labels * mask / (1 + np.exp(-negated)) / len(image)
    by_scale = (by_logit * (image @ text.T)).sum()
    gradients = scale * by_logit @ text, scale * by_logit.T @ image, by_scale, by_logit.sum()
    return (mask * np.logaddexp(0, negated)).sum() / len(image), gradients


@settings(max_examples=30)
@given(
    layout=st.sampled_from(["dense", "blockwise"]),
    case=st.sampled_from([(1, 1, 0.0), (2, 4, 0.0), (33, 64, 0.1)]),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    captions=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_softmax_loss_and_gradients_match_the_definition(layout, case, scale, captions, seed):
    n, d, smoothing = case
    image, text = features(seed, n, d)
    ids = np.arange(n)[:, None] % captions
    (loss, _), gradients = compiled("softmax", layout, 8, smoothing)(image, text, ids, scale)
    expected_loss, expected = softmax_by_definition(image, text, ids, scale, smoothing)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-6, abs=1e-6)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * scale / n)


@pytest.mark.parametrize(
    "layout, mesh", [("dense", (1, 1, 1)), ("blockwise", (2, 2, 2)), ("ring", (2, 2, 2))]
)
def test_one_direction_weighs_more_in_every_layout(layout, mesh):
    image, text = features(0, 40, 16)
    ids = np.arange(40)[:, None] % 30
    evaluate = compiled("softmax", layout, 4, 0.1, mesh, 0.75)
    (loss, _), gradients = evaluate(image, text, ids, 14.3)
    expected_loss, expected = softmax_by_definition(image, text, ids, 14.3, 0.1, 0.75)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-6)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@settings(max_examples=30)
@given(
    layout=st.sampled_from(["dense", "blockwise"]),
    shape=st.sampled_from([(2, 4), (33, 64)]),
    scale=st.sampled_from([1.0, 10.0, 117.0]),
    bias=st.sampled_from([0.0, -10.0, -16.0]),
    captions=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_sigmoid_loss_and_gradients_match_the_definition(
    layout, shape, scale, bias, captions, seed
):
    n, _ = shape
    image, text = features(seed, *shape)
    ids = np.arange(n)[:, None] % captions
    (loss, _), gradients = compiled("sigmoid", layout, 8)(image, text, ids, scale, bias)
    expected_loss, expected = sigmoid_by_definition(image, text, ids, scale, bias)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-5, atol=1e-5 * scale / n)


TILED = ("blockwise", "ring")
# mesh, rows, rows of a tile, layouts
MESHES = {
    "rows that do not fill the tiles": ((1, 1, 1), 33, 8, ["blockwise"]),
    "one tile": ((2, 1, 1), 6, 0, ["blockwise"]),
    "a prime number of rows per device": ((1, 4, 1), 44, 3, TILED),
    "all three axes": ((2, 2, 2), 40, 4, ("dense", *TILED)),
    "one row per device": ((4, 2, 1), 8, 0, TILED),
    "rows not divisible by the tensor axis": ((2, 1, 4), 18, 5, TILED),
    "rows not divisible by any axis": ((8, 1, 1), 3, 2, ["blockwise"]),
}


@pytest.mark.parametrize(
    "mesh, n, block, layout",
    [
        pytest.param(mesh, n, block, layout, id=f"{name}, {layout}")
        for name, (mesh, n, block, layouts) in MESHES.items()
        for layout in layouts
    ],
)
@pytest.mark.parametrize("kind", LOSSES)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 100),
    similarity=st.floats(0, 3),
    repeated=st.integers(0, 44),
    masked=st.booleans(),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    bias=st.sampled_from([0.0, -10.0]),
)
def test_each_layout_on_each_mesh_equals_the_dense_loss_on_one_device(
    kind, mesh, n, block, layout, seed, similarity, repeated, masked, scale, bias
):
    image, text = features(seed, n, 16)
    captions = max(n - repeated, 1)
    text = normalize(similarity * image + text)[np.arange(n) % captions]
    ids = np.arange(n)[:, None] % (captions if masked else n)
    scalars = [scale] if kind == "softmax" else [scale, bias]
    smoothing = 0.1 if kind == "softmax" and n % 4 == 0 else 0.0

    expected = compiled(kind, "dense", 0, smoothing)(image, text, ids, *scalars)
    sharded = compiled(kind, layout, block, smoothing, mesh)(image, text, ids, *scalars)

    (expected_loss, expected_metrics), expected_gradients = expected
    (loss, metrics), gradients = sharded
    tolerance = max(1e-6, scale * 2**-24)  # the rounding error of a logit of that scale
    assert abs(loss - expected_loss) <= 1e-6 * max(1, expected_loss)
    assert metrics == expected_metrics
    # the largest gradients of the softmax: by the logits of a row they sum to at most 4 / 2n
    bounds = 2 * scale / n, 2 * scale / n, 2, 1
    for gradient, other, bound in zip(expected_gradients, gradients, bounds, strict=False):
        assert other.dtype == gradient.dtype == np.float32
        assert abs(other - gradient).max() <= tolerance * max(bound, abs(gradient).max())


@pytest.mark.parametrize("kind, layout", [("softmax", "ring"), ("sigmoid", "blockwise")])
def test_gradients_of_bfloat16_features_are_bfloat16_from_fp32_sums(kind, layout):
    image, text = (x.astype(jnp.bfloat16) for x in features(0, 40, 16))
    ids, scalars = np.arange(40)[:, None] % 30, [100.0] if kind == "softmax" else [100.0, -10.0]
    (dense_loss, _), dense_gradients = compiled(kind, "dense")(image, text, ids, *scalars)
    (loss, _), gradients = compiled(kind, layout, 4, 0.0, (2, 2, 2))(image, text, ids, *scalars)
    fp32_features = (np.asarray(x, np.float32) for x in (image, text))
    (fp32_loss, _), _ = compiled(kind, "dense")(*fp32_features, ids, *scalars)
    assert loss == pytest.approx(dense_loss, rel=1e-6)
    assert dense_loss == pytest.approx(fp32_loss, rel=1e-6)
    assert [x.dtype for x in gradients[:2]] == [jnp.bfloat16] * 2
    for gradient, expected in zip(gradients, dense_gradients, strict=True):
        gradient, expected = np.asarray(gradient, np.float64), np.asarray(expected, np.float64)
        assert np.linalg.norm(gradient - expected) <= 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind, layout", [("softmax", "dense"), ("sigmoid", "blockwise")])
def test_without_ids_all_rows_are_negatives(kind, layout):
    image, text = features(0, 5, 4)
    scalars = [jnp.float32(9)] * (1 if kind == "softmax" else 2)
    ids = jnp.array([[3, 1], [3, 2], [4, 1], [0, 0], [-1, 0]])
    loss = jax.jit(functools.partial(LOSSES[kind], layout=layout))
    assert loss(image, text, *scalars, ids=ids) == loss(image, text, *scalars)


@pytest.mark.parametrize("layout", ["dense", "blockwise"])
def test_a_duplicate_caption_is_a_tie_unless_it_is_masked(layout):
    image = text = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
    evaluate = compiled("softmax", layout)
    (loss, metrics), _ = evaluate(image, text, np.array([[0], [1], [2], [3]]), 100)
    assert loss == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert set(map(float, metrics.values())) == {1 / 2}
    (loss, metrics), _ = evaluate(image, text, np.array([[0], [1], [2], [2]]), 100)
    assert loss == 0
    assert set(map(float, metrics.values())) == {1}


@pytest.mark.parametrize("layout", ["dense", "blockwise"])
def test_constant_features_have_loss_log_n_and_accuracy_0(layout):
    constant = normalize(jnp.arange(1.0, 8))[None].repeat(16, axis=0)
    loss, metrics = softmax_loss(constant, constant, jnp.float32(100), layout=layout, block=5)
    assert float(loss) == pytest.approx(np.log(16), rel=1e-5)
    assert set(map(float, metrics.values())) == {0}


def test_opposite_features_at_scale_100_have_a_finite_loss():
    image = jnp.eye(8)
    loss, grads = jax.value_and_grad(lambda x: softmax_loss(x, -image, jnp.float32(100))[0])(image)
    assert float(loss) == pytest.approx(100 + np.log(7), rel=1e-3)
    assert jnp.isfinite(grads).all()


def test_perfect_features_have_loss_0_and_accuracy_1():
    loss, metrics = softmax_loss(jnp.eye(8), jnp.eye(8), jnp.float32(100))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(metrics["image_to_text_accuracy"]) == 1
    assert float(metrics["text_to_image_accuracy"]) == 1


def test_the_loss_is_symmetric_and_independent_of_the_order_of_pairs():
    image, text = features(0, 12, 8)
    loss, metrics = softmax_loss(image, text, jnp.float32(20))
    swapped, swapped_metrics = softmax_loss(text, image, jnp.float32(20))
    assert float(loss) == pytest.approx(float(swapped), rel=1e-6)
    assert metrics["image_to_text_accuracy"] == swapped_metrics["text_to_image_accuracy"]
    order = np.random.default_rng(0).permutation(12)
    shuffled, _ = softmax_loss(image[order], text[order], jnp.float32(20))
    assert float(loss) == pytest.approx(float(shuffled), rel=1e-6)


def test_label_smoothing_matches_torch():
    torch = pytest.importorskip("torch")
    image, text = features(0, 12, 8)
    loss, _ = softmax_loss(image, text, jnp.float32(20), label_smoothing=0.3)
    logits = torch.tensor(20 * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T)
    cross_entropy = functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.3)
    rows = torch.arange(12)
    expected = (cross_entropy(logits, rows) + cross_entropy(logits.T, rows)) / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_memory_of_tiles_is_linear_in_the_rows(kind):
    scalars = [jnp.float32(1)] * (1 if kind == "softmax" else 2)

    def temporary_bytes(layout, n):
        rows = jax.ShapeDtypeStruct((n, 16), jnp.float32)
        loss = functools.partial(LOSSES[kind], layout=layout, block=128)
        step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        memory = step.lower(rows, rows, *scalars).compile().memory_analysis()
        return memory.temp_size_in_bytes

    sizes = np.array([4096, 8192, 16384, 32768])
    used = np.array([temporary_bytes("blockwise", n) for n in sizes])
    linear_fit = np.polyval(np.polyfit(sizes, used, 1), sizes)
    np.testing.assert_allclose(used, linear_fit, rtol=0.1)
    assert used[-1] < 2.1 * used[-2]
    logits_bytes = 4 * sizes[-1] ** 2
    assert used[-1] < logits_bytes / 100 < logits_bytes < temporary_bytes("dense", sizes[-1])


@pytest.mark.parametrize(
    "shape, n, axes",
    [
        ((8, 1, 1), 16, ("data",)),
        ((2, 2, 2), 16, ("data", "fsdp", "tensor")),
        ((1, 1, 8), 16, ("tensor",)),
        ((2, 2, 2), 4, ("data", "fsdp")),
        ((2, 1, 4), 6, ("data",)),
        ((4, 2, 1), 6, ("fsdp",)),
        ((8, 1, 1), 7, ()),
    ],
)
def test_rows_are_sharded_over_each_axis_that_divides_them(shape, n, axes):
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
    with jax.set_mesh(mesh):
        assert make_tile_plan("ring", 0, n).axes == axes
    assert make_tile_plan("ring", 0, n).axes == ()


def test_auto_is_dense_while_the_logits_per_device_are_small():
    assert choose_layout(4096) == choose_layout(8192, 4) == "dense"
    assert choose_layout(4097) == choose_layout(8192, 3) == choose_layout(32768, 8) == "blockwise"
    image, text = features(0, 6, 4)
    for kind, scalars in (("softmax", [9.0]), ("sigmoid", [9.0, -3.0])):
        args = (image, text, *map(jnp.float32, scalars))
        programs = {
            layout: str(jax.make_jaxpr(functools.partial(LOSSES[kind], layout=layout))(*args))
            for layout in LAYOUTS
        }
        assert programs["auto"] == programs["dense"] != programs["blockwise"]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(layout="sideways"), ["loss.layout", "sideways", "auto, dense, blockwise, ring"]),
        (dict(block=-1), ["loss.block", -1]),
        (dict(label_smoothing=1.0), ["loss.label_smoothing", 1.0]),
        (dict(label_smoothing=-0.1), ["loss.label_smoothing", -0.1]),
    ],
)
def test_invalid_options_are_user_errors(options, words):
    with pytest.raises(UserError) as error:
        softmax_loss(jnp.eye(2), jnp.eye(2), jnp.float32(1), **options)
    assert says(error.value, *words)


@settings(max_examples=25)
@given(hnp.arrays(np.int32, st.tuples(st.just(8), st.integers(1, 3)), elements=st.integers(0, 2)))
def test_ids_are_equal_where_captions_are_equal(tokens):
    ids = np.asarray(caption_ids(jnp.asarray(tokens)))
    assert ids.shape == (len(tokens), 2)
    for i, j in itertools.combinations(range(len(tokens)), 2):
        assert (ids[i] == ids[j]).all() == (tokens[i] == tokens[j]).all()


def test_ids_of_many_similar_captions_differ():
    tokens = np.array(list(itertools.product(range(4), repeat=8)), np.int32)  # 65,536
    ids = np.asarray(caption_ids(jnp.asarray(tokens)))
    assert len(np.unique(ids, axis=0)) == len(tokens)
    assert min(len(np.unique(word)) for word in ids.T) > 0.999 * len(tokens)
    assert abs(np.corrcoef(ids.T)[0, 1]) < 0.02
