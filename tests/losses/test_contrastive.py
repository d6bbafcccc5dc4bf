"""The losses against their definitions, and every layout on every mesh against the dense one."""

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
from clip_jax.losses.contrastive.tiling import make_plan
from clip_jax.models.clip import normalize
from support import says

LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def features(seed, n, d):
    keys = jax.random.key(seed), jax.random.key(seed + 1000)
    return tuple(normalize(jax.random.normal(key, (n, d))) for key in keys)


@functools.cache
def compiled(kind, layout, block=0, smoothing=0.0, mesh=(1, 1, 1)):
    """Features, ids, scale (and bias) to ((loss, metrics), gradients), over a mesh."""
    mesh = sharding.make_mesh(
        dict(zip(sharding.AXES, mesh, strict=True)), jax.devices()[: math.prod(mesh)]
    )
    smooth = {"label_smoothing": smoothing} if kind == "softmax" else {}

    def evaluated(image, text, ids, *numbers):
        loss = functools.partial(LOSSES[kind], layout=layout, ids=ids, block=block, **smooth)
        wanted = tuple(range(2 + len(numbers)))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss, wanted, has_aux=True)(image, text, *numbers)

    jitted = jax.jit(evaluated)

    def placed(image, text, ids, *numbers):
        parts = sharding.batch_shards(mesh)
        place = sharding.batch_sharding if len(image) % parts == 0 else sharding.replicated
        rows = jax.device_put((image, text, jnp.asarray(ids)), place(mesh))
        numbers = jax.device_put([jnp.float32(x) for x in numbers], sharding.replicated(mesh))
        return jax.device_get(jitted(*rows, *numbers))

    return placed


def candidates(n, ids):
    return (ids[:, None] != ids).any(-1) | np.eye(n, dtype=bool)


def softmax_by_definition(image, text, ids, scale, smoothing=0.0):
    """Figure 3 of the paper in float64, with gradients."""
    image, text = (np.asarray(x, np.float64) for x in (image, text))
    counted = candidates(len(image), ids)
    logits = np.where(counted, scale * image @ text.T, -np.inf)
    target = (1 - smoothing) * np.eye(len(image))
    target += smoothing * counted / counted.sum(1, keepdims=True)

    def cross_entropy(logits):
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -(target * np.where(counted, logs, 0)).sum(), np.exp(logs) - target

    (rows, by_rows), (columns, by_columns) = cross_entropy(logits), cross_entropy(logits.T)
    slopes = (by_rows + by_columns.T) / (2 * len(image))
    by_scale = (slopes * (image @ text.T)).sum()
    gradients = scale * slopes @ text, scale * slopes.T @ image, by_scale
    return (rows + columns) / (2 * len(image)), gradients


def sigmoid_by_definition(image, text, ids, scale, bias):
    """Algorithm 1 of SigLIP in float64, with gradients."""
    image, text = (np.asarray(x, np.float64) for x in (image, text))
    counted = candidates(len(image), ids)
    signs = 2 * np.eye(len(image)) - 1
    wrong = -signs * (scale * image @ text.T + bias)
    slopes = -signs * counted / (1 + np.exp(-wrong)) / len(image)
    by_scale = (slopes * (image @ text.T)).sum()
    gradients = scale * slopes @ text, scale * slopes.T @ image, by_scale, slopes.sum()
    return (counted * np.logaddexp(0, wrong)).sum() / len(image), gradients


@settings(max_examples=30)
@given(
    layout=st.sampled_from(["dense", "blockwise"]),
    case=st.sampled_from([(1, 1, 0.0), (2, 4, 0.0), (33, 64, 0.1)]),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    captions=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_the_softmax_loss_equals_its_definition_and_so_do_its_gradients(
    layout, case, scale, captions, seed
):
    n, d, smoothing = case
    image, text = features(seed, n, d)
    ids = np.arange(n)[:, None] % captions
    (loss, _), gradients = compiled("softmax", layout, 8, smoothing)(image, text, ids, scale)
    wanted, slopes = softmax_by_definition(image, text, ids, scale, smoothing)
    assert float(loss) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-5 * scale / n)


@settings(max_examples=30)
@given(
    layout=st.sampled_from(["dense", "blockwise"]),
    shape=st.sampled_from([(2, 4), (33, 64)]),
    scale=st.sampled_from([1.0, 10.0, 117.0]),
    bias=st.sampled_from([0.0, -10.0, -16.0]),
    captions=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_the_sigmoid_loss_equals_its_definition_and_so_do_its_gradients(
    layout, shape, scale, bias, captions, seed
):
    n, _ = shape
    image, text = features(seed, *shape)
    ids = np.arange(n)[:, None] % captions
    (loss, _), gradients = compiled("sigmoid", layout, 8)(image, text, ids, scale, bias)
    wanted, slopes = sigmoid_by_definition(image, text, ids, scale, bias)
    assert float(loss) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=1e-5 * scale / n)


