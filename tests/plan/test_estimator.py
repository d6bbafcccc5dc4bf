"""Tests estimates of programs with known cost; the TPU compiler compiles them, nothing runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.distributed import hardware
from clip_jax.plan import compiling, cost
from clip_jax.plan.collectives import summaries
from clip_jax.plan.topology import find_topology

pytest.importorskip("libtpu")


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


def mesh_of(name):
    return jax.sharding.Mesh(np.array(find_topology(name).devices), ("data",))


def compile_program(function, *args, name="v5e:1x1", specs=None):
    """The parsed program of a function for a topology, with arguments sharded by `specs`."""
    mesh = mesh_of(name)
    shardings = [NamedSharding(mesh, spec) for spec in specs or [P()] * len(args)]
    lowered = jax.jit(function, in_shardings=shardings).lower(*args)
    return compiling.compile_lowered(lowered, "tpu").program


@pytest.mark.parametrize("name", ["v5e:1x1", "v5p:1x1x1"])
def test_a_large_matrix_product_is_estimated_near_the_peak(name):
    n = 8192
    program = compile_program(jnp.matmul, shape(n, n), shape(n, n), name=name)
    chip = hardware.chip_of_device(find_topology(name).devices[0])
    seconds = program.cycles / (chip.clock * 1e9)
    assert 0.85 <= 2 * n**3 / seconds / chip.peak <= 0.95
    assert not program.unread_loops and not program.kernels and not program.collectives
    assert program.product_flops == 2 * n**3


@pytest.mark.parametrize("operation", [jnp.matmul, lambda a, b: a * b + 1])
def test_two_cores_take_half_the_time_of_one(operation):
    """Also where memory is the limit, which the cores of a chip share."""
    arguments = shape(4096, 4096), shape(4096, 4096)
    both = compile_program(operation, *arguments, name="v5p:1x1x1").cycles
    core = compile_program(operation, *arguments, name="v5p:1x1x1x2").cycles
    assert both == pytest.approx(core / 2, rel=0.05)


def two_products(x, w1, w2):
    """Two products, so that neither writes to the memory that it reads."""
    return jnp.tanh(x @ w1) @ w2


MATRICES = shape(4096, 2048), shape(2048, 2048), shape(2048, 2048)


@functools.cache
def loop_cycles(trips):
    def loop(x, w1, w2):
        return jax.lax.fori_loop(0, trips, lambda _, x: two_products(x, w1, w2), x)

    return compile_program(loop, *MATRICES).cycles


def test_a_loop_costs_as_much_as_its_unrolled_equivalent():
    def unrolled(x, w1, w2):
        for _ in range(6):
            x = two_products(x, w1, w2)
        return x

    unrolled_cycles = compile_program(unrolled, *MATRICES).cycles
    assert loop_cycles(6) == pytest.approx(unrolled_cycles, rel=0.1)


def test_cycles_scale_with_the_trip_counts_of_nested_loops():
    once = loop_cycles(7) - loop_cycles(6)
    assert loop_cycles(7) == pytest.approx(7 * once, rel=0.1)

    def nested(x, w1, w2):
        def inner(_, x):
            return jax.lax.fori_loop(2, 5, lambda _, x: two_products(x, w1, w2), x)

        return jax.lax.fori_loop(0, 5, inner, x)

    program = compile_program(nested, *MATRICES)
    assert not program.unread_loops
    assert program.cycles == pytest.approx(15 * once, rel=0.1)


def test_flops_of_batched_products_and_convolutions():
    """The TPU compiler writes both as convolutions with mostly empty windows."""

    def products(q, k, image, kernel):
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        features = jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return scores, features

    program = compile_program(
        products, *[shape(8, 64, 4, 32)] * 2, shape(8, 32, 32, 16), shape(3, 3, 16, 128)
    )
    scores = 8 * 4 * 64 * 64 * 32
    # for an even size, 'SAME' with stride 2 pads one element at the end of each axis
    convolution = 8 * 128 * 16 * (16 * 3 - 1) ** 2
    assert program.product_flops == pytest.approx(2 * (scores + convolution), rel=0.01)


def test_a_loop_with_a_data_dependent_end_is_named_and_counted_once():
    def until(x, n):
        return jax.lax.while_loop(lambda s: s[1] < n, lambda s: (s[0] @ s[0], s[1] + 1), (x, 0))[0]

    program = compile_program(until, shape(1024, 1024), shape(dtype=jnp.int32))
    once = compile_program(jnp.matmul, shape(1024, 1024), shape(1024, 1024)).cycles
    assert len(program.unread_loops) == 1
    assert 0.5 * once < program.cycles < 2 * once


def test_an_all_gather_in_a_loop_counts_in_each_iteration():
    replicated = NamedSharding(mesh_of("v5e:2x2"), P())

    def gathering(ws, x):
        def body(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, replicated)), None

        return jax.lax.scan(body, x, ws)[0]

    program = compile_program(
        gathering,
        shape(7, 1024, 1024),
        shape(512, 1024),
        name="v5e:2x2",
        specs=[P(None, "data"), P("data")],
    )
    gathers = [c for c in summaries(program.collectives) if c["kind"] == "all-gather"]
    assert gathers == [
        {
            "kind": "all-gather",
            "bytes": 2 * 1024**2,
            "executions": 7,
            "group_size": 4,
            "hosts": None,
        }
    ]


def test_bytes_of_an_all_reduce_and_a_permute():
    mesh = mesh_of("v5e:2x2")

    def communicate(x):
        right = [(i, (i + 1) % 4) for i in range(4)]
        return jax.lax.psum(x, "data") + jax.lax.ppermute(x, "data", right)

    local = jax.shard_map(
        communicate, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    array = shape(4096, 256, dtype=jnp.float32)
    program = compile_program(local, array, name="v5e:2x2", specs=[P("data")])
    merged = summaries(program.collectives)
    assert {c["kind"]: (c["bytes"], c["executions"]) for c in merged} == {
        "all-reduce": (1 << 20, 1),
        "collective-permute": (1 << 20, 1),
    }
    assert {c.kind: c.bytes_sent >> 20 for c in program.collectives} == {
        "all-reduce": 2,
        "collective-permute": 4,
    }


def test_a_kernel_is_named_with_its_executions():
    from jax.experimental import pallas as pl

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def kernels(x):
        call = pl.pallas_call(double, out_shape=shape(256, 256, dtype=jnp.float32))
        return jax.lax.fori_loop(0, 3, lambda _, x: call(x), x)

    program = compile_program(kernels, shape(256, 256, dtype=jnp.float32))
    assert list(program.kernels.values()) == [3]


def test_a_program_that_does_not_fit_has_its_requested_bytes():
    lowered = jax.jit(lambda x: x + 1, in_shardings=NamedSharding(mesh_of("v5e:1x1"), P())).lower(
        shape(8, 2**30, dtype=jnp.float32)
    )
    result = compiling.compile_lowered(lowered, "tpu")
    assert result.executable is None
    assert result.requested_bytes == pytest.approx(64 * 2**30, rel=0.01)
    assert cost._capacity("v5e:1x1") == int(15.75 * 2**30)


def test_bytes_of_arguments_include_the_padding_of_tiles():
    shapes = [shape(3, 5, 700), shape(9), shape(), shape(4, 16, 16, 3, dtype=jnp.uint8)]
    shapes.append(shape(130, 257, dtype=jnp.float32))
    sharding = NamedSharding(mesh_of("v5e:1x1"), P())
    lowered = jax.jit(lambda xs: sum(jnp.sum(x) for x in xs), in_shardings=sharding).lower(shapes)
    executable = compiling.compile_lowered(lowered, "tpu").executable
    (formats,), _ = executable.input_formats
    size = cost._shard_bytes(shapes, formats)
    assert size == executable.memory_analysis().argument_size_in_bytes
    assert size > sum(x.size * x.dtype.itemsize for x in shapes)
