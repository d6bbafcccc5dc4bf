"""Chains of operators that ONNX has as one operator: LayerNormalization, Softmax, Gelu.

Runtimes have kernels for these, which read and write their inputs once.
"""

from __future__ import annotations

import numpy as np

from clip_jax.inference.onnx.graph import Graph, Node, Tensor

_SHAPES = frozenset({"Reshape", "Expand"})


def fuse(graph: Graph) -> None:
    """Replaces the last operator of each chain; `Graph.prune` removes the rest."""
    chains = _Chains(graph)
    for position, node in enumerate(graph.nodes):
        for rule in (_layer_norm, _softmax, _gelu):
            fused = rule(chains, node)
            if fused is not None:
                graph.nodes[position] = fused
                break


class _Chains:
    """The operators of a graph by what they give."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._nodes = {out.name: node for node in graph.nodes for out in node.outputs}

    def of(self, tensor: Tensor, operator: str) -> Node | None:
        """Returns the operator that gives a tensor, if it is this one."""
        node = self._nodes.get(tensor.name)
        return node if node is not None and node.operator == operator else None

    def inner(self, tensor: Tensor, *operators: str) -> Tensor | None:
        """Returns the first input of a chain of operators, the last one first, over reshapes."""
        for operator in operators:
            node = self.of(self.unshaped(tensor), operator)
            if node is None:
                return None
            tensor = node.inputs[0]
        return self.unshaped(tensor) if operators[-1] != "Sub" else tensor

    def unshaped(self, tensor: Tensor) -> Tensor:
        """Returns a tensor before its reshapes."""
        while (node := self._nodes.get(tensor.name)) is not None and node.operator in _SHAPES:
            tensor = node.inputs[0]
        return tensor

    def array(self, tensor: Tensor) -> np.ndarray | None:
        """Returns the array of a constant."""
        return self.graph.constants.get(tensor.name)

    def factors(self, tensor: Tensor, operator: str) -> list[tuple[Tensor, Tensor]]:
        """Returns the inputs of an operator in both orders."""
        node = self.of(tensor, operator)
        return [] if node is None else [node.inputs, node.inputs[::-1]]  # type: ignore[list-item]

    def mean(self, tensor: Tensor) -> Tensor | None:
        """Returns x of ReduceSum(x, last axis) / its size."""
        node = self.of(self.unshaped(tensor), "Div")
        if node is None:
            return None
        total, count = self.of(node.inputs[0], "ReduceSum"), self.array(node.inputs[1])
        if total is None or count is None or count.ndim:
            return None
        x, axes = total.inputs[0], self.array(total.inputs[1])
        last = axes is not None and axes.tolist() == [x.ndim - 1]
        return x if last and count == x.shape[-1] else None


def _layer_norm(chains: _Chains, node: Node) -> Node | None:
    """Matches (x - mean(x)) * (1 / sqrt(variance + epsilon) * scale) + bias."""
    if node.operator != "Add":
        return None
    for product, bias in (node.inputs, node.inputs[::-1]):
        for centered, gain in chains.factors(product, "Mul"):
            for inverse, scale in chains.factors(gain, "Mul"):
                found = _normalized(chains, centered, inverse)
                vectors = [chains.array(bias), chains.array(scale)]
                if found is None or any(v is None or v.size != v.shape[-1] for v in vectors):
                    continue
                x, epsilon = found
                flat = [chains.graph.constant(v.reshape(-1)) for v in vectors]  # type: ignore[union-attr]
                if any(v.shape != (x.shape[-1],) for v in flat):
                    continue
                own = {"axis": -1, "epsilon": epsilon}
                inputs = (x, flat[1], flat[0])
                return Node("LayerNormalization", inputs, node.outputs, own)
    return None


def _normalized(chains: _Chains, centered: Tensor, inverse: Tensor) -> tuple[Tensor, float] | None:
    """Returns x and epsilon of x - mean(x) and of 1 / sqrt(mean((x - mean(x))²) + epsilon)."""
    difference = chains.of(centered, "Sub")
    reciprocal = chains.of(inverse, "Reciprocal")
    root = reciprocal and chains.of(reciprocal.inputs[0], "Sqrt")
    shifted = root and chains.of(root.inputs[0], "Add")
    if difference is None or not shifted:
        return None
    x = difference.inputs[0]
    epsilon, squares = chains.array(shifted.inputs[1]), chains.mean(shifted.inputs[0])
    square = squares and chains.of(squares, "Mul")
    if epsilon is None or epsilon.ndim or not square or square.inputs[0] is not square.inputs[1]:
        return None
    for part in (difference, chains.of(square.inputs[0], "Sub")):
        if part is None or part.inputs[0] is not x or chains.mean(part.inputs[1]) is not x:
            return None
    return x, float(epsilon)


def _softmax(chains: _Chains, node: Node) -> Node | None:
    """Matches exp(x - m) / sum(exp(x - m)), where m is the same along the axis."""
    if node.operator != "Div":
        return None
    top = chains.of(node.inputs[0], "Exp")
    total = chains.of(chains.unshaped(node.inputs[1]), "ReduceSum")
    difference = top and chains.of(top.inputs[0], "Sub")
    if not top or total is None or total.inputs[0] is not node.inputs[0] or not difference:
        return None
    x, shift = difference.inputs
    axes = chains.array(total.inputs[1])
    if axes is None or axes.tolist() != [x.ndim - 1] or x.ndim != shift.ndim:
        return None
    constant = isinstance(shift.shape[-1], int) and shift.shape[-1] == 1
    return Node("Softmax", (x,), node.outputs, {"axis": -1}) if constant else None


def _gelu(chains: _Chains, node: Node) -> Node | None:
    """Matches x / 2 * (1 - erf(-x / sqrt(2)))."""
    if node.operator != "Mul":
        return None
    for half, tail in (node.inputs, node.inputs[::-1]):
        rest = chains.of(tail, "Sub")
        erf = rest and chains.of(rest.inputs[1], "Erf")
        if not rest or not erf:
            continue
        for x, factor in chains.factors(half, "Mul"):
            if _is(chains, factor, 0.5) and _argument(chains, erf.inputs[0]) is x:
                return Node("Gelu", (x,), node.outputs, {})
    return None


def _argument(chains: _Chains, tensor: Tensor) -> Tensor | None:
    """Returns x of -x * sqrt(1/2)."""
    for negative, factor in chains.factors(tensor, "Mul"):
        inner = chains.of(negative, "Neg")
        if inner and _is(chains, factor, np.sqrt(0.5)):
            return inner.inputs[0]
    return None


def _is(chains: _Chains, tensor: Tensor, value: float) -> bool:
    array = chains.array(tensor)
    return array is not None and not array.ndim and bool(np.isclose(array, value, rtol=1e-6))