# mesh, rows, rows of a tile, layouts
TILED = ("blockwise", "ring")
MESHES = {
    "tiles that the rows do not fill": ((1, 1, 1), 33, 8, ["blockwise"]),
    "one tile": ((2, 1, 1), 6, 0, ["blockwise"]),
    "a prime number of rows a device": ((1, 4, 1), 44, 3, TILED),
    "all three axes": ((2, 2, 2), 40, 4, ("dense", *TILED)),
    "a row a device": ((4, 2, 1), 8, 0, TILED),
    "rows that the tensor axis does not divide": ((2, 1, 4), 18, 5, TILED),
    "rows that no axis divides": ((8, 1, 1), 3, 2, ["blockwise"]),
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
    nearness=st.floats(0, 3),
    repeated=st.integers(0, 44),
    masked=st.booleans(),
    scale=st.sampled_from([1.0, 14.3, 100.0]),
    bias=st.sampled_from([0.0, -10.0]),
)
def test_any_layout_on_any_mesh_equals_the_dense_loss_of_one_device(
    kind, mesh, n, block, layout, seed, nearness, repeated, masked, scale, bias
):
    image, text = features(seed, n, 16)
    captions = max(n - repeated, 1)
    text = normalize(nearness * image + text)[np.arange(n) % captions]
    ids = np.arange(n)[:, None] % (captions if masked else n)
    numbers = [scale] if kind == "softmax" else [scale, bias]
    smoothing = 0.1 if kind == "softmax" and n % 4 == 0 else 0.0

    single = compiled(kind, "dense", 0, smoothing)(image, text, ids, *numbers)
    split = compiled(kind, layout, block, smoothing, mesh)(image, text, ids, *numbers)

    (loss, metrics), gradients = single
    (found, same), others = split
    close = max(1e-6, scale * 2**-24)  # a logit of that scale is itself rounded by as much
    assert abs(found - loss) <= 1e-6 * max(1, loss)
    assert same == metrics
    # how great the softmax's can be: a row's slopes sum to at most 4 / 2n in absolute value
    bounds = 2 * scale / n, 2 * scale / n, 2, 1
    for gradient, other, bound in zip(gradients, others, bounds, strict=False):
        assert other.dtype == gradient.dtype == np.float32
        assert abs(other - gradient).max() <= close * max(bound, abs(gradient).max())


@pytest.mark.parametrize("kind, layout", [("softmax", "ring"), ("sigmoid", "blockwise")])
def test_features_of_16_bits_have_gradients_of_16_bits_from_sums_of_32(kind, layout):
    image, text = (x.astype(jnp.bfloat16) for x in features(0, 40, 16))
    ids, numbers = np.arange(40)[:, None] % 30, [100.0] if kind == "softmax" else [100.0, -10.0]
    (loss, _), wanted = compiled(kind, "dense")(image, text, ids, *numbers)
    (found, _), gradients = compiled(kind, layout, 4, 0.0, (2, 2, 2))(image, text, ids, *numbers)
    whole = (np.asarray(x, np.float32) for x in (image, text))
    (exact, _), _ = compiled(kind, "dense")(*whole, ids, *numbers)
    assert found == pytest.approx(loss, rel=1e-6)
    assert loss == pytest.approx(exact, rel=1e-6)
    assert [x.dtype for x in gradients[:2]] == [jnp.bfloat16] * 2
    for gradient, want in zip(gradients, wanted, strict=True):
        gradient, want = np.asarray(gradient, np.float64), np.asarray(want, np.float64)
        assert np.linalg.norm(gradient - want) <= 1e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("kind, layout", [("softmax", "dense"), ("sigmoid", "blockwise")])
def test_no_ids_are_ids_that_differ(kind, layout):
    image, text = features(0, 5, 4)
    numbers = [jnp.float32(9)] * (1 if kind == "softmax" else 2)
    ids = jnp.array([[3, 1], [3, 2], [4, 1], [0, 0], [-1, 0]])
    loss = jax.jit(functools.partial(LOSSES[kind], layout=layout))
    assert loss(image, text, *numbers, ids=ids) == loss(image, text, *numbers)


@pytest.mark.parametrize("layout", ["dense", "blockwise"])
def test_a_caption_that_occurs_twice_is_a_tie_unless_its_pairs_are_masked(layout):
    image = text = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
    evaluated = compiled("softmax", layout)
    (loss, metrics), _ = evaluated(image, text, np.array([[0], [1], [2], [3]]), 100)
    assert loss == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert set(map(float, metrics.values())) == {1 / 2}
    (loss, metrics), _ = evaluated(image, text, np.array([[0], [1], [2], [2]]), 100)
    assert loss == 0
    assert set(map(float, metrics.values())) == {1}


