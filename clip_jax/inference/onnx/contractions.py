"""Rules of matrix products, convolutions and windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.inference.onnx.graph import Graph, Shape, Tensor, UnsupportedError, Value


def _dot_general(graph: Graph, params: Any, results: Any, x: Value, y: Value) -> Value:
    (x_contracted, y_contracted), (x_batch, y_batch) = params["dimension_numbers"]
    dtype = results[0].dtype
    x, y = graph.cast(x, dtype), graph.cast(y, dtype)
    if not x_batch and y.ndim == 2 and len(y_contracted) == 1 and x_contracted == (x.ndim - 1,):
        kernel = y if y_contracted[0] == 0 else graph.transpose(y, (1, 0))
        return graph.emit("MatMul", x, kernel, shape=results[0].shape, dtype=dtype)
    x_free = _others(x.ndim, x_batch, x_contracted)
    y_free = _others(y.ndim, y_batch, y_contracted)
    batch = tuple(x.shape[axis] for axis in x_batch)
    rows, columns = _sizes(x, x_free), _sizes(y, y_free)
    inner = math.prod(_sizes(x, x_contracted))
    x = graph.transpose(x, (*x_batch, *x_free, *x_contracted))
    x = graph.reshape(x, (*batch, math.prod(rows), inner))
    y = graph.transpose(y, (*y_batch, *y_contracted, *y_free))
    y = graph.reshape(y, (*batch, inner, math.prod(columns)))
    shape = (*batch, math.prod(rows), math.prod(columns))
    return graph.reshape(
        graph.emit("MatMul", x, y, shape=shape, dtype=dtype), (*batch, *rows, *columns)
    )


def _others(ndim: int, *taken: Any) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if not any(axis in axes for axes in taken))


def _sizes(value: Value, axes: Any) -> Shape:
    return tuple(value.shape[axis] for axis in axes)


def _convolution(graph: Graph, params: Any, results: Any, x: Value, kernel: Value) -> Value:
    numbers = params["dimension_numbers"]
    if any(step != 1 for step in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise UnsupportedError("a transposed convolution")
    dtype = results[0].dtype
    x = graph.transpose(graph.cast(x, dtype), numbers.lhs_spec)
    kernel = graph.transpose(graph.cast(kernel, dtype), numbers.rhs_spec)
    shape = results[0].shape
    low, high = zip(*params["padding"], strict=True)
    out = graph.emit(
        "Conv",
        x,
        kernel,
        shape=tuple(shape[axis] for axis in numbers.out_spec),
        dtype=dtype,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[*low, *high],
        group=params["feature_group_count"],
        kernel_shape=list(kernel.shape[2:]),
    )
    return graph.transpose(out, np.argsort(numbers.out_spec).tolist())


def _window_sum(graph: Graph, params: Any, results: Any, x: Value) -> Value:
    """Sums windows of height and width: average pooling times the window's size."""
    size = params["window_dimensions"]
    pooled, shape = _pool(graph, params, results, x, "AveragePool", count_include_pad=1)
    scaled = graph.emit(
        "Mul", pooled, np.asarray(np.prod(size), x.dtype), shape=pooled.shape, dtype=x.dtype
    )
    return graph.transpose(scaled, shape)


def _window_max(graph: Graph, params: Any, results: Any, x: Value) -> Value:
    pooled, order = _pool(graph, params, results, x, "MaxPool")
    return graph.transpose(pooled, order)


def _pool(
    graph: Graph, params: Any, results: Any, x: Value, operator: str, **attributes: Any
) -> tuple[Tensor, list[int]]:
    """Returns the pooled windows, channels first, and the order of dimensions that JAX has."""
    window, padding = params["window_dimensions"], params["padding"]
    inner = [axis for axis, size in enumerate(window) if axis and size > 1]
    dilated = any(step != 1 for step in (*params["base_dilation"], *params["window_dilation"]))
    if len(inner) != 2 or x.ndim != 4 or dilated:
        raise UnsupportedError("windows that are not of height and width")
    order = [*(axis for axis in range(x.ndim) if axis not in inner), *inner]
    out = graph.emit(
        operator,
        graph.transpose(x, order),
        shape=tuple(results[0].shape[axis] for axis in order),
        dtype=x.dtype,
        kernel_shape=[window[axis] for axis in inner],
        strides=[params["window_strides"][axis] for axis in inner],
        pads=[*(padding[axis][0] for axis in inner), *(padding[axis][1] for axis in inner)],
        **attributes,
    )
    return out, np.argsort(order).tolist()


RULES: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "reduce_window_max": _window_max,
    "reduce_window_sum": _window_sum,
}
