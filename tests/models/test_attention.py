"""Tests the attention kernel for GPUs on a CPU, and which attention a program uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from clip_jax.distributed import sharding
from clip_jax.errors import UserError
from clip_jax.models import attention
from clip_jax.models.flash_attention import flash_attention

# Lengths that fill blocks and that do not, sizes of heads that are powers of two and that are not.
SHAPES = [(2, 64, 2, 64), (1, 197, 2, 64), (2, 50, 1, 80), (1, 7, 3, 16), (1, 1, 1, 88)]


def results(attend, arrays):
    q, k, v, gradient = arrays
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(gradient)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_computes_attention_and_its_gradients(shape, causal):
    arrays = tuple(jax.random.normal(jax.random.key(1), (4, *shape)))
    flash = results(lambda *a: flash_attention(*a, causal, True), arrays)
    xla = results(lambda *a: jax.nn.dot_product_attention(*a, is_causal=causal), arrays)
    for ours, expected in zip(flash, xla, strict=True):
        np.testing.assert_allclose(ours, expected, atol=3e-6)


def test_large_scores_neither_overflow_nor_lose_their_gradients():
    """Scores of hundreds: the softmax is nearly one-hot."""
    q, k, v, gradient = 12 * jax.random.normal(jax.random.key(2), (4, 1, 40, 1, 64))
    arrays = q, k, v / 12, gradient / 12
    flash = results(lambda *a: flash_attention(*a, False, True), arrays)
    xla = results(jax.nn.dot_product_attention, arrays)
    for ours, expected in zip(flash, xla, strict=True):
        assert jnp.isfinite(ours).all()
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def traced(kind, shape=(16, 50, 2, 64), dtype=jnp.bfloat16, mask=None, name="auto", mesh=(2, 2, 1)):
    """The jaxpr of attention that is traced for a mesh of such GPUs."""
    from jax._src.mesh import AbstractDevice  # what `Mesh.abstract_mesh` holds for real devices

    platform = "gpu" if kind.startswith("NVIDIA") else "tpu"
    context = AbstractMesh(
        mesh,
        sharding.AXES,
        axis_types=(AxisType.Auto,) * 3,
        abstract_device=AbstractDevice(kind, None, platform),
    )
    array = jax.ShapeDtypeStruct(shape, dtype)
    with jax.sharding.use_abstract_mesh(context), attention.implementation(name):
        return str(jax.make_jaxpr(lambda q, k, v: attention.attend(q, k, v, mask))(*[array] * 3))


@pytest.mark.parametrize(
    ("kind", "options", "is_kernel"),
    [
        ("NVIDIA H100 80GB HBM3", {}, True),
        ("NVIDIA H100 80GB HBM3", {"mesh": (1, 2, 2)}, True),
        ("NVIDIA H100 80GB HBM3", {"name": "xla"}, False),
        ("NVIDIA H100 80GB HBM3", {"dtype": jnp.float32}, False),
        ("NVIDIA H100 80GB HBM3", {"mask": jnp.ones((1, 1, 50, 50), bool)}, False),
        ("NVIDIA H100 80GB HBM3", {"shape": (3, 50, 2, 64)}, False),  # rows that four cannot share
        ("NVIDIA GeForce RTX 3090", {}, False),
        ("NVIDIA GeForce RTX 3090", {"name": "flash"}, True),
        ("TPU v5e", {}, False),
    ],
)
def test_the_kernel_is_used_where_it_suits(kind, options, is_kernel):
    assert ("flash_attention_forward" in traced(kind, **options)) is is_kernel


def test_outside_a_mesh_and_on_cpus_attention_is_that_of_jax():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 2, 8), jnp.bfloat16)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    assert (attention.attend(q, k, v, causal=True) == expected).all()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_programs_for_other_devices_are_those_of_jax(platform):
    """Word for word: what GPUs get leaves CPUs and TPUs alone."""

    def text(attend):
        def f(q, k, v):
            return jax.value_and_grad(lambda q: attend(q, k, v).astype(jnp.float32).sum())(q)

        array = jax.ShapeDtypeStruct((8, 50, 2, 64), jnp.bfloat16)
        mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.jit(f).trace(*[array] * 3).lower(lowering_platforms=(platform,)).as_text()

    assert text(attention.attend) == text(jax.nn.dot_product_attention)


def test_the_kernel_is_compared_with_xla_before_it_trains(monkeypatch):
    cpu = jax.devices()[0]
    attention.check_kernel("auto", cpu)
    with pytest.raises(UserError, match="attention=flash needs an NVIDIA GPU, not cpu"):
        attention.check_kernel("flash", cpu)
    attention.check_kernel("flash", cpu, interpret=True)
    monkeypatch.setattr(attention, "_kernel_difference", lambda *_: float("nan"))
    with pytest.raises(UserError, match=r"is wrong by nan.*config\.attention=xla"):
        attention.check_kernel("flash", cpu, interpret=True)

    def fail(*_):
        raise RuntimeError("no\nPTX")

    monkeypatch.setattr(attention, "_kernel_difference", fail)
    with pytest.raises(UserError, match=r"fails \(no PTX\) on cpu"):
        attention.check_kernel("flash", cpu, interpret=True)