@pytest.mark.parametrize("layout", ["dense", "blockwise"])
def test_is_log_n_for_features_that_say_nothing_and_none_of_them_is_right(layout):
    same = normalize(jnp.arange(1.0, 8))[None].repeat(16, axis=0)
    loss, metrics = softmax_loss(same, same, jnp.float32(100), layout=layout, block=5)
    assert float(loss) == pytest.approx(np.log(16), rel=1e-5)
    assert set(map(float, metrics.values())) == {0}


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


def test_label_smoothing_equals_that_of_torch():
    torch = pytest.importorskip("torch")
    image, text = features(0, 12, 8)
    loss, _ = softmax_loss(image, text, jnp.float32(20), label_smoothing=0.3)
    logits = torch.tensor(20 * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T)
    cross_entropy = functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.3)
    rows = torch.arange(12)
    wanted = (cross_entropy(logits, rows) + cross_entropy(logits.T, rows)) / 2
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_tiles_take_memory_that_grows_as_the_rows_do(kind):
    numbers = [jnp.float32(1)] * (1 if kind == "softmax" else 2)

    def used(layout, n):
        rows = jax.ShapeDtypeStruct((n, 16), jnp.float32)
        loss = functools.partial(LOSSES[kind], layout=layout, block=128)
        step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        memory = step.lower(rows, rows, *numbers).compile().memory_analysis()
        return memory.temp_size_in_bytes

    sizes = np.array([4096, 8192, 16384, 32768])
    taken = np.array([used("blockwise", n) for n in sizes])
    line = np.polyval(np.polyfit(sizes, taken, 1), sizes)
    np.testing.assert_allclose(taken, line, rtol=0.1)
    assert taken[-1] < 2.1 * taken[-2]
    logits = 4 * sizes[-1] ** 2
    assert taken[-1] < logits / 100 < logits < used("dense", sizes[-1])


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
def test_rows_are_split_over_every_axis_that_divides_them(shape, n, axes):
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
    with jax.set_mesh(mesh):
        assert make_plan("ring", 0, n).axes == axes
    assert make_plan("ring", 0, n).axes == ()


def test_auto_is_dense_while_the_logits_of_a_device_are_small():
    assert choose_layout(4096) == choose_layout(8192, 4) == "dense"
    assert choose_layout(4097) == choose_layout(8192, 3) == choose_layout(32768, 8) == "blockwise"
    image, text = features(0, 6, 4)
    for kind, numbers in (("softmax", [9.0]), ("sigmoid", [9.0, -3.0])):
        args = (image, text, *map(jnp.float32, numbers))
        programs = {
            layout: str(jax.make_jaxpr(functools.partial(LOSSES[kind], layout=layout))(*args))
            for layout in LAYOUTS
        }
        assert programs["auto"] == programs["dense"] != programs["blockwise"]


@pytest.mark.parametrize(
    "mistake, words",
    [
        (dict(layout="sideways"), ["loss.layout", "sideways", "auto, dense, blockwise, ring"]),
        (dict(block=-1), ["loss.block", -1]),
        (dict(label_smoothing=1.0), ["loss.label_smoothing", 1.0]),
        (dict(label_smoothing=-0.1), ["loss.label_smoothing", -0.1]),
    ],
)
def test_an_option_that_there_is_not_is_refused(mistake, words):
    with pytest.raises(UserError) as error:
        softmax_loss(jnp.eye(2), jnp.eye(2), jnp.float32(1), **mistake)
    assert says(error.value, *words)


@settings(max_examples=25)
@given(hnp.arrays(np.int32, st.tuples(st.just(8), st.integers(1, 3)), elements=st.integers(0, 2)))
def test_ids_are_equal_where_captions_are(tokens):
    ids = np.asarray(caption_ids(jnp.asarray(tokens)))
    assert ids.shape == (len(tokens), 2)
    for i, j in itertools.combinations(range(len(tokens)), 2):
        assert (ids[i] == ids[j]).all() == (tokens[i] == tokens[j]).all()


def test_ids_of_many_captions_that_are_nearly_the_same_differ():
    tokens = np.array(list(itertools.product(range(4), repeat=8)), np.int32)  # 65,536
    ids = np.asarray(caption_ids(jnp.asarray(tokens)))
    assert len(np.unique(ids, axis=0)) == len(tokens)
    assert min(len(np.unique(word)) for word in ids.T) > 0.999 * len(tokens)
    assert abs(np.corrcoef(ids.T)[0, 1]) < 0.02
