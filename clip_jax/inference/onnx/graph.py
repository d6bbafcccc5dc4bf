"""A graph of ONNX operators while it is built.

A batch of any size is a symbolic dimension of JAX, such as `batch` or `49*batch`; so are the height
and width of images of any size. Every other dimension is an int.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.export
import numpy as np

Dim = Any  # an int, or a symbolic dimension
Shape = tuple[Dim, ...]
_MERGED = 1024  # bytes of a constant up to which equal ones are stored once


class UnsupportedError(Exception):
    """A program has something that isn't written as ONNX."""


def is_symbolic(dim: Dim) -> bool:
    """Returns whether a dimension is known only when the program runs."""
    return bool(jax.export.is_symbolic_dim(dim))


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph.

    Attributes:
      name: its name.
      shape: its shape.
      dtype: its NumPy dtype.
    """

    name: str
    shape: Shape
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


Value = np.ndarray | Tensor  # an array is known when the graph is built


@dataclasses.dataclass(eq=False)
class Node:
    """An operator of the graph, with its attributes."""

    operator: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, Any]


class Graph:
    """Operators in the order in which they run.

    Attributes:
      nodes: the operators.
      constants: arrays by the name of their tensor.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._small: dict[tuple[Any, ...], Tensor] = {}
        self._large: dict[int, tuple[np.ndarray, Tensor]] = {}
        self._symbols: list[tuple[Dim, Tensor, int]] = []  # each with an input that has it
        self._sizes: dict[Dim, Tensor] = {}
        self._count = 0

    def input(self, name: str, shape: Shape, dtype: Any) -> Tensor:
        """Adds an input."""
        tensor = Tensor(name, shape, np.dtype(dtype))
        for axis, dim in enumerate(shape):
            if is_symbolic(dim):
                self._symbols.append((dim, tensor, axis))
        return tensor

    def constant(self, array: Any) -> Tensor:
        """Returns the tensor of an array; equal small arrays and one large array share one."""
        array = np.asarray(array)
        small = array.nbytes <= _MERGED
        key = (array.dtype.str, array.shape, array.tobytes()) if small else ()
        if small and key in self._small:
            return self._small[key]
        if not small and id(array) in self._large:
            return self._large[id(array)][1]
        tensor = self._new(array.shape, array.dtype)
        self.constants[tensor.name] = array
        if small:
            self._small[key] = tensor
        else:
            self._large[id(array)] = array, tensor
        return tensor

    def tensor(self, value: Value) -> Tensor:
        """Returns a value as a tensor."""
        return value if isinstance(value, Tensor) else self.constant(value)

    def emit(
        self, operator: str, *inputs: Value, shape: Shape, dtype: Any, **attributes: Any
    ) -> Tensor:
        """Adds an operator of one output, and returns that."""
        return self.emit_all(operator, *inputs, shapes=[shape], dtype=dtype, **attributes)[0]

    def emit_all(
        self, operator: str, *inputs: Value, shapes: Sequence[Shape], dtype: Any, **attributes: Any
    ) -> list[Tensor]:
        """Adds an operator, and returns its outputs."""
        outputs = [self._new(shape, dtype) for shape in shapes]
        tensors = tuple(self.tensor(value) for value in inputs)
        self.nodes.append(Node(operator, tensors, tuple(outputs), attributes))
        return outputs

    def cast(self, value: Value, dtype: Any) -> Value:
        """Returns a value in another dtype."""
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        if not isinstance(value, Tensor):
            return value.astype(dtype)
        return self.emit("Cast", value, shape=value.shape, dtype=dtype, to=dtype)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Returns a value in another shape."""
        if tuple(value.shape) == tuple(shape):
            return value
        if not isinstance(value, Tensor) and not any(map(is_symbolic, shape)):
            return value.reshape(shape)
        value = self.tensor(value)
        return self.emit(
            "Reshape", value, self._target(value, shape), shape=shape, dtype=value.dtype
        )

    def _target(self, value: Tensor, shape: Shape) -> Value:
        """Returns the second input of Reshape.

        A zero copies a dimension, so that a batch may be empty.
        """
        target = [
            0 if is_symbolic(dim) and axis < value.ndim and dim == value.shape[axis] else dim
            for axis, dim in enumerate(shape)
        ]
        unknown = [axis for axis, dim in enumerate(target) if is_symbolic(dim)]
        if len(unknown) == 1:
            target[unknown[0]] = -1
        return self.sizes(tuple(target))

    def sizes(self, shape: Shape) -> Value:
        """Returns a shape as an int64 vector."""
        if not any(map(is_symbolic, shape)):
            return np.array(shape, np.int64).reshape(len(shape))
        parts = [self.size(dim) if is_symbolic(dim) else np.array([dim], np.int64) for dim in shape]
        if len(parts) == 1:
            return parts[0]
        return self.emit("Concat", *parts, shape=(len(shape),), dtype=np.int64, axis=0)

    def size(self, dim: Dim) -> Tensor:
        """Returns a multiple of a symbolic dimension as an int64 vector of one element."""
        if dim in self._sizes:
            return self._sizes[dim]
        for symbol, tensor, axis in self._symbols:
            if dim == symbol:
                size = self.emit(
                    "Shape", tensor, shape=(1,), dtype=np.int64, start=axis, end=axis + 1
                )
                break
            factor = dim // symbol
            if not is_symbolic(factor) and factor * symbol == dim:
                factors = np.array([factor], np.int64)
                size = self.emit("Mul", self.size(symbol), factors, shape=(1,), dtype=np.int64)
                break
        else:
            raise UnsupportedError(f"a dimension of {dim}")
        self._sizes[dim] = size
        return size

    def expand(self, value: Value, shape: Shape) -> Value:
        """Returns a value repeated along its dimensions of size one."""
        if tuple(value.shape) == tuple(shape):
            return value
        if not isinstance(value, Tensor) and not any(map(is_symbolic, shape)):
            return np.broadcast_to(value, shape)
        return self.emit("Expand", value, self.sizes(shape), shape=shape, dtype=value.dtype)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """Returns a value with its dimensions in another order."""
        axes = [int(axis) for axis in axes]
        if axes == list(range(len(axes))):
            return value
        if not isinstance(value, Tensor):
            return np.ascontiguousarray(value.transpose(axes))
        shape = tuple(value.shape[axis] for axis in axes)
        return self.emit("Transpose", value, shape=shape, dtype=value.dtype, perm=axes)

    def prune(self, outputs: Sequence[Tensor]) -> None:
        """Removes the operators and constants that no output needs."""
        needed = {tensor.name for tensor in outputs}
        nodes = []
        for node in reversed(self.nodes):
            if needed.intersection(tensor.name for tensor in node.outputs):
                nodes.append(node)
                needed.update(tensor.name for tensor in node.inputs)
        self.nodes = nodes[::-1]
        self.constants = {name: a for name, a in self.constants.items() if name in needed}

    def _new(self, shape: Shape, dtype: Any) -> Tensor:
        self._count += 1
        return Tensor(f"t{self._count}", tuple(shape), np.dtype(dtype))


def broadcast_shape(*shapes: Shape) -> Shape:
    """Returns the shape that an operator gives for inputs of these, as NumPy broadcasts."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(
        next((dim for dim in dims if is_symbolic(dim) or dim != 1), 1)
        for dims in zip(*padded, strict=True)
    )
