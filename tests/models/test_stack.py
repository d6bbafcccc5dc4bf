"""A stack of layers: in chunks of rows, and of its last layer only what is read out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.errors import UserError
from clip_jax.models.initializers import clip_text_block
from clip_jax.models.model_config import BertConfig, CLIPConfig, TextConfig
from clip_jax.models.transformer import Block, Transformer, take_position
from clip_jax.plan import program
from steps import TINY, alone, assert_same_gradients, compiled, mesh_of, run

LAYERS, LENGTH, WIDTH, ROWS = 3, 7, 16, 12
MESHES = [
    dict(data=1),
    dict(data=2, fsdp=4),
    dict(data=2, fsdp=2, tensor=2),
    dict(data=1, tensor=4),
]


def transformer(
    causal=True, post_norm=False, chunk=0, dtype="float32", layers=LAYERS, remat="full"
):
    config = TextConfig(width=WIDTH, layers=layers, heads=2)
    return Transformer(
        config,
        "quick_gelu",
        init=clip_text_block(WIDTH, layers),
        causal=causal,
        post_norm=post_norm,
        dtype=dtype,
        remat=remat,
        chunk=chunk,
        rngs=nnx.Rngs(0),
    )


def rows(n=ROWS, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(0), (n, LENGTH, WIDTH), dtype)


def gradients(stack, x, **options):
    """Of a number made of all outputs: by the parameters and by the input."""
    graph, params = nnx.split(stack, nnx.Param)

    def number(params, x):
        y = nnx.merge(graph, params)(x, **options).astype(jnp.float32)
        return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape) / y.size)

    return jax.jit(jax.grad(number, argnums=(0, 1)))(params, x)


def close(a, b, off=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=off, atol=off * float(jnp.max(jnp.abs(y))))


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_chunks_change_neither_output_nor_gradient(chunk, causal):
    unchunked, x = transformer(causal), rows()
    chunked = transformer(causal, chunk=chunk)
    np.testing.assert_allclose(chunked(x), unchunked(x), rtol=1e-5, atol=1e-5)
    close(gradients(chunked, x), gradients(unchunked, x))


def test_a_mask_and_places_are_cut_with_their_rows():
    at = jax.random.randint(jax.random.key(1), (ROWS,), 0, LENGTH)
    mask = (jnp.arange(LENGTH) <= jnp.arange(ROWS)[:, None] % LENGTH)[:, None, None, :]
    x, options = rows(), {"mask": mask, "at": at}
    unchunked, chunked = (transformer(False, True, chunk) for chunk in (0, 4))
    np.testing.assert_allclose(chunked(x, **options), unchunked(x, **options), rtol=1e-5, atol=1e-5)
    close(gradients(chunked, x, **options), gradients(unchunked, x, **options))


@pytest.mark.parametrize("shape", MESHES)
def test_chunks_are_those_of_a_device(shape):
    _, expected, before = alone()
    _, sharded, metrics = run(shape, remat="full", chunks=(2, 1))
    assert_same_gradients(sharded, expected)
    assert metrics[0] == pytest.approx(before[0], rel=1e-5)


@pytest.mark.slow
def test_bert_in_chunks():
    bert = BertConfig(vocab_size=56, context_length=8, width=32, layers=2, heads=4, positions=8)
    config = CLIPConfig(16, vision=TINY.vision, text=bert)
    _, expected, _ = alone(config)
    _, sharded, _ = run(dict(data=4), config=config, remat="full", chunks=(1, 2))
    assert_same_gradients(sharded, expected)


def test_rows_that_devices_cannot_share_are_not_chunked():
    """A program over a mesh may encode a single text."""
    unchunked, chunked, x = transformer(), transformer(chunk=2), rows(1)
    with jax.sharding.use_abstract_mesh(mesh_of(dict(data=2)).abstract_mesh):
        y = jax.jit(chunked)(x)
    np.testing.assert_allclose(y, unchunked(x), rtol=1e-5, atol=1e-5)


def test_sums_over_chunks_are_float32():
    """Of 256 rows alike the gradients by bfloat16 sums would stall at a part of the whole."""
    x = jnp.broadcast_to(rows(1, jnp.bfloat16), (256, LENGTH, WIDTH))
    unchunked, chunked = (transformer(chunk=chunk, dtype="bfloat16", layers=1) for chunk in (0, 1))

    def of_bias(stack):
        graph, params = nnx.split(stack, nnx.Param)
        by = jax.grad(lambda p: nnx.merge(graph, p)(x).astype(jnp.float32).sum())(params)
        return by["blocks"]["mlp"]["proj"]["kernel"][...]

    a, b = of_bias(unchunked), of_bias(chunked)
    assert b.dtype == jnp.float32
    assert float(jnp.linalg.norm(a - b)) < 0.01 * float(jnp.linalg.norm(a))


@pytest.mark.slow
def test_an_exchange_between_devices_is_one_for_all_chunks():
    """Gradients are summed over devices after all chunks, not after each."""

    def sent(chunks):
        _, step = compiled(mesh_of(dict(data=2)), rows=32, remat="full", chunks=chunks)
        collectives = program.parse(step.as_text()).collectives
        return sum(c.bytes * c.executions for c in collectives if c.kind == "all-reduce")

    assert sent((1, 1)) == sent((4, 4)) <= 1.1 * sent((0, 0))


def test_chunks_take_less_memory():
    def temporary_bytes(chunks):
        mesh = mesh_of(dict(data=1))
        _, step = compiled(mesh, rows=256, remat="full", chunks=chunks)
        return step.memory_analysis().temp_size_in_bytes

    assert temporary_bytes((8, 8)) < 0.7 * temporary_bytes((0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("at", [0, 3, LENGTH - 1])
@pytest.mark.parametrize("chunk", [0, 4])
def test_one_place_is_that_of_all(causal, at, chunk):
    stack, x = transformer(causal, chunk=chunk), rows()
    each = jnp.full(ROWS, at)
    expected = transformer(causal)(x)[:, at : at + 1]
    for place in (at, each):
        np.testing.assert_allclose(stack(x, at=place), expected, rtol=1e-5, atol=1e-5)
    if at == 3:
        close(gradients(stack, x, at=at), gradients(stack, x, at=each))


def test_a_stack_of_one_layer_is_read_out_too():
    stack, x = transformer(layers=1), rows()
    np.testing.assert_allclose(stack(x, at=2), stack(x)[:, 2:3], rtol=1e-5, atol=1e-5)


def test_positions_that_are_not_read_out_are_not_computed():
    stack, x = transformer(layers=1), rows()

    def flops(**options):
        analysis = jax.jit(lambda x: stack(x, **options)).lower(x).compile().cost_analysis()
        return analysis["flops"]

    assert flops(at=0) < 0.5 * flops()


def test_taking_a_position_ignores_the_others():
    x = rows().at[:, 1].set(jnp.nan)
    at = jnp.where(jnp.arange(ROWS) % 2, 0, 6)
    expected = jnp.take_along_axis(x, at[:, None, None], axis=1)
    np.testing.assert_array_equal(take_position(x, at), expected)
    assert jnp.isfinite(jax.grad(lambda x: take_position(x, at).sum())(x)).all()


@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
def test_a_block_gives_position_by_position_what_it_gives_at_once(layer_scale):
    block = Block(
        TextConfig(width=WIDTH, layers=1, heads=2),
        "quick_gelu",
        init=clip_text_block(WIDTH, 1),
        layer_scale=layer_scale,
        dtype="float32",
        rngs=nnx.Rngs(0),
    )
    x = rows(2)
    empty = jnp.zeros((2, LENGTH, 2, WIDTH // 2))
    cache, results = (empty, empty), []
    for place in range(LENGTH):
        y, cache = block.step(x[:, place : place + 1], cache, jnp.int32(place))
        results.append(y)
    close(jnp.concatenate(results, axis=1), block(x, causal=True))


@pytest.mark.parametrize("at", [None, 2])
@pytest.mark.parametrize(("group", "layers", "chunk"), [(2, 6, 0), (2, 5, 4), (4, 6, 0), (9, 3, 0)])
def test_saving_the_inputs_of_fewer_layers_changes_no_gradient(group, layers, chunk, at):
    every, fewer = (
        gradients(transformer(layers=layers, chunk=chunk, remat=remat), rows(), at=at)
        for remat in ("full", f"full:{group}")
    )
    close(every, fewer, off=1e-6)


def test_saving_the_inputs_of_fewer_layers_takes_less_memory():
    def temporaries(remat):
        graph, params = nnx.split(transformer(layers=16, remat=remat), nnx.Param)
        step = jax.jit(jax.grad(lambda params, x: jnp.sum(nnx.merge(graph, params)(x) ** 2)))
        return step.lower(params, rows(512)).compile().memory_analysis().temp_size_in_bytes

    inputs = 512 * LENGTH * WIDTH * 4
    assert (
        temporaries("full") - temporaries("full:4") > 6 * inputs
    )  # of 16 at most 4 + 4 are left, and some copies


@pytest.mark.parametrize("remat", ["full:", "full:1", "full:x", "dots:2", "full:-2", "half"])
def test_an_unknown_remat_is_a_user_error(remat):
    with pytest.raises(UserError, match=f"unknown remat '{remat}'.*full:2"):
        transformer(remat=remat)
