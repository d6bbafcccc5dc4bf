"""Converts the tensors of a file to a model's variables, and back, by tables of `param_mapping`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from clip_jax.errors import UserError
from clip_jax.models.clip import Variables, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.tower import Params
from clip_jax.weights.mappings.leaf import Leaf, Piece, pieces
from clip_jax.weights.param_mapping import Library, is_ignored, leaves
from clip_jax.weights.tensor_writing import Lazy
from clip_jax.weights.tensors import Tensors

# Dtypes of parameters in memory; `keep` leaves each as its file has it.
DTYPES: dict[str, Any] = {
    "keep": None,
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ALIGNMENT = 64  # bytes; on a CPU XLA takes an aligned array without a copy
_ROWS = 96  # transposed at a time, so that they stay in the cache


def flat(*trees: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the paths in nested dictionaries, such as `vision/ln_post/scale`, and their values."""
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from flat(value, prefix=f"{prefix}{key}/")
            else:
                yield prefix + key, value


def nested(flat: Mapping[str, Any]) -> Params:
    """Returns nested dictionaries from values by their paths, the reverse of `flat`."""
    tree: Params = {}
    for path, value in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return tree


def _dummy(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array of a shape that takes no memory of its own."""
    return np.broadcast_to(np.float32(0), shape)


def _their_shape(piece: Piece) -> tuple[int, ...]:
    shape = piece.view.shape
    if piece.rows is None:
        return shape
    first, end, parts = piece.rows
    return (shape[0] // (end - first) * parts, *shape[1:])


def _rows(piece: Piece, tensor: np.ndarray) -> np.ndarray:
    if piece.rows is None:
        return tensor
    first, end, parts = piece.rows
    unit = len(tensor) // parts
    return tensor[first * unit : end * unit]


def tensor_shapes(table: list[Leaf], shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a library's tensors by their names.

    Args:
      table: the table of a model.
      shapes: its parameters (arrays or shapes) by their paths.
    """
    return {
        piece.name: _their_shape(piece)
        for leaf in table
        for piece in pieces(leaf, _dummy(shapes[leaf.path].shape))
    }


def check(
    tensors: Tensors,
    table: list[Leaf],
    shapes: Mapping[str, Any],
    unused: Collection[str] = (),
) -> None:
    """Checks that a file holds the tensors of a table in their shapes, and no others.

    Args:
      tensors: the tensors of an open file.
      table: the table of the model.
      shapes: the parameters (arrays or shapes) by their paths.
      unused: names of further tensors that may be in the file.

    Raises:
      UserError: names a tensor that is missing, has another shape or does not belong there.
    """
    wanted = tensor_shapes(table, shapes)
    missing = [name for name in wanted if name not in tensors]
    known = {*wanted, *unused}
    extra = [name for name in tensors if name not in known and not is_ignored(name)]
    wrong = [
        f"{name} is {tensors.shapes[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors and not _is_same_shape(tensors.shapes[name], shape)
    ]
    for faults, message in (
        (missing, "has no {}"),
        (wrong, "{}"),
        (extra, "has a {} that this model has no place for"),
    ):
        if faults:
            more = f" (and {len(faults) - 1} more such)" if len(faults) > 1 else ""
            hint = ": is it the weights of another model?" if len(faults) > 1 else ""
            raise UserError(f"{tensors.path} {message.format(faults[0])}{more}{hint}")


def _is_same_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return shape == wanted or {shape, wanted} == {(), (1,)}  # a scalar, in some versions


def _table(
    config: CLIPConfig,
    library: Library,
    arrays: Mapping[str, Any],
    names: Collection[str] | None = None,
) -> list[Leaf]:
    """Returns the table of a model, for a file with tensors of these `names` or to write one.

    Raises:
      UserError: one of `arrays` is not in it.
    """
    table = leaves(config, library, names)
    if unnamed := arrays.keys() - {leaf.path for leaf in table}:
        raise UserError(f"{library} has no place for {sorted(unnamed)[0]} of this model")
    return table


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _memory_dtype(leaf: Leaf, tensors: Tensors, abstract: Any, dtype: np.dtype | None) -> np.dtype:
    """Returns the dtype of a parameter in memory."""
    if not np.issubdtype(abstract.dtype, np.floating):
        return np.dtype(abstract.dtype)
    if dtype is not None:
        return dtype
    dtypes = {tensors.dtypes[piece.name] for piece in pieces(leaf, _dummy(abstract.shape))}
    first = dtypes.pop()
    keep = not dtypes and first.itemsize <= 4 and first.kind in "fV"
    return first if keep else np.dtype(np.float32)


def to_variables(
    tensors: Tensors, config: CLIPConfig, library: Library, dtype: np.dtype | None = None
) -> Variables:
    """Makes a model's parameters and batch statistics from the tensors of a file.

    Args:
      tensors: the tensors of an open file.
      config: the architecture that the file holds.
      library: the library whose names the file uses.
      dtype: the dtype of the parameters in memory; None keeps each as the file has it.

    Raises:
      UserError: a tensor is missing, superfluous, or of another shape.
    """
    shapes = [dict(flat(tree)) for tree in variables(abstract_model(config))]
    both = shapes[0] | shapes[1]
    table = _table(config, library, both, tensors)
    check(tensors, table, both)
    buffers = read(tensors, table, both, dtype)
    where = jax.local_devices()[0]
    arrays = {p: jax.device_put(array, where, may_alias=True) for p, array in buffers.items()}
    params, stats = ({path: arrays[path] for path in tree} for tree in shapes)
    return nested(params), nested(stats)


def read(
    tensors: Tensors, table: list[Leaf], shapes: Mapping[str, Any], dtype: np.dtype | None = None
) -> dict[str, np.ndarray]:
    """Reads the arrays of a table from a file that was checked.

    Beside the result, each of up to four threads has one tensor in memory.

    Args:
      tensors: the tensors of an open file.
      table: the table.
      shapes: the parameters (arrays or shapes) by their paths.
      dtype: the dtype of the parameters in memory; None keeps each as the file has it.

    Returns:
      The arrays by their paths.
    """
    buffers = {}
    for leaf in table:
        abstract = shapes[leaf.path]
        buffers[leaf.path] = _aligned(abstract.shape, _memory_dtype(leaf, tensors, abstract, dtype))
    destinations = [piece for leaf in table for piece in pieces(leaf, buffers[leaf.path])]
    scratch = _Scratch()

    def fill(piece: Piece) -> None:
        shape, kind = tensors.shapes[piece.name], tensors.dtypes[piece.name]
        if piece.rows is None and piece.view.flags.carray and piece.view.dtype == kind:
            tensors.read(piece.name, piece.view.reshape(shape))
            return
        tensor = tensors.read(piece.name, scratch.array(shape, kind))
        _copy(_rows(piece, tensor.reshape(_their_shape(piece))), piece.view)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, destinations))
    return buffers


