"""Rules of slices, gathers, joins and paddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.inference.onnx.graph import (
    Graph,
    Shape,
    Tensor,
    UnsupportedError,
    Value,
    is_symbolic,
)


def take(graph: Graph, value: Value, index: int, shape: Shape) -> Value:
    """Returns the row of a known index along the first axis."""
    if not isinstance(value, Tensor):
        return value[index]
    row = np.asarray(index, np.int64)
    return graph.emit("Gather", value, row, shape=shape, dtype=value.dtype, axis=0)


def stack(graph: Graph, values: Sequence[Value], axis: int) -> Value:
    """Returns values joined along a new axis."""
    rows = []
    for value in values:
        shape = tuple(value.shape)
        rows.append(graph.reshape(value, (*shape[:axis], 1, *shape[axis:])))
    return concatenate(graph, rows, axis)


def concatenate(graph: Graph, values: Sequence[Value], axis: int) -> Value:
    """Returns values joined along an axis."""
    if len(values) == 1:
        return values[0]
    if not any(isinstance(value, Tensor) for value in values):
        return np.concatenate(values, axis)  # type: ignore[arg-type]
    shape = list(values[0].shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    return graph.emit("Concat", *values, shape=tuple(shape), dtype=values[0].dtype, axis=axis)


def _concatenate(graph: Graph, params: Any, results: Any, *values: Value) -> Value:
    del results
    return concatenate(graph, values, params["dimension"])


def _stack(graph: Graph, params: Any, results: Any, *values: Value) -> Value:
    del results
    return stack(graph, values, params["axis"])


def _split(graph: Graph, params: Any, results: Any, value: Value) -> list[Tensor]:
    sizes = np.array(params["sizes"], np.int64)
    shapes = [result.shape for result in results]
    axis = int(params["axis"])
    return graph.emit_all("Split", value, sizes, shapes=shapes, dtype=value.dtype, axis=axis)


def slices(
    graph: Graph,
    value: Value,
    starts: Sequence[Any],
    limits: Sequence[Any],
    strides: Sequence[int],
    shape: Shape,
) -> Value:
    """Returns every `strides`-th element from `starts` to before `limits`, for each axis."""
    axes = [
        axis
        for axis, dim in enumerate(value.shape)
        if not (starts[axis] == 0 and limits[axis] == dim and strides[axis] == 1)
    ]
    if not axes:
        return value
    if any(is_symbolic(starts[axis]) or is_symbolic(limits[axis]) for axis in axes):
        raise UnsupportedError("a slice of the batch")
    vectors = [
        np.array([own[axis] for axis in axes], np.int64) for own in (starts, limits, strides)
    ]
    order = (vectors[0], vectors[1], np.array(axes, np.int64), vectors[2])
    return graph.emit("Slice", value, *order, shape=shape, dtype=value.dtype)


def _slice(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    strides = params["strides"] or (1,) * value.ndim
    starts, limits = params["start_indices"], params["limit_indices"]
    return slices(graph, value, starts, limits, strides, results[0].shape)


def _dynamic_slice(graph: Graph, params: Any, results: Any, value: Value, *starts: Value) -> Value:
    del params
    shape = results[0].shape
    first = []
    for start, dim, size in zip(starts, value.shape, shape, strict=True):
        if isinstance(start, Tensor):
            raise UnsupportedError("a slice whose position depends on the inputs")
        first.append(0 if is_symbolic(dim) else min(max(int(start), 0), dim - size))
    limits = [start + size for start, size in zip(first, shape, strict=True)]
    return slices(graph, value, first, limits, (1,) * value.ndim, shape)


def _pad(graph: Graph, params: Any, results: Any, value: Value, fill: Value) -> Value:
    configuration = params["padding_config"]
    if any(inner for _, _, inner in configuration):
        raise UnsupportedError("padding between elements")
    cut = any(low < 0 or high < 0 for low, high, _ in configuration)
    if cut:
        starts = [max(-low, 0) for low, _, _ in configuration]
        limits = [
            dim if high >= 0 else dim + high
            for dim, (_, high, _) in zip(value.shape, configuration, strict=True)
        ]
        shape = tuple(limit - start for start, limit in zip(starts, limits, strict=True))
        value = slices(graph, value, starts, limits, (1,) * value.ndim, shape)
    pads = np.array([max(own[side], 0) for side in (0, 1) for own in configuration], np.int64)
    if not pads.any():
        return value
    shape = results[0].shape
    return graph.emit("Pad", value, pads, fill, shape=shape, dtype=value.dtype, mode="constant")


def _gather(graph: Graph, params: Any, results: Any, value: Value, indices: Value) -> Value:
    """Rows of a table, elements at positions, or slices at known positions."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    mapped, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    shape, dtype = results[0].shape, results[0].dtype
    if not isinstance(indices, Tensor) and indices.ndim == 1:
        return _known_slice(graph, numbers, sizes, value, indices, shape)
    whole = all(
        axis in collapsed or axis in numbers.operand_batching_dims or size == value.shape[axis]
        for axis, size in enumerate(sizes)
    )
    if not whole or set(mapped) - set(collapsed):
        raise UnsupportedError("a gather of parts of rows")
    positions = tuple(axis for axis in range(len(shape)) if axis not in numbers.offset_dims)
    if not numbers.operand_batching_dims:
        value, rows = _one_axis(graph, mapped, value, indices)
        axis = mapped[0]
        kept = [dim for i, dim in enumerate(value.shape) if i != axis]
        out = (*kept[:axis], *rows.shape, *kept[axis:])
        gathered = graph.emit("Gather", value, rows, shape=out, dtype=dtype, axis=axis)
        # ONNX puts the dimensions of the indices where the axis was.
        places = [*numbers.offset_dims[:axis], *positions, *numbers.offset_dims[axis:]]
        return graph.transpose(gathered, np.argsort(places).tolist())
    leading = tuple(range(len(numbers.operand_batching_dims)))
    if (
        numbers.operand_batching_dims != leading
        or numbers.start_indices_batching_dims != leading
        or mapped != tuple(range(len(leading), len(leading) + len(mapped)))
        or positions != tuple(range(len(positions)))
    ):
        raise UnsupportedError("a gather along inner axes")
    wide = graph.cast(indices, np.int64)
    return graph.emit("GatherND", value, wide, shape=shape, dtype=dtype, batch_dims=len(leading))


