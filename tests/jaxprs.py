"""What a traced program multiplies, counted from its operations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend import core

# Bodies that run as often as their values say, or on a part of the values each.
_UNCOUNTABLE = ("while", "shard_map", "pallas_call")


class Count(NamedTuple):
    """FLOPs of products and convolutions: all of them, and those of depthwise convolutions."""

    flops: int
    depthwise: int = 0


def count(traced: core.Jaxpr | core.ClosedJaxpr) -> Count:
    """Two for each multiplication and addition; zeros that a dilation puts in count nothing."""
    total = depthwise = 0
    jaxpr = traced.jaxpr if isinstance(traced, core.ClosedJaxpr) else traced
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, [count(body) for body in _bodies(eqn.params)]
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "conv_general_dilated":
            flops = _convolution(eqn)
            total += flops
            depthwise += flops * (eqn.params["feature_group_count"] > 1)
        elif inner:
            assert name not in _UNCOUNTABLE or not any(c.flops for c in inner), name
            if name == "cond" and eqn.params.get("branches_platforms"):
                inner = [max(inner)]  # on one platform products may be written as sums
            assert name != "cond" or len(set(inner)) == 1, "branches that cost differently"
            times = eqn.params["length"] if name == "scan" else 1
            branches = inner[:1] if name == "cond" else inner
            total += times * sum(c.flops for c in branches)
            depthwise += times * sum(c.depthwise for c in branches)
    return Count(total, depthwise)


def _bodies(params: dict[str, Any]) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                yield item


def _dot(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(eqn: core.JaxprEqn) -> int:
    numbers, right = eqn.params["dimension_numbers"].rhs_spec, eqn.invars[1].aval.shape
    each = math.prod(right[i] for i in numbers[1:])  # a group's inputs, and the window
    flops = 2 * math.prod(eqn.outvars[0].aval.shape) * each
    return flops // math.prod(eqn.params["lhs_dilation"])


def without_dead_code(traced: core.ClosedJaxpr) -> core.Jaxpr:
    """Only what its results depend on."""
    from jax.interpreters import partial_eval

    return partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))[0]


def sizes(traced: core.Jaxpr | core.ClosedJaxpr) -> Iterator[int]:
    """The number of elements of each value that a program makes, in its bodies too."""
    jaxpr = traced.jaxpr if isinstance(traced, core.ClosedJaxpr) else traced
    for eqn in jaxpr.eqns:
        yield from (math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars)
        for body in _bodies(eqn.params):
            yield from sizes(body)
