"""A lower bound of the time of a compiled program on a GPU, whose compiler estimates no time.

Each kernel takes at least its FLOPs divided by the GPU's peak, and at least the bytes that it must
move divided by the bandwidth of the memory (Williams et al. 2009, "Roofline"). Arrays that fit into
the L2 cache may never reach the memory and count as free, so that the sum stays a lower bound.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from clip_jax.distributed.hardware import Chip
from clip_jax.models import flash_kernels
from clip_jax.plan import collectives
from clip_jax.plan.loops import Operation, Operations
from clip_jax.plan.products import convolution_flops, product_flops
from clip_jax.plan.shapes import (
    integers,
    shape_bytes,
    shape_dims,
    shape_dtype,
    tuple_elements,
)

TRITON = "__gpu$xla.gpu.triton"  # of kernels in Pallas
_MATMUL = "__cublas$"
_CONVOLUTION = "__cudnn$conv"

# Operations that run no kernel, or whose computations are followed.
_FREE = {
    "after-all", "async-start", "async-update", "bitcast", "call", "conditional",
    "constant", "domain", "get-tuple-element", "optimization-barrier", "parameter",
    "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
_SLICES = ("dynamic-slice", "gather", "slice")

# FLOP/s of products with these factors, as a share of that of bfloat16. Float32 factors are rounded
# to TF32 on GPUs.
_PEAKS = {"bf16": 1.0, "f16": 1.0, "s8": 2.0, "u8": 2.0}
_TF32 = 0.5

Computations = Callable[[str], Operations]


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one execution of a kernel.

    Attributes:
      flops: FLOPs of products, by the dtype of the factors.
      bytes: a lower bound of what is read from and written to the memory.
    """

    flops: Mapping[str, float]
    bytes: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """A GPU, as far as the bound depends on it.

    Attributes:
      chip: peak and bandwidth.
      cache: bytes of the L2 cache.
      hosts: the number of the host of each device of the program.
    """

    chip: Chip
    cache: int
    hosts: Sequence[int]

    def seconds(self, work: Work) -> float:
        """Returns the least time of one execution."""
        bandwidth = self.chip.bandwidth
        assert bandwidth is not None
        compute = sum(
            flops / (_peak_share(dtype) * self.chip.peak) for dtype, flops in work.flops.items()
        )
        return max(compute, work.bytes / bandwidth)

    def work(self, op: Operation, operations: Operations, computations: Computations) -> Work:
        """Returns the work of an operation that stands outside fusions.

        Args:
          op: the operation.
          operations: the operations of its computation.
          computations: all computations of the program.
        """
        kind = op.opcode.removesuffix("-start").removesuffix("-done")
        if op.opcode in _FREE or op.opcode.endswith("-done") or kind in collectives.KINDS:
            return Work({}, 0)
        flops: dict[str, float] = {}
        for dtype, count in _flops(op, operations, computations):
            flops[dtype] = flops.get(dtype, 0.0) + count
        moved = _fusion_bytes if op.opcode == "fusion" else _operation_bytes
        sizes = moved(op, operations, computations)
        return Work(flops, sum(size for size in sizes if size > self.cache))


def _peak_share(dtype: str) -> float:
    return 2.0 if dtype.startswith("f8") else _PEAKS.get(dtype, _TF32)


def custom_call_target(op: Operation) -> str:
    """Returns the library or kernel that a custom call calls; empty if there is none."""
    target = re.search(r'custom_call_target="([^"]*)"', op.text)
    return target[1] if target else ""


def kernel_flops(op: Operation) -> float:
    """Returns the FLOPs of one of our own kernels; 0 for kernels that are not known."""
    return flash_kernels.flops(op.text, shape_dims(op.shape))


