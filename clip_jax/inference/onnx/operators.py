"""Rules of primitives that work element by element, along axes, or on shapes.

A rule of `ELEMENTWISE` takes the graph, the primitive's parameters and the inputs, which may lack
the repetitions of a broadcast; ONNX broadcasts as NumPy does. A rule of `RULES` also takes the
results' shapes and dtypes, and its inputs are complete, except those of `LAZY`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.inference.onnx.graph import Graph, Tensor, UnsupportedError, Value, broadcast_shape

Rule = Callable[..., Any]


def _elementwise(operator: str, dtype: Any = None) -> Rule:
    def rule(graph: Graph, params: Any, *inputs: Value) -> Value:
        del params
        shape = broadcast_shape(*(value.shape for value in inputs))
        return graph.emit(operator, *inputs, shape=shape, dtype=dtype or inputs[0].dtype)

    return rule


def _unary(graph: Graph, operator: str, value: Value) -> Tensor:
    return graph.emit(operator, value, shape=tuple(value.shape), dtype=value.dtype)


def _same(graph: Graph, params: Any, value: Value) -> Value:
    del graph, params
    return value


def _cast(graph: Graph, params: Any, value: Value) -> Value:
    return graph.cast(value, params["new_dtype"])


def _square(graph: Graph, params: Any, value: Value) -> Value:
    del params
    return graph.emit("Mul", value, value, shape=tuple(value.shape), dtype=value.dtype)


def _integer_pow(graph: Graph, params: Any, value: Value) -> Value:
    if params["y"] == 2:
        return _square(graph, params, value)
    exponent = np.asarray(params["y"], value.dtype)
    return graph.emit("Pow", value, exponent, shape=tuple(value.shape), dtype=value.dtype)


def _rsqrt(graph: Graph, params: Any, value: Value) -> Value:
    del params
    return _unary(graph, "Reciprocal", _unary(graph, "Sqrt", value))


def _erfc(graph: Graph, params: Any, value: Value) -> Value:
    del params
    one = np.asarray(1, value.dtype)
    return ELEMENTWISE["sub"](graph, {}, one, _unary(graph, "Erf", value))


def _log1p(graph: Graph, params: Any, value: Value) -> Value:
    del params
    return _unary(graph, "Log", ELEMENTWISE["add"](graph, {}, value, np.asarray(1, value.dtype)))


def _not_equal(graph: Graph, params: Any, x: Value, y: Value) -> Value:
    equal = ELEMENTWISE["eq"](graph, params, x, y)
    return graph.emit("Not", equal, shape=equal.shape, dtype=bool)


def _maximum(graph: Graph, params: Any, x: Value, y: Value) -> Value:
    for guard, value in ((x, y), (y, x)):  # softmax takes the maximum of -inf and its inputs
        if not isinstance(guard, Tensor) and guard.ndim == 0 and guard == -np.inf:
            return value
    return _elementwise("Max")(graph, params, x, y)


def _logical(operator: str) -> Rule:
    def rule(graph: Graph, params: Any, *inputs: Value) -> Value:
        if any(value.dtype != bool for value in inputs):
            raise UnsupportedError(f"{operator} of the bits of integers")
        return _elementwise(operator)(graph, params, *inputs)

    return rule


def _select(graph: Graph, params: Any, which: Value, *cases: Value) -> Value:
    del params
    if which.dtype != bool:
        raise UnsupportedError("a choice among more than two")
    shape = broadcast_shape(which.shape, *(value.shape for value in cases))
    return graph.emit("Where", which, cases[1], cases[0], shape=shape, dtype=cases[0].dtype)


def _clamp(graph: Graph, params: Any, low: Value, value: Value, high: Value) -> Value:
    bounded = _elementwise("Max")(graph, params, value, low)
    return _elementwise("Min")(graph, params, bounded, high)


def _remainder(graph: Graph, params: Any, x: Value, y: Value) -> Value:
    """The remainder with the sign of x."""
    del params
    shape = broadcast_shape(x.shape, y.shape)
    return graph.emit("Mod", x, y, shape=shape, dtype=x.dtype, fmod=1)


def _round(graph: Graph, params: Any, value: Value) -> Value:
    if params["rounding_method"].name != "TO_NEAREST_EVEN":
        raise UnsupportedError("rounding halves away from zero")
    return _unary(graph, "Round", value)


ELEMENTWISE: dict[str, Rule] = {
    "abs": _elementwise("Abs"),
    "add": _elementwise("Add"),
    "and": _logical("And"),
    "ceil": _elementwise("Ceil"),
    "clamp": _clamp,
    "convert_element_type": _cast,
    "copy": _same,
    "cos": _elementwise("Cos"),
    "div": _elementwise("Div"),
    "eq": _elementwise("Equal", bool),
    "erf": _elementwise("Erf"),
    "erfc": _erfc,
    "exp": _elementwise("Exp"),
    "floor": _elementwise("Floor"),
    "ge": _elementwise("GreaterOrEqual", bool),
    "gt": _elementwise("Greater", bool),
    "integer_pow": _integer_pow,
    "le": _elementwise("LessOrEqual", bool),
    "log": _elementwise("Log"),
    "log1p": _log1p,
    "logistic": _elementwise("Sigmoid"),
    "lt": _elementwise("Less", bool),
    "max": _maximum,
    "min": _elementwise("Min"),
    "mul": _elementwise("Mul"),
    "name": _same,
    "ne": _not_equal,
    "neg": _elementwise("Neg"),
    "not": _logical("Not"),
    "or": _logical("Or"),
    "pow": _elementwise("Pow"),
    "rem": _remainder,
    "round": _round,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "sign": _elementwise("Sign"),
    "sin": _elementwise("Sin"),
    "sqrt": _elementwise("Sqrt"),
    "square": _square,
    "stop_gradient": _same,
    "sub": _elementwise("Sub"),
    "tanh": _elementwise("Tanh"),
}


def _broadcast(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    """Inserts dimensions of size one; operators repeat them when they have to."""
    del results
    shape = [1] * len(params["shape"])
    for axis, target in enumerate(params["broadcast_dimensions"]):
        shape[target] = value.shape[axis]
    return graph.reshape(graph.tensor(value), tuple(shape))


def _transpose(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    del results
    return graph.transpose(value, params["permutation"])


def _reshape(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    del params
    return graph.reshape(value, results[0].shape)


def _reduction(operator: str) -> Rule:
    def rule(graph: Graph, params: Any, results: Any, value: Value) -> Value:
        axes = np.array(params["axes"], np.int64)
        if not axes.size:
            return value
        own: dict[str, Any] = {"shape": results[0].shape, "dtype": results[0].dtype, "keepdims": 0}
        return graph.emit(operator, value, axes, **own)

    return rule


def _every(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    return _of_flags("ReduceMin", graph, params, results, value)


def _any(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    return _of_flags("ReduceMax", graph, params, results, value)


def _of_flags(operator: str, graph: Graph, params: Any, results: Any, value: Value) -> Value:
    numbers = graph.cast(value, np.int32)
    axes = np.array(params["axes"], np.int64)
    shape = results[0].shape
    reduced = graph.emit(operator, numbers, axes, shape=shape, dtype=np.int32, keepdims=0)
    return graph.cast(reduced, bool)


def _extreme_index(operator: str) -> Rule:
    def rule(graph: Graph, params: Any, results: Any, value: Value) -> Value:
        (axis,) = params["axes"]
        numbers = graph.cast(value, np.int32) if value.dtype == bool else value
        index = graph.emit(
            operator, numbers, shape=results[0].shape, dtype=np.int64, axis=int(axis), keepdims=0
        )
        return graph.cast(index, results[0].dtype)

    return rule


def _cumulative_sum(graph: Graph, params: Any, results: Any, value: Value) -> Value:
    axis = np.asarray(params["axis"], np.int64)
    own: dict[str, Any] = {"shape": results[0].shape, "dtype": value.dtype}
    return graph.emit("CumSum", value, axis, reverse=int(params["reverse"]), **own)


def _iota(graph: Graph, params: Any, results: Any) -> Value:
    """Counts along a symbolic dimension; others are known."""
    shape, axis = results[0].shape, params["dimension"]
    limit = graph.reshape(graph.size(shape[axis]), ())
    zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
    count = graph.emit("Range", zero, limit, one, shape=(shape[axis],), dtype=np.int64)
    own = tuple(dim if i == axis else 1 for i, dim in enumerate(shape))
    return graph.reshape(graph.cast(count, results[0].dtype), own)


def _size(graph: Graph, params: Any, results: Any) -> Value:
    """Returns a symbolic dimension as a number."""
    size = graph.reshape(graph.size(params["dim"]), ())
    return graph.cast(size, results[0].dtype)


RULES: dict[str, Rule] = {
    "argmax": _extreme_index("ArgMax"),
    "argmin": _extreme_index("ArgMin"),
    "broadcast_in_dim": _broadcast,
    "cumsum": _cumulative_sum,
    "dim_as_value": _size,
    "expand_dims": _reshape,
    "iota": _iota,
    "reduce_and": _every,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_or": _any,
    "reduce_prod": _reduction("ReduceProd"),
    "reduce_sum": _reduction("ReduceSum"),
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
}
LAZY = frozenset({"broadcast_in_dim", "transpose"})
