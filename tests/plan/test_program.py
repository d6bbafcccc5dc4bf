"""Tests parsing of compiled programs: loops, collectives, products, kernels."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.plan import collectives, program, shapes
from clip_jax.plan.loops import evaluate_call

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d","x":[]}}'


def loop(
    *, start=0, step=1, bound=7, direction="LT", body="", fused=False, known="", outer=""
) -> str:
    """A program with the operations `outer`, and a loop around the operations `body`."""
    condition = f"  ROOT %lt = pred[] compare(%i.2, %bound), direction={direction}"
    fused_computation = ""
    if fused:
        condition = "  ROOT %lt = pred[]{:T(512)} fusion(%i.2, %bound), kind=kLoop, calls=%compared"
        fused_computation = f"""
%compared (p.0: s32[], p.1: s32[]) -> pred[] {{
  %p.0 = s32[]{{:T(128)}} parameter(0)
  %p.1 = s32[]{{:T(128)}} parameter(1)
  ROOT %less = pred[] compare(%p.0, %p.1), direction={direction}
}}
"""
    return f"""HloModule jit_f, is_scheduled=true
{fused_computation}
%body (state: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {{
  %state = (s32[]{{:T(128)}}, f32[8]{{0:T(128)S(1)}}, s32[]{{:T(128)}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %by = s32[]{{:T(128)}} get-tuple-element(%state), index=2
  %next = s32[]{{:T(128)}} add(%i, %by), metadata={{op_name="jit(f)/while/body/add"}}
  %x = f32[8]{{0:T(128)}} get-tuple-element(%state), index=1
{body}
  ROOT %out = (s32[], f32[8], s32[]) tuple(%next, %x, %by)
}}

%condition (state.1: (s32[], f32[8], s32[])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant({bound})
  %state.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(128)}}, s32[]{{:T(128)}}) parameter(0)
  %i.2 = s32[]{{:T(128)}} get-tuple-element(%state.1), index=0
{condition}
}}

ENTRY %main (x.0: f32[8]) -> f32[8] {{
  %x.0 = f32[8]{{0:T(128)}} parameter(0)
  %first = s32[]{{:T(128)}} constant({start})
  %copied = s32[]{{:T(128)}} copy(%first)
  %by.0 = s32[]{{:T(128)}} constant({step})
{outer}
  %begin = (s32[], f32[8], s32[]) tuple(%copied, %x.0, %by.0)
  %while = (s32[], f32[8], s32[]) while(%begin), condition=%condition, body=%body{known}
  ROOT %last = f32[8]{{0:T(128)}} get-tuple-element(%while), index=1
}}
"""


def in_jax_0_12_syntax(text: str) -> str:
    """The same program as jax 0.12 writes it: `%state#0` instead of an operation for element 0."""
    elements = re.findall(r"^  (%\S+) = \S+ get-tuple-element\((%\S+)\), index=(\d)\n", text, re.M)
    for name, state, index in elements:
        text = re.sub(rf"^  {re.escape(name)} = .*\n", "", text, flags=re.M)
        text = re.sub(rf"{re.escape(name)}(?![\w.])", f"{state}#{index}", text)
    assert elements
    return text


def operation(cycles: int, name: str = "work") -> str:
    return f"  %{name} = f32[8]{{0:T(128)}} negate(%x), {CYCLES % cycles}"


@given(
    start=st.integers(-50, 50),
    step=st.integers(-7, 7).filter(bool),
    bound=st.integers(-200, 200),
    direction=st.sampled_from(["LT", "LE", "GT", "GE"]),
    fused=st.booleans(),
    jax_0_12=st.booleans(),
)
def test_trip_counts_match_a_simulation(start, step, bound, direction, fused, jax_0_12):
    continues = {
        "LT": lambda i: i < bound,
        "LE": lambda i: i <= bound,
        "GT": lambda i: i > bound,
        "GE": lambda i: i >= bound,
    }[direction]
    trips, i = 0, start
    while continues(i) and trips < 1000:
        trips, i = trips + 1, i + step
    text = loop(
        start=start, step=step, bound=bound, direction=direction, fused=fused, body=operation(3)
    )
    parsed = program.parse(in_jax_0_12_syntax(text) if jax_0_12 else text)
    if trips == 1000:
        assert parsed.unread_loops == ["while"] and parsed.cycles == 3
    else:
        assert not parsed.unread_loops and parsed.cycles == 3 * trips


def test_a_trip_count_from_the_compiler_is_used():
    known = ', backend_config={"known_trip_count":{"n":"12"}}'
    assert program.parse(loop(known=known, body=operation(5))).cycles == 60


def test_a_loop_with_a_data_dependent_end_counts_once_and_is_named():
    text = loop(body=operation(5)).replace("copy(%first)", "custom-call(%first)")
    parsed = program.parse(text)
    assert parsed.unread_loops == ["while"] and parsed.cycles == 5


@pytest.mark.parametrize(
    "line",
    [
        "unheard-of(%i.2, %bound), direction=LT",
        "and(%known, %i.9)",
        "compare(%state.1#7, %bound), direction=LT",
        "compare(%bound, %bound), direction=LT",
    ],
)
def test_a_loop_with_an_unknown_condition_counts_once_and_is_named(line):
    text = loop(body=operation(5)).replace("compare(%i.2, %bound), direction=LT", line)
    parsed = program.parse(text)
    assert parsed.unread_loops == ["while"] and parsed.cycles == 5


def test_elements_of_nested_tuples_are_evaluated():
    text = """HloModule jit_f

