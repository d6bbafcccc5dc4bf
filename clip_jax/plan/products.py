"""FLOPs of the matrix products and convolutions in a compiled program's text."""

from __future__ import annotations

import math
import re

import numpy as np

from clip_jax.plan.loops import Operation, Table

KINDS = ("convolution", "dot")
_SHAPE = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")


def flops(op: Operation, table: Table) -> int:
    """FLOPs of one run of a `dot` or a `convolution` among the operations of `table`.

    A multiplication and an addition are two. A convolution counts the taps that fall on elements of
    its input and none on padding or dilation: TPU's compiler writes batched products as such
    convolutions, most of whose taps are empty. What cannot be read counts as 0.
    """
    if op.kind not in KINDS or len(op.operands) < 2:
        return 0
    left, right = (_dims(name, table) for name in op.operands[:2])
    found = _SHAPE.search(op.result)
    if left is None or right is None or not found:
        return 0
    output = _numbers(found[1])
    if op.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
        sides = [left[i] for i in _numbers(contracted[1])] if contracted else []
        return 2 * math.prod(output) * math.prod(sides)
    return _convolution(op.rest, left, right, output)


def _convolution(rest: str, left: list[int], right: list[int], output: list[int]) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if not labels or [len(part) for part in labels.groups()] != [*map(len, (left, right, output))]:
        return 0
    of_left, of_right, of_output = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", rest)
    settings = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    spatial = [label for label in of_output if label.isdigit()]
    inputs = right[of_right.index("i")]
    total = 2 * output[of_output.index("b")] * output[of_output.index("f")] * inputs
    for label in spatial:
        axis = int(label)
        total *= _taps(
            left[of_left.index(label)],
            right[of_right.index(label)],
            output[of_output.index(label)],
            stride=_setting(settings, "stride", axis, 1),
            padding=_setting(settings, "pad", axis, 0),
            input_dilation=_setting(settings, "lhs_dilate", axis, 1),
            kernel_dilation=_setting(settings, "rhs_dilate", axis, 1),
        )
    return total


def _taps(
    inputs: int,
    kernel: int,
    outputs: int,
    *,
    stride: int,
    padding: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Pairs of an output and a tap of the kernel along one axis that meet an element of the input.

    padding: before the first element; negative where elements are cut off.
    """
    first = np.arange(outputs, dtype=np.int64)[:, None] * stride - padding
    place = first + np.arange(kernel, dtype=np.int64) * kernel_dilation
    inside = (place >= 0) & (place <= (inputs - 1) * input_dilation)
    return int(np.count_nonzero(inside & (place % input_dilation == 0)))


def _setting(settings: dict[str, str], key: str, axis: int, default: int) -> int:
    """An axis's value of a window's setting such as `stride=2x1` or `pad=0_1x3_3` (its first)."""
    if key not in settings:
        return default
    return int(settings[key].split("x")[axis].split("_")[0])


def _dims(name: str, table: Table) -> list[int] | None:
    """The dimensions of an operand; None where they are not known."""
    name, *elements = name.split("#")
    op = table.get(name)
    shapes = _SHAPE.findall(op.result) if op else []
    index = int(elements[0]) if elements else 0
    return _numbers(shapes[index]) if len(elements) < 2 and index < len(shapes) else None


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]
