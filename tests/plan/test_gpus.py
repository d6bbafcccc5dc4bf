"""Tests plans for GPUs that are not there: their descriptions, and compiled steps."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from clip_jax import main
from clip_jax.distributed import hardware, sharding
from clip_jax.errors import UserError
from clip_jax.models import attention
from clip_jax.plan import compiling, gpus, program
from clip_jax.plan.roofline import Roofline
from clip_jax.plan.topology import find_topology

# CUDA_VISIBLE memory in GB as data sheets count it, compute capability.
DATA_SHEETS = {
    "a100": (80, 8.0),
    "h100": (80, 9.0),
    "h200": (141, 9.0),
    "b200": (180, 10.0),
    "l4": (24, 8.9),
    "l40s": (48, 8.9),
    "rtx3070": (8, 8.6),
    "rtx3090": (24, 8.6),
    "rtx4090": (24, 8.9),
    "rtx5090": (32, 12.0),
}


@pytest.mark.parametrize("kind", gpus.GPUS)
def test_a_gpu_is_described_to_the_compiler(kind):
    """XLA's parser accepts the description, and the chip's peak is known."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    topology = find_topology(f"{kind}:2x4")
    assert len(topology.devices) == topology.chips == 8
    assert [device.process_index for device in topology.devices] == [0] * 4 + [1] * 4
    chip = hardware.chip_of_device(topology.devices[0])
    assert chip is not None and chip.peak > 4e13
    gb, capability = DATA_SHEETS.get(kind, (None, None))
    if gb:
        assert chip.hbm == gb * 2**30 and 0.93 < gpus.GPUS[kind].memory / chip.hbm < 1.01
        assert gpus.GPUS[kind].capability == divmod(round(capability * 10), 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("h100", "h100:N"),
        ("h100:0", "h100:HOSTSxN"),
        ("h100:8x", "h100:N"),
        ("h100:4x32", "at most 16"),
        ("h100:2x2x2", "h100:N"),
        ("gtx1080:1", "h100:8"),
    ],
)
def test_the_error_for_unknown_gpus(name, words):
    with pytest.raises(UserError) as error:
        find_topology(name)
    assert words in str(error.value) and repr(name) in str(error.value)


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[plan-gpu\]'"):
        find_topology("h100:3")


@pytest.mark.parametrize(("value", "fraction"), [("", 0.75), (".5", 0.5), ("1", 1.0)])
def test_the_share_of_the_memory_that_jax_takes(value, fraction, monkeypatch):
    monkeypatch.setenv(gpus.MEMORY_FRACTION_VARIABLE, value)
    assert gpus.memory_fraction() == fraction


@pytest.mark.parametrize("value", ["2", "0", "most", "nan"])
def test_a_wrong_share_of_the_memory_is_a_user_error(value, monkeypatch):
    monkeypatch.setenv(gpus.MEMORY_FRACTION_VARIABLE, value)
    with pytest.raises(UserError, match=gpus.MEMORY_FRACTION_VARIABLE):
        gpus.memory_fraction()


