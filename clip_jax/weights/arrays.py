"""A model's variables from the tensors of a file, and back, by the tables of `names`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
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
from clip_jax.weights.mappings.leaf import Leaf, Piece, pieces
from clip_jax.weights.param_mapping import IGNORED, Library, leaves
from clip_jax.weights.tensor_writing import Lazy
from clip_jax.weights.tensors import Tensors

# What parameters may be held in; `keep` leaves each as its file has it.
DTYPES: dict[str, Any] = {
    "keep": None,
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ALIGNMENT = 64  # bytes; an aligned array becomes XLA's on a CPU without a copy
_ROWS = 96  # of a tensor that are transposed at once, to stay in the cache


def flat(*trees: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Paths such as `vision/ln_post/scale`, and what stands there, of nested dictionaries."""
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from flat(value, prefix=f"{prefix}{key}/")
            else:
                yield prefix + key, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return tree


def _dummy(shape: tuple[int, ...]) -> np.ndarray:
    """An array of a shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def _their_shape(piece: Piece) -> tuple[int, ...]:
    shape = piece.view.shape
    if piece.rows is None:
        return shape
    first, end, whole = piece.rows
    return (shape[0] // (end - first) * whole, *shape[1:])


def _rows(piece: Piece, tensor: np.ndarray) -> np.ndarray:
    if piece.rows is None:
        return tensor
    first, end, whole = piece.rows
    unit = len(tensor) // whole
    return tensor[first * unit : end * unit]


def check(tensors: Tensors, table: list[Leaf], shapes: Mapping[str, Any]) -> None:
    """That a file holds a table's tensors in their shapes, and no others.

    Raises:
      UserError: names what is missing, has another shape or does not belong there.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for leaf in table:
        for piece in pieces(leaf, _dummy(shapes[leaf.path].shape)):
            wanted[piece.name] = _their_shape(piece)
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted and name not in IGNORED]
    wrong = [
        f"{name} is {tensors.shapes[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors and not _same(tensors.shapes[name], shape)
    ]
    for found, what in (
        (missing, "has no {}"),
        (wrong, "{}"),
        (extra, "has a {} that this model has no place for"),
    ):
        if found:
            more = f" (and {len(found) - 1} more such)" if len(found) > 1 else ""
            hint = ": is it the weights of another model?" if len(found) > 1 else ""
            raise UserError(f"{tensors.path} {what.format(found[0])}{more}{hint}")


def _same(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return found == wanted or {found, wanted} == {(), (1,)}  # a scalar, in some versions


def _table(config: CLIPConfig, library: Library, arrays: Mapping[str, Any]) -> list[Leaf]:
    """The table of a model; UserError where it leaves out one of `arrays`."""
    table = leaves(config, library)
    if unnamed := arrays.keys() - {leaf.path for leaf in table}:
        raise UserError(f"{library} has no place for {sorted(unnamed)[0]} of this model")
    return table


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _held_in(leaf: Leaf, tensors: Tensors, abstract: Any, dtype: np.dtype | None) -> np.dtype:
    if not np.issubdtype(abstract.dtype, np.floating):
        return np.dtype(abstract.dtype)
    if dtype is not None:
        return dtype
    found = {tensors.dtypes[piece.name] for piece in pieces(leaf, _dummy(abstract.shape))}
    one = found.pop()
    return one if not found and one.itemsize <= 4 and one.kind in "fV" else np.dtype(np.float32)


def read(
    tensors: Tensors, config: CLIPConfig, library: Library, dtype: np.dtype | None = None
) -> Variables:
    """A model's parameters and batch statistics from the tensors of a file.

    One tensor at a time is held besides what is made of them.

    Args:
      tensors: of an open file.
      config: the architecture that the file holds.
      library: whose names the file uses.
      dtype: what the parameters are held in; None keeps each as the file has it.

    Raises:
      UserError: a tensor is missing, superfluous, or of another shape.
    """
    shapes = [dict(flat(tree)) for tree in variables(abstract_model(config))]
    both = shapes[0] | shapes[1]
    table = _table(config, library, both)
    check(tensors, table, both)
    held = {
        leaf.path: _aligned(both[leaf.path].shape, _held_in(leaf, tensors, both[leaf.path], dtype))
        for leaf in table
    }
    work = [piece for leaf in table for piece in pieces(leaf, held[leaf.path])]

    scratch = _Scratch()

    def fill(piece: Piece) -> None:
        shape, kind = tensors.shapes[piece.name], tensors.dtypes[piece.name]
        if piece.rows is None and piece.view.flags.carray and piece.view.dtype == kind:
            tensors.read(piece.name, piece.view.reshape(shape))
            return
        tensor = tensors.read(piece.name, scratch.array(shape, kind))
        _copy(_rows(piece, tensor.reshape(_their_shape(piece))), piece.view)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, work))
    where = jax.local_devices()[0]
    arrays = {path: jax.device_put(array, where, may_alias=True) for path, array in held.items()}
    params, stats = ({path: arrays[path] for path in tree} for tree in shapes)
    return _nested(params), _nested(stats)


def cast(held: Variables, dtype: str) -> Variables:
    """A model's variables in a dtype of `DTYPES`; whole numbers stay as they are."""
    wanted = DTYPES[dtype]
    if wanted is None:
        return held

    def to(x: jax.Array) -> jax.Array:
        return x.astype(wanted) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(to, held)


class _Scratch(threading.local):
    """Memory that each thread uses again and again: new pages cost as much as reading does."""

    held = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array whose content lasts until the next."""
        size = math.prod(shape) * dtype.itemsize
        if len(self.held) < size:
            self.held = _aligned((size,), np.dtype(np.uint8))
        return self.held[:size].view(dtype).reshape(shape)


def _copy(tensor: np.ndarray, view: np.ndarray) -> None:
    """Copies into a view that may be a transposition, a few rows at a time."""
    if view.ndim < 2:
        view[...] = tensor
        return
    for start in range(0, len(view), _ROWS):
        view[start : start + _ROWS] = tensor[start : start + _ROWS]


def write(
    held: Variables, config: CLIPConfig, library: Library, dtype: np.dtype | None = None
) -> dict[str, Lazy]:
    """The tensors of a library's file, each made when it is asked for.

    Args:
      held: a model's parameters and batch statistics.
      config: the architecture.
      library: whose names to use.
      dtype: what parameters are written in; None keeps each as it is held.

    Raises:
      UserError: the library has no such model.
    """
    both = dict(flat(*held))
    parts: dict[str, list[tuple[Leaf, int]]] = {}
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    table = _table(config, library, both)
    for leaf in table:
        array = both[leaf.path]
        for i, piece in enumerate(pieces(leaf, _dummy(array.shape))):
            parts.setdefault(piece.name, []).append((leaf, i))
            shapes[piece.name] = _their_shape(piece), _written_in(array.dtype, dtype)

    def made(name: str) -> np.ndarray:
        found = []
        for leaf, i in parts[name]:
            array = np.asarray(both[leaf.path])
            found.append(next(p.view for j, p in enumerate(pieces(leaf, array)) if j == i))
        whole = found[0] if len(found) == 1 else np.concatenate(found)
        return np.asarray(whole, shapes[name][1], order="C")

    return {name: Lazy(shape, kind, partial(made, name)) for name, (shape, kind) in shapes.items()}


def _written_in(held: Any, dtype: np.dtype | None) -> np.dtype:
    held = np.dtype(held)
    if held == np.int32:
        return np.dtype(np.int64)
    return held if dtype is None else dtype