def _one_axis(
    graph: Graph, mapped: tuple[int, ...], value: Value, indices: Value
) -> tuple[Value, Value]:
    """Merges the axes that are indexed together; returns the value and its indices."""
    first, count = mapped[0], len(mapped)
    if mapped != tuple(range(first, first + count)):
        raise UnsupportedError("a gather along separate axes")
    dims = value.shape[first : first + count]
    merged = (*value.shape[:first], math.prod(dims), *value.shape[first + count :])
    strides = np.array([math.prod(dims[i + 1 :]) for i in range(count)], indices.dtype)
    if not isinstance(indices, Tensor):
        rows: Value = (indices * strides).sum(-1).astype(indices.dtype)
    elif count == 1:
        rows = graph.reshape(indices, tuple(indices.shape[:-1]))
    else:
        scaled = graph.emit("Mul", indices, strides, shape=indices.shape, dtype=indices.dtype)
        last, shape = np.array([-1], np.int64), tuple(indices.shape[:-1])
        rows = graph.emit("ReduceSum", scaled, last, shape=shape, dtype=scaled.dtype, keepdims=0)
    return graph.reshape(value, merged), rows


def _known_slice(
    graph: Graph, numbers: Any, sizes: Any, value: Value, indices: np.ndarray, shape: Shape
) -> Value:
    starts = [0] * value.ndim
    for axis, index in zip(numbers.start_index_map, indices.tolist(), strict=True):
        starts[axis] = index
    limits = [start + size for start, size in zip(starts, sizes, strict=True)]
    if numbers.offset_dims != tuple(range(len(shape))):
        raise UnsupportedError("a gather to inner axes")
    part = slices(graph, value, starts, limits, (1,) * value.ndim, tuple(sizes))
    return graph.reshape(part, shape)


def _reverse(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    axes = np.array(params["dimensions"], np.int64)
    ones = np.ones(len(axes), np.int64)
    first, last = -ones, np.full(len(axes), np.iinfo(np.int64).min)
    own: dict[str, Any] = {"shape": results[0].shape, "dtype": value.dtype}
    return graph.emit("Slice", value, first, last, axes, -ones, **own)


RULES: dict[str, Callable[..., Any]] = {
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
}
