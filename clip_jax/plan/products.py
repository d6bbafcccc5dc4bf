"""Counts the FLOPs of matrix products and convolutions in the text of a compiled program."""

from __future__ import annotations

import math
import re

import numpy as np

from clip_jax.plan.loops import Operation, Operations
from clip_jax.plan.shapes import integers

OPCODES = ("convolution", "dot")
_DIMENSIONS = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")


def product_flops(op: Operation, operations: Operations) -> int:
    """Returns the FLOPs of one execution of a `dot` or `convolution`; 0 for other operations.

    A multiplication and an addition count as two. A convolution counts only the taps that fall on
    elements of its input, not on padding or dilation: the TPU compiler writes batched products as
    convolutions in which most taps are empty. An operation that cannot be parsed counts as 0.

    Args:
      op: the operation.
      operations: the operations of its computation.
    """
    if op.opcode not in OPCODES or len(op.operands) < 2:
        return 0
    left, right = (_operand_dims(name, operations) for name in op.operands[:2])
    shape = _DIMENSIONS.search(op.shape)
    if left is None or right is None or not shape:
        return 0
    output = integers(shape[1])
    if op.opcode == "dot":
        contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.text)
        contracted = [left[i] for i in integers(contracting[1])] if contracting else []
        return 2 * math.prod(output) * math.prod(contracted)
    return convolution_flops(op.text, left, right, output)


def convolution_flops(text: str, left: list[int], right: list[int], output: list[int]) -> int:
    """Returns the FLOPs of a convolution; 0 if it cannot be parsed.

    Args:
      text: its attributes, with the labels of the dimensions.
      left: the dimensions of the input.
      right: the dimensions of the kernel.
      output: the dimensions of the result.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    if not labels or [len(part) for part in labels.groups()] != [*map(len, (left, right, output))]:
        return 0
    left_labels, right_labels, output_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", text)
    settings = dict(re.findall(r"(\w+)=(\S+)", window[1] if window else ""))
    batch, features = output[output_labels.index("b")], output[output_labels.index("f")]
    flops = 2 * batch * features * right[right_labels.index("i")]
    for label in filter(str.isdigit, output_labels):
        axis = int(label)
        flops *= _count_taps(
            left[left_labels.index(label)],
            right[right_labels.index(label)],
            output[output_labels.index(label)],
            stride=_window_setting(settings, "stride", axis, 1),
            padding=_window_setting(settings, "pad", axis, 0),
            input_dilation=_window_setting(settings, "lhs_dilate", axis, 1),
            kernel_dilation=_window_setting(settings, "rhs_dilate", axis, 1),
        )
    return flops


def _count_taps(
    inputs: int,
    kernel: int,
    outputs: int,
    *,
    stride: int,
    padding: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Counts the pairs of an output and a kernel tap along one axis that read an input element.

    `padding` is the padding before the first element; negative padding crops elements.
    """
    start = np.arange(outputs, dtype=np.int64)[:, None] * stride - padding
    position = start + np.arange(kernel, dtype=np.int64) * kernel_dilation
    inside = (position >= 0) & (position <= (inputs - 1) * input_dilation)
    return int(np.count_nonzero(inside & (position % input_dilation == 0)))


def _window_setting(settings: dict[str, str], key: str, axis: int, default: int) -> int:
    """Returns one axis's value in a setting: `stride=2x1` or `pad=0_1x3_3` (before the `_`)."""
    if key not in settings:
        return default
    return int(settings[key].split("x")[axis].split("_")[0])


def _operand_dims(name: str, operations: Operations) -> list[int] | None:
    """Returns the dimensions of an operand; None if they are unknown."""
    name, *indices = name.split("#")
    op = operations.get(name)
    shapes = _DIMENSIONS.findall(op.shape) if op else []
    index = int(indices[0]) if indices else 0
    return integers(shapes[index]) if len(indices) < 2 and index < len(shapes) else None
