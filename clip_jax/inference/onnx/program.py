"""A JAX program (jaxpr) as a graph of ONNX operators.

What doesn't depend on the inputs is computed here, so that only the operators on the inputs' path
remain. Loops over layers are unrolled, each layer with its own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from clip_jax.errors import UserError
from clip_jax.inference.onnx import contractions, indexing, operators
from clip_jax.inference.onnx.graph import Graph, Tensor, UnsupportedError, Value, is_symbolic

# The inputs of these may lack the repetitions of a broadcast, which their results then lack, too.
_BROADCASTING = operators.ELEMENTWISE
_RULES: dict[str, operators.Rule] = operators.RULES | contractions.RULES | indexing.RULES
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def convert(
    function: Callable[..., Any], inputs: dict[str, jax.ShapeDtypeStruct]
) -> tuple[Graph, list[Tensor], list[Tensor]]:
    """Converts a function of arrays.

    Args:
      function: the function; it takes the inputs in their order and returns one array or several.
      inputs: their shapes and dtypes by name; one dimension may be symbolic, and multiples of it.

    Returns:
      The graph, its inputs and its outputs.

    Raises:
      UserError: the function has a primitive, or a use of one, that has no rule here.
    """
    closed = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph()
    arguments = [graph.input(name, own.shape, own.dtype) for name, own in inputs.items()]
    try:
        results = evaluate(graph, closed.jaxpr, closed.consts, arguments)
    except UnsupportedError as error:
        raise UserError(f"this model has {error}, which isn't written as ONNX") from None
    outputs = []
    for result, variable in zip(results, closed.jaxpr.outvars, strict=True):
        outputs.append(graph.tensor(graph.expand(result, variable.aval.shape)))
    return graph, arguments, outputs


def evaluate(
    graph: Graph, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Value]
) -> list[Value]:
    """Adds the operators of a jaxpr to a graph; returns the values of its results."""
    values: dict[Any, Value] = {}

    def read(variable: Any) -> Value:
        if isinstance(variable, core.Literal):
            return np.asarray(variable.val, variable.aval.dtype)  # type: ignore[attr-defined]
        return values[variable]

    values.update(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    last = _last_uses(jaxpr)
    for number, equation in enumerate(jaxpr.eqns):
        results = _equation(graph, equation, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
        for variable in last.get(number, ()):  # arrays of a large model are freed
            values.pop(variable, None)
    return [read(variable) for variable in jaxpr.outvars]


def _last_uses(jaxpr: core.Jaxpr) -> dict[int, list[Any]]:
    last: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, core.Literal):
                last[variable] = number
    for variable in jaxpr.outvars:
        if not isinstance(variable, core.Literal):
            last.pop(variable, None)
    uses: dict[int, list[Any]] = {}
    for variable, number in last.items():
        uses.setdefault(number, []).append(variable)
    return uses


def _equation(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(graph, equation, inputs)
    if name == "cond":
        return _cond(graph, params, inputs)
    if name == "platform_index":  # the branch of other platforms: it has the fewest special cases
        return [np.asarray(len(params["platforms"]) - 1, np.int32)]
    for key in _CALLS:
        if key in params:
            return _call(graph, params[key], inputs)
    shapes = [variable.aval.shape for variable in equation.outvars]
    known = name != "dim_as_value" and not any(isinstance(value, Tensor) for value in inputs)
    if known and not any(is_symbolic(dim) for shape in shapes for dim in shape):
        return _compute(equation, inputs)
    if name in _BROADCASTING:
        return [_BROADCASTING[name](graph, params, *inputs)]
    if name not in _RULES:
        raise UnsupportedError(f"the primitive {name}")
    if name not in operators.LAZY:
        inputs = [
            graph.expand(value, variable.aval.shape)
            for value, variable in zip(inputs, equation.invars, strict=True)
        ]
    avals = [variable.aval for variable in equation.outvars]
    result = _RULES[name](graph, params, avals, *inputs)
    return result if isinstance(result, list) else [result]


def _call(graph: Graph, program: Any, arguments: list[Value]) -> list[Value]:
    """Evaluates a jaxpr, which has constants of its own or none."""
    jaxpr = getattr(program, "jaxpr", program)
    return evaluate(graph, jaxpr, getattr(program, "consts", ()), arguments)


def _compute(equation: Any, inputs: list[Value]) -> list[Value]:
    result = equation.primitive.bind(*inputs, **equation.params)
    results = result if equation.primitive.multiple_results else [result]
    return [np.asarray(array) for array in results]


def _cond(graph: Graph, params: Any, inputs: list[Value]) -> list[Value]:
    index, *arguments = inputs
    if isinstance(index, Tensor):
        raise UnsupportedError("a condition that depends on the inputs")
    return _call(graph, params["branches"][int(index)], arguments)


def _scan(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Unrolls a loop.

    Its inputs are constants, then what is carried, then rows; its outputs what is carried, then
    rows. Rows have one dimension less within the loop. Parameters that count them are not the same
    in all versions of JAX.
    """
    params = equation.params
    closed = params["jaxpr"]
    inner = getattr(closed, "jaxpr", closed)
    carried = _same_rank(equation.outvars, inner.outvars)
    first = _same_rank(equation.invars, inner.invars) - carried
    consts, carry, rows = inputs[:first], inputs[first : first + carried], inputs[first + carried :]
    shapes = [variable.aval.shape for variable in inner.invars]
    steps = range(params["length"])
    stacked: list[list[Value]] = []
    for step in reversed(steps) if params["reverse"] else steps:
        own = [
            indexing.take(graph, row, step, shape)
            for row, shape in zip(rows, shapes[first + carried :], strict=True)
        ]
        results = _call(graph, closed, [*consts, *carry, *own])
        carry, ys = results[:carried], results[carried:]
        stacked.append(ys)
    if params["reverse"]:
        stacked.reverse()
    avals = [variable.aval for variable in inner.outvars[carried:]]
    return [
        *carry,
        *(
            indexing.stack(graph, [graph.expand(value, aval.shape) for value in values], 0)
            for values, aval in zip(zip(*stacked, strict=True), avals, strict=True)
        ),
    ]


def _same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(len(x.aval.shape) == len(y.aval.shape) for x, y in zip(outside, inside, strict=True))