def compile_for(kind, function, *shapes):
    """Returns the compiled function and its program, for one GPU."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    topology = find_topology(f"{kind}:1")
    mesh = sharding.make_mesh({}, topology.devices)
    replicated = jax.NamedSharding(mesh, jax.P())
    arguments = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated) for s in shapes]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function).lower(*arguments)
    machine = Roofline(hardware.chip_of_device(topology.devices[0]), topology.gpu.l2, [0])
    result = compiling.compile_lowered(lowered, "gpu", machine=machine)
    return result.executable, result.program


def test_the_time_of_a_matrix_product_is_that_of_its_flops_at_the_peak():
    """TF32 halves the peak; three products in a loop take three times as long."""
    size = 8192

    def chain(x, y):
        return jax.lax.fori_loop(0, 3, lambda _, x: x @ y, x)

    for dtype, share in ((jnp.bfloat16, 1), (jnp.float32, 0.5)):
        matrix = jax.ShapeDtypeStruct((size, size), dtype)
        _, parsed = compile_for("h100", chain, matrix, matrix)
        assert parsed.product_flops == 3 * 2 * size**3
        least = parsed.product_flops / (share * hardware.chip_named("h100-sxm").peak)
        assert least <= parsed.seconds <= 1.2 * least  # the rest are copies of the loop's state


def test_the_time_of_an_elementwise_operation_is_that_of_its_bytes():
    """Arrays that fit into the L2 cache may never reach the memory."""
    large = jax.ShapeDtypeStruct((2**30,), jnp.bfloat16)
    _, parsed = compile_for("h100", lambda x: x * 2 + 1, large)
    bandwidth = hardware.chip_named("h100-sxm").bandwidth
    assert parsed.seconds == pytest.approx(2 * 2**31 / bandwidth)
    _, parsed = compile_for("h100", lambda x: x * 2 + 1, jax.ShapeDtypeStruct((2**20,), jnp.int8))
    assert parsed.seconds == 0


def attention_gradients(q, k, v, gradient, causal):
    _, pull = jax.vjp(lambda q, k, v: attention.attend(q, k, v, causal=causal), q, k, v)
    return pull(gradient)


@pytest.mark.parametrize("kind", ["h100", "rtx4090"])
def test_attention_stores_no_matrix_of_scores(kind):
    batch, length, heads, size = 64, 197, 12, 64
    like = jax.ShapeDtypeStruct((batch, length, heads, size), jnp.bfloat16)
    arrays = (like,) * 4
    temporaries = {}
    for name in ("auto", "xla"):
        with attention.implementation(name):
            executable, parsed = compile_for(
                kind, lambda *a: attention_gradients(*a, causal=False), *arrays
            )
        temporaries[name] = executable.memory_analysis().temp_size_in_bytes
        assert parsed.kernels == {}, "the FLOPs of our own kernels are known"
        # two products forward; the backward pass has five, of which the kernels do two again
        products = 9 if name == "auto" else 6
        expected = products * 2 * batch * heads * length**2 * size
        assert parsed.product_flops == pytest.approx(expected, rel=0.2)
    assert temporaries["auto"] < temporaries["xla"] / 20


CONFIG = '''"""A small model on four GPUs of two hosts."""
from configs import common

def get_config():
    c = common.get_config()
    c.batch_size = 256
    c.steps = 3000
    c.mesh.fsdp = 4
    c.model.embed_dim = 64
    c.model.vision.update(image_size=112, patch_size=14, width=128, layers=3, heads=2)
    c.model.text.update(vocab_size=512, context_length=77, width=128, layers=3, heads=2)
    return c
'''


@pytest.mark.slow
def test_the_plan_of_a_step_on_two_hosts(tmp_path, capsys):
    pytest.importorskip("jax_plugins.xla_cuda12")
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    command = ["--config", str(path), "--mode=plan", "--topology=a100:2x2", "--json"]
    assert main.run(command) == 0
    *report, last = capsys.readouterr().out.splitlines()
    result, report = json.loads(last), "\n".join(report)
    assert result["fits"] and result["chips"] == 4 and result["memory_fraction"] == 0.75
    assert sum(result["hbm"].values()) == result["hbm_bytes"]
    assert result["hbm_capacity_bytes"] == int(0.75 * gpus.GPUS["a100"].memory)
    gathers = [c for c in result["collectives"] if c["kind"] == "all-gather"]
    assert gathers and {(c["group_size"], c["hosts"]) for c in gathers} == {(4, 2)}
    network = gpus.GPUS["a100"].network
    assert result["interconnect_seconds"] == pytest.approx(result["between_hosts_bytes"] / network)
    least = result["model_flops"] / 4 / hardware.chip_named("a100-80gb").peak
    # of the last layer few tokens are computed
    assert 0.5 * least < result["estimated_seconds"] < 5 * least
    assert 0.75 < result["product_flops"] / result["model_flops"] < 1.4
    assert result["kernels"] == {} and result["unread_loops"] == [] and not result["time_unknown"]
    for word in ("4 GPUs", "roofline", "75 %", "between hosts", "over 4 on 2 hosts", "GPU-hours"):
        assert word in report


def test_collectives_of_several_arrays_count_whole():
    text = """HloModule jit_f

ENTRY %main (a: bf16[8,16], b: f32[4]) -> bf16[32,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %g = ((bf16[8,16]{1,0}, f32[4]{0}), (bf16[32,16]{1,0}, f32[16]{0})) all-gather-start(%a, %b), replica_groups=[1,4]<=[4], dimensions={0}
  %r = (f32[4]{0}, f32[4]{0}) all-reduce-start(%b, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %d = (bf16[32,16]{1,0}, f32[16]{0}) all-gather-done(%g)
}
"""  # noqa: E501
    gather, reduce = program.parse(text).collectives
    assert (gather.bytes, gather.group_size) == (32 * 16 * 2 + 16 * 4, 4)
    assert (reduce.bytes, reduce.group_size) == (32, 2)


def test_an_asynchronous_fusion_counts_once():
    """As jax 0.12 writes it: a slice that is copied while other kernels run."""
    text = """HloModule jit_f

%sliced (p: bf16[64,4194304], i: s32[]) -> bf16[32,4194304] {
  %p = bf16[64,4194304]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = bf16[32,4194304]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={32,4194304}
}

ENTRY %main (x: bf16[64,4194304], n: s32[]) -> bf16[32,4194304] {
  %x = bf16[64,4194304]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %f = ((bf16[64,4194304]{1,0}, s32[]), bf16[32,4194304]{1,0}) fusion-start(%x, %n), kind=kLoop, calls=%sliced
  ROOT %d = bf16[32,4194304]{1,0} fusion-done(%f)
}
"""  # noqa: E501
    chip = hardware.chip_named("h100-sxm")
    parsed = program.parse(text, Roofline(chip, 50 << 20, [0]))
    assert parsed.seconds == pytest.approx(2 * 32 * 4194304 * 2 / chip.bandwidth)
