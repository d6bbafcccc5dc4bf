"""The estimator on programs whose cost is known; TPU's compiler is asked, nothing runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed import hardware
from clip_jax.plan import cost, topology

pytest.importorskip("libtpu")


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


def mesh_of(name):
    return jax.sharding.Mesh(np.array(topology.find(name).devices), ("data",))


def program(function, *args, name="v5e:1x1", specs=None):
    """What is read of a function compiled for a topology, its arguments lying by `specs`."""
    mesh = mesh_of(name)
    where = [NamedSharding(mesh, spec) for spec in specs or [P()] * len(args)]
    lowered = jax.jit(function, in_shardings=where).lower(*args)
    return cost.compiled(lowered, "tpu").program


def layers(ws, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]


@pytest.mark.parametrize("name", ["v5e:1x1", "v5p:1x1x1"])
def test_a_large_matrix_product_comes_to_nearly_the_peak(name):
    n = 8192
    found = program(jnp.matmul, shape(n, n), shape(n, n), name=name)
    chip = hardware.chip_of_device(topology.find(name).devices[0])
    seconds = found.cycles / (chip.clock * 1e9)
    assert 0.85 <= 2 * n**3 / seconds / chip.peak <= 0.95
    assert not found.endless and not found.kernels and not found.collectives
    assert found.product_flops == 2 * n**3


def twice(x, w1, w2):
    """Two products, so that neither is written where it reads."""
    return jnp.tanh(x @ w1) @ w2


MATRICES = shape(4096, 2048), shape(2048, 2048), shape(2048, 2048)


@functools.cache
def looped(rounds):
    def loop(x, w1, w2):
        return jax.lax.fori_loop(0, rounds, lambda _, x: twice(x, w1, w2), x)

    return program(loop, *MATRICES).cycles


def test_a_loop_costs_what_its_unrolled_twin_costs():
    def unrolled(x, w1, w2):
        for _ in range(6):
            x = twice(x, w1, w2)
        return x

    assert looped(6) == pytest.approx(program(unrolled, *MATRICES).cycles, rel=0.1)


def test_the_rounds_of_a_loop_and_of_loops_in_loops_count():
    once = looped(7) - looped(6)
    assert looped(7) == pytest.approx(7 * once, rel=0.1)

    def nested(x, w1, w2):
        def inner(_, x):
            return jax.lax.fori_loop(2, 5, lambda _, x: twice(x, w1, w2), x)

        return jax.lax.fori_loop(0, 5, inner, x)

    found = program(nested, *MATRICES)
    assert not found.endless
    assert found.cycles == pytest.approx(15 * once, rel=0.1)


def test_products_of_batches_and_convolutions_are_counted_as_written():
    """TPU's compiler writes both as convolutions with windows that are mostly empty."""

    def products(q, k, image, kernel):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        found = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return scores, found

    found = program(
        products, *[shape(8, 64, 4, 32)] * 2, shape(8, 32, 32, 16), shape(3, 3, 16, 128)
    )
    scores = 8 * 4 * 64 * 64 * 32
    # of an even size, 'SAME' with a stride of two pads one place at the end of each axis
    convolution = 8 * 128 * 16 * (16 * 3 - 1) ** 2
    assert found.product_flops == pytest.approx(2 * (scores + convolution), rel=0.01)


def test_a_loop_whose_end_is_data_is_named_and_counted_once():
    def until(x, n):
        return jax.lax.while_loop(lambda s: s[1] < n, lambda s: (s[0] @ s[0], s[1] + 1), (x, 0))[0]

    found = program(until, shape(1024, 1024), shape(dtype=jnp.int32))
    once = program(jnp.matmul, shape(1024, 1024), shape(1024, 1024)).cycles
    assert len(found.endless) == 1
    assert 0.5 * once < found.cycles < 2 * once


def test_a_gather_in_a_loop_counts_its_bytes_each_round():
    whole = NamedSharding(mesh_of("v5e:2x2"), P())

    def gathering(ws, x):
        def body(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jax.lax.scan(body, x, ws)[0]

    found = program(
        gathering,
        shape(7, 1024, 1024),
        shape(512, 1024),
        name="v5e:2x2",
        specs=[P(None, "data"), P("data")],
    )
    gathers = [e for e in found.exchanges() if e["kind"] == "all-gather"]
    assert gathers == [
        {"kind": "all-gather", "bytes": 2 * 1024**2, "executions": 7, "group_size": 4}
    ]


def test_an_all_reduce_and_a_ring_count():
    mesh = mesh_of("v5e:2x2")

    def exchanging(x):
        right = [(i, (i + 1) % 4) for i in range(4)]
        return jax.lax.psum(x, "data") + jax.lax.ppermute(x, "data", right)

    local = jax.shard_map(
        exchanging, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    found = program(local, shape(4096, 256, dtype=jnp.float32), name="v5e:2x2", specs=[P("data")])
    assert {e["kind"]: (e["bytes"], e["executions"]) for e in found.exchanges()} == {
        "all-reduce": (1 << 20, 1),
        "collective-permute": (1 << 20, 1),
    }
    assert {c.kind: c.sent >> 20 for c in found.collectives} == {
        "all-reduce": 2,
        "collective-permute": 4,
    }


def test_a_kernel_is_named_and_not_counted():
    from jax.experimental import pallas as pl

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def kernels(x):
        call = pl.pallas_call(double, out_shape=shape(256, 256, dtype=jnp.float32))
        return jax.lax.fori_loop(0, 3, lambda _, x: call(x), x)

    found = program(kernels, shape(256, 256, dtype=jnp.float32))
    assert list(found.kernels.values()) == [3]


def test_what_does_not_fit_says_what_it_wants():
    lowered = jax.jit(lambda x: x + 1, in_shardings=NamedSharding(mesh_of("v5e:1x1"), P())).lower(
        shape(8, 2**30, dtype=jnp.float32)
    )
    found = cost.compiled(lowered, "tpu")
    assert found.executable is None
    assert found.wanted == pytest.approx(64 * 2**30, rel=0.01)
    assert cost._capacity("v5e:1x1") == int(15.75 * 2**30)


def test_arguments_are_counted_as_they_lie_in_memory():
    shapes = [shape(3, 5, 700), shape(9), shape(), shape(4, 16, 16, 3, dtype=jnp.uint8)]
    shapes.append(shape(130, 257, dtype=jnp.float32))
    where = NamedSharding(mesh_of("v5e:1x1"), P())
    lowered = jax.jit(lambda xs: sum(jnp.sum(x) for x in xs), in_shardings=where).lower(shapes)
    compiled = cost.compiled(lowered, "tpu").executable
    (formats,), _ = compiled.input_formats
    size = cost._bytes(shapes, formats)
    assert size == compiled.memory_analysis().argument_size_in_bytes
    assert size > sum(x.size * x.dtype.itemsize for x in shapes)