def cast(model_variables: Variables, dtype: str) -> Variables:
    """Converts a model's variables to a dtype of `DTYPES`; integers stay as they are."""
    wanted = DTYPES[dtype]
    if wanted is None:
        return model_variables

    def cast_leaf(x: jax.Array) -> jax.Array:
        return x.astype(wanted) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast_leaf, model_variables)


class _Scratch(threading.local):
    """Memory that each thread reuses: new pages cost as much time as reading."""

    buffer = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array that is valid until the next call."""
        size = math.prod(shape) * dtype.itemsize
        if len(self.buffer) < size:
            self.buffer = _aligned((size,), np.dtype(np.uint8))
        return self.buffer[:size].view(dtype).reshape(shape)


def _copy(tensor: np.ndarray, view: np.ndarray) -> None:
    """Copies into a view that may be transposed, a few rows at a time."""
    if view.ndim < 2:
        view[...] = tensor
        return
    for start in range(0, len(view), _ROWS):
        view[start : start + _ROWS] = tensor[start : start + _ROWS]


def to_tensors(
    model_variables: Variables,
    config: CLIPConfig,
    library: Library,
    dtype: np.dtype | None = None,
) -> dict[str, Lazy]:
    """Returns the tensors of a library's file by name, each made only when it is written.

    Args:
      model_variables: a model's parameters and batch statistics.
      config: the architecture.
      library: the library whose names the file uses.
      dtype: the dtype of the written parameters; None keeps each as it is in memory.

    Raises:
      UserError: the library has no such model.
    """
    both = dict(flat(*model_variables))
    parts: dict[str, list[tuple[Leaf, int]]] = {}
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    table = _table(config, library, both)
    for leaf in table:
        array = both[leaf.path]
        for i, piece in enumerate(pieces(leaf, _dummy(array.shape))):
            parts.setdefault(piece.name, []).append((leaf, i))
            shapes[piece.name] = _their_shape(piece), _written_dtype(array.dtype, dtype)

    def make(name: str) -> np.ndarray:
        views = []
        for leaf, i in parts[name]:
            array = np.asarray(both[leaf.path])
            views.append(next(p.view for j, p in enumerate(pieces(leaf, array)) if j == i))
        tensor = views[0] if len(views) == 1 else np.concatenate(views)
        return np.asarray(tensor, shapes[name][1], order="C")

    return {name: Lazy(shape, kind, partial(make, name)) for name, (shape, kind) in shapes.items()}


def _written_dtype(in_memory: Any, dtype: np.dtype | None) -> np.dtype:
    """Returns the dtype of a tensor in a file; counts are int64 there."""
    in_memory = np.dtype(in_memory)
    if in_memory == np.int32:
        return np.dtype(np.int64)
    return in_memory if dtype is None else dtype