def _flops(
    op: Operation, operations: Operations, computations: Computations
) -> Iterator[tuple[str, float]]:
    """Yields the dtypes of factors and the FLOPs of all products in an operation."""
    if op.opcode == "fusion":
        for name in op.called_computations:
            inner = computations(name)
            for each in inner.values():
                yield from _flops(each, inner, computations)
        return
    target = custom_call_target(op) if op.opcode == "custom-call" else ""
    factors = [_operand_shape(name, operations) for name in op.operands[:2]]
    if target.startswith(_MATMUL):
        contracting = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.text)
        dims = shape_dims(factors[0])
        count = 2.0
        for axis in integers(contracting[1].replace('"', "")) if contracting else []:
            count *= dims[axis]
        for size in shape_dims(op.shape):
            count *= size
    elif target.startswith(_CONVOLUTION):
        count = _convolution(target, op, factors)
    elif target == TRITON:
        count = kernel_flops(op)
    else:
        count = product_flops(op, operations)
    if count:
        yield shape_dtype(factors[0]), count


def _convolution(target: str, op: Operation, factors: Sequence[str]) -> float:
    """Returns the FLOPs of a convolution of cuDNN; its labels are those of the forward pass."""
    first, second = map(shape_dims, factors)
    result = shape_dims(op.shape)
    arrays = {
        "__cudnn$convBackwardInput": (result, second, first),
        "__cudnn$convBackwardFilter": (first, result, second),
    }.get(target, (first, second, result))
    return convolution_flops(op.text, *arrays)


def _operand_shape(name: str, operations: Operations) -> str:
    """Returns the shape of an operand, which may be an element of a tuple; empty if unknown."""
    name, *indices = name.split("#")
    op = operations.get(name)
    shape = op.shape if op else ""
    for index in map(int, indices):
        elements = tuple_elements(shape)
        shape = elements[index] if index < len(elements) else ""
    return shape


def _result_bytes(op: Operation) -> list[int]:
    """Returns the sizes of the results of an operation, without scratch memory of libraries."""
    elements = tuple_elements(op.shape)
    if custom_call_target(op).startswith((_MATMUL, _CONVOLUTION)) and len(elements) > 1:
        elements = elements[:-1]
    return [shape_bytes(element) for element in elements]


def _operation_bytes(op: Operation, operations: Operations, _: Computations) -> list[int]:
    """Returns the sizes of what an operation without a fusion reads and writes."""
    if op.opcode in _SLICES:
        return [shape_bytes(op.shape)] * 2
    if op.opcode == "dynamic-update-slice":
        return [shape_bytes(_operand_shape(op.operands[1], operations))] * 2
    operands = (shape_bytes(_operand_shape(name, operations)) for name in set(op.operands))
    return [*operands, *_result_bytes(op)]


def _fusion_bytes(op: Operation, operations: Operations, computations: Computations) -> list[int]:
    """Returns the sizes of what a fusion reads and writes: of some arrays only slices."""
    inner = computations(op.called_computations[0])
    root = next((each for each in inner.values() if each.is_root), None)
    sizes = []
    for each in inner.values():
        if each.opcode == "parameter":
            sizes.append(_read_bytes(each, inner))
    if root is None:
        return sizes
    outputs = (
        [inner[name] for name in root.operands if name in inner]
        if root.opcode == "tuple"
        else [root]
    )
    for output in outputs:
        update = _updated(output, inner)
        sizes += [update] if update is not None else _result_bytes(output)
    return sizes


def _read_bytes(parameter: Operation, inner: Operations) -> int:
    """Returns the bytes that a fusion reads of a parameter, at least."""
    total = 0
    for user in _users(parameter.name, inner):
        if user.opcode in _SLICES and user.operands[0] == parameter.name:
            total += shape_bytes(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue  # updated in place
        else:
            return shape_bytes(parameter.shape)
    return total


def _users(name: str, inner: Operations) -> list[Operation]:
    """Returns the operations that use a value, through those that only rename it."""
    users = []
    for op in inner.values():
        if name in op.operands:
            users += _users(op.name, inner) if op.opcode == "bitcast" else [op]
    return users


def _updated(output: Operation, inner: Operations) -> int | None:
    """Returns the bytes that are written of an array updated in place; None for other results."""
    while output.opcode == "bitcast" and output.operands[0] in inner:
        output = inner[output.operands[0]]
    if output.opcode != "dynamic-update-slice":
        return None
    return shape_bytes(_operand_shape(output.operands[1], inner))