ENTRY %main (x: s32[]) -> s32[] {
  %five = s32[] constant(5)
  %inner = (s32[], s32[]) tuple(%five, %five)
  %outer = (s32[], (s32[], s32[])) tuple(%five, %inner)
  ROOT %sum = s32[] add(%outer#1#0, %outer#0)
}
"""
    lines, entry = program._split_computations(text)
    computations = {name: program._parse_operations(text) for name, text in lines.items()}
    assert evaluate_call(entry, (), computations.__getitem__) == 10


PRODUCTS = """HloModule jit_f

ENTRY %main (a: bf16[8,16,32], b: bf16[8,32,64]) -> bf16[8,16,64] {{
  %a = bf16[8,16,32]{{2,1,0}} parameter(0)
  %b = bf16[8,32,64]{{2,1,0}} parameter(1)
  %k = bf16[3,32,64]{{2,1,0}} parameter(2)
  %both = (bf16[8,16,32], bf16[8,32,64]) tuple(%a, %b)
  ROOT %p = {line}
}}
"""


@pytest.mark.parametrize(
    ("line", "products"),
    [
        (
            "bf16[8,16,64] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
            "rhs_batch_dims={0}, rhs_contracting_dims={1}",
            8 * 16 * 32 * 64,
        ),
        (
            "bf16[8,16,64] dot(%both#0, %both#1), lhs_contracting_dims={2}, "
            "rhs_contracting_dims={1}",
            8 * 16 * 32 * 64,
        ),
        # a batched product: the batch is a dilated dimension, with one non-empty tap in eight
        (
            "bf16[8,16,64] convolution(%a, %b), "
            "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
            8 * 16 * 32 * 64,
        ),
        # two of the 8 · 3 taps of a 'same' convolution are outside
        (
            "bf16[8,16,64] convolution(%a, %k), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf",
            16 * 32 * 64 * (3 * 8 - 2),
        ),
        ("bf16[8,16,64] convolution(%a, %nothing), dim_labels=0bf_0io->0bf", 0),
        ("bf16[8,16,64] convolution(%a, %both#2), dim_labels=0bf_0io->0bf", 0),
        ("bf16[8,16,64] add(%a, %b)", 0),
    ],
)
def test_flops_of_products_do_not_include_padding(line, products):
    assert program.parse(PRODUCTS.format(line=line)).product_flops == 2 * products


def test_products_in_loops_and_fusions_count_in_each_iteration():
    text = loop(body="  %f = f32[8] fusion(%x), kind=kOutput, calls=%fused").replace(
        "\n%body",
        """
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %d = f32[] dot(%p, %p), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%body""",
    )
    assert program.parse(text).product_flops == 2 * 8 * 7


def test_an_operation_without_an_estimate_has_no_cycles():
    text = loop(body=operation(2**63 - 1) + "\n" + operation(4, "more"), bound=3)
    assert program.parse(text).cycles == 12


GATHER = (
    "all-gather(%x), channel_id=4, replica_groups=mesh['data'=4,'fsdp'=8] {'fsdp'}, dimensions={0}"
)
REDUCE = "all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add"


def collective(name: str, text: str, shape: str = "bf16[64,32]{1,0:T(8,128)(2,1)}") -> str:
    return f"  %{name} = {shape} {text}"


def summaries(text: str) -> list[tuple[str, int, int, int]]:
    return [tuple(c.values())[:4] for c in collectives.summaries(program.parse(text).collectives)]


def test_a_collective_in_a_loop_counts_in_each_iteration():
    text = loop(body=collective("g", GATHER), outer=collective("h", GATHER))
    assert summaries(text) == [("all-gather", 64 * 32 * 2, 8, 8)]


def test_collectives_on_the_same_channel_are_separate():
    body = collective("r", REDUCE) + "\n" + collective("s", REDUCE, "f32[16]{0}")
    assert summaries(loop(body=body)) == [("all-reduce", 4096, 7, 4), ("all-reduce", 64, 7, 4)]


def test_an_asynchronous_collective_counts_once():
    fusions = "".join(
        f"""
%{name} (p: bf16[8,32]) -> bf16[64,32] {{
  %p = bf16[8,32] parameter(0)
  %{name}.g = bf16[64,32]{{1,0}} {GATHER}
  ROOT %{name}.c = bf16[64,32]{{1,0}} {root}
}}
"""
        for name, root in (
            ("fused.1", 'custom-call(%g), custom_call_target="AsyncCollectiveStart"'),
            ("async_collective_fusion.2", "add(%g, %g)"),
            ("fused.3", 'custom-call(%g), custom_call_target="AsyncCollectiveDone"'),
        )
    )
    body = "\n".join(
        f"  %f.{i} = bf16[64,32]{{1,0}} fusion(%x), kind=kCustom, calls=%{name}"
        for i, name in enumerate(("fused.1", "async_collective_fusion.2", "fused.3"))
    )
    text = loop(body=body).replace("\n%body", fusions + "\n%body")
    assert summaries(text) == [("all-gather", 4096, 7, 8)]


def test_a_start_counts_with_its_result_and_a_done_does_not():
    shape = "(bf16[64,4]{1,0}, bf16[64,32]{1,0}, u32[]{:S(2)})"
    start = collective("s", GATHER.replace("all-gather(", "all-gather-start("), shape)
    done = collective("d", "all-gather-done(%s)")
    assert summaries(loop(body=f"{start}\n{done}")) == [("all-gather", 4096, 7, 8)]


def test_a_fusion_that_keeps_a_part_of_an_all_reduce_is_a_reduce_scatter():
    fused = f"""
%all-reduce-scatter.1 (p: f32[64,32]) -> f32[16,32] {{
  %p = f32[64,32]{{1,0}} parameter(0)
  %r = f32[64,32]{{1,0}} {REDUCE}
  ROOT %s = f32[16,32]{{1,0}} dynamic-slice(%r, %p, %p), dynamic_slice_sizes={{16,32}}
}}
"""
    body = "  %f = f32[16,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    text = loop(body=body).replace("\n%body", fused + "\n%body")
    assert summaries(text) == [("reduce-scatter", 2048, 7, 4)]


@pytest.mark.parametrize(
    ("kind", "group_size", "bytes_sent"),
    [
        ("all-gather", 4, 30),
        ("all-reduce", 4, 60),
        ("all-reduce", 1, 0),
        ("reduce-scatter", 4, 120),
        ("collective-permute", 0, 120),
        ("all-to-all", 4, 30),
    ],
)
def test_bytes_sent_by_a_collective(kind, group_size, bytes_sent):
    assert collectives.Collective(kind, 10, 3, group_size).bytes_sent == bytes_sent


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048),
        ("f32[]", 4),
        ("pred[3]", 3),
        ("s4[10]", 5),
        ("(f32[2]{0}, (u8[3]{0}, token[]))", 11),
        ("f8e4m3fn[16]", 16),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert shapes.shape_bytes(shape) == size


def test_the_costlier_branch_of_a_conditional_counts():
    branches = "".join(
        f"""
%{name} (q: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT{operation(cycles).replace("  %", " %")}
}}
"""
        for name, cycles in (("cheap", 10), ("costly", 1000))
    )
    body = "  %c = f32[8] conditional(%i, %x, %x), branch_computations={%costly, %cheap}"
    text = loop(body=body).replace("\n%body", branches + "\n%body")
    assert program.parse(text).cycles == 7000


def test_a_kernel_has_executions_and_no_cycles():
    body = '  %k = f32[8] custom-call(%x), custom_call_target="tpu_custom_call"'
    parsed = program.parse(loop(body=body))
    assert parsed.kernels == {"k": 7} and parsed.cycles == 0
