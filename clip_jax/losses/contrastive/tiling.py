"""Reduces all pairings of images and texts, one tile at a time, over blocks and devices.

A tile function maps a block of rows and a block of columns to a `Total` for each of them. A `Total`
knows how to merge with another one, on one device or between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from clip_jax.distributed import sharding
from clip_jax.losses.contrastive.masks import FLOOR

DEFAULT_BLOCK = 2048

Rows = dict[str, Array]  # the arrays of a block of rows, by name


class Sum(NamedTuple):
    """A `Total` that is a sum."""

    value: Array


class Max(NamedTuple):
    """A `Total` that is a maximum."""

    value: Array


class SumExp(NamedTuple):
    """A `Total` that is a sum of exponentials, divided by exp(`max`), the largest of them."""

    max: Array
    total: Array

    def rescaled(self, new_max: Array) -> Array:
        """Returns the sum divided by exp(`new_max`) instead; `new_max` must not be below `max`."""
        return self.total * jnp.exp(self.max - new_max)


Total = Sum | Max | SumExp
Totals = tuple[Total, ...]
TileFunction = Callable[[Any, Rows, Rows], tuple[Totals, Totals]]
BoundTile = Callable[[Rows, Rows], tuple[Totals, Totals]]  # its shared arrays are bound


def _empty(total: Total) -> Total:
    """Returns the total of no tiles, of the type of `total`, which may hold arrays or shapes."""
    match total:
        case Sum(x):
            return Sum(jnp.zeros(x.shape, x.dtype))
        case Max(x):
            return Max(jnp.full(x.shape, FLOOR, x.dtype))
        case SumExp(x, total_x):
            floor = jnp.full(x.shape, FLOOR, x.dtype)
            return SumExp(floor, jnp.zeros(total_x.shape, total_x.dtype))


def _merge(a: Totals, b: Totals) -> Totals:
    """Merges the totals of two sets of tiles."""
    return tuple(_merge_total(x, y) for x, y in zip(a, b, strict=True))


def _merge_total(a: Total, b: Total) -> Total:
    match a, b:
        case Sum(x), Sum(y):
            return Sum(x + y)
        case Max(x), Max(y):
            return Max(jnp.maximum(x, y))
        case SumExp(), SumExp():
            new_max = jnp.maximum(a.max, b.max)
            return SumExp(new_max, a.rescaled(new_max) + b.rescaled(new_max))
    raise TypeError(f"cannot merge totals of different types: {a} and {b}")


def _reduce_scatter(total: Total, axes: tuple[str, ...]) -> Total:
    """Merges the totals of all devices along the axes; each device gets those of its own rows."""

    def own_rows(x: Array) -> Array:
        size = len(x) // lax.axis_size(axes)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size)

    match total:
        case Sum(x):
            return Sum(lax.psum_scatter(x, axes, tiled=True))
        case Max(x):
            return Max(own_rows(lax.pmax(x, axes)))
        case SumExp(x):
            new_max = lax.pmax(x, axes)
            own_max = own_rows(new_max)
            return SumExp(own_max, lax.psum_scatter(total.rescaled(new_max), axes, tiled=True))


class TilePlan(NamedTuple):
    """The order in which tiles are visited.

    Attributes:
      layout: `dense`, `blockwise` or `ring`.
      block: rows of a tile, at most.
      mesh: the mesh of the tracing context.
      axes: the axes of the mesh over which the rows are sharded.
    """

    layout: str
    block: int
    mesh: AbstractMesh
    axes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """The number of shards of the rows."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


def make_tile_plan(layout: str, block: int, n: int) -> TilePlan:
    """Makes the plan for n rows on the mesh of the tracing context.

    The rows are sharded over the axes of a batch and over the tensor axis, so that tensor-parallel
    replicas share the work. An axis that does not divide the rows is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes: tuple[str, ...] = ()
    for axis in sharding.AXES:
        shards = math.prod(mesh.shape[a] for a in axes)
        if (size := mesh.shape.get(axis, 1)) > 1 and n % (shards * size) == 0:
            axes = (*axes, axis)
    return TilePlan(layout, block or DEFAULT_BLOCK, mesh, axes)


def reduce_tiles(
    tile: TileFunction, shared: Any, rows: Rows, columns: Rows, plan: TilePlan
) -> tuple[Any, Any]:
    """Computes all tiles and merges their totals by row and by column.

    Args:
      tile: maps `shared`, a block of rows and a block of columns to the totals of both. A block
        that has padding has a mask "valid" of its real rows.
      shared: arrays that every tile needs in full.
      rows: arrays [n, …].
      columns: arrays [n, …].
      plan: the layout and the sharding.

    Returns:
      The totals of the rows and of the columns, `Totals` of the types that `tile` returns.
    """
    if not plan.axes:
        return _reduce_on_device(tile, plan, shared, rows, columns)
    split = P(plan.axes)
    return jax.shard_map(
        partial(_reduce_on_device, tile, plan),
        mesh=plan.mesh,
        in_specs=(P(), split, split),
        out_specs=(split, split),
        check_vma=False,  # replicas over an axis that does not split the rows are equal
    )(shared, rows, columns)


def _reduce_on_device(
    tile: TileFunction, plan: TilePlan, shared: Any, rows: Rows, columns: Rows
) -> tuple[Totals, Totals]:
    """Does the work of one device: all tiles of its rows."""
    n, bound_tile = _count(columns), partial(tile, shared)
    rows = _split_into_blocks(rows, plan.block)
    if plan.layout == "ring" and plan.axes:
        totals = _reduce_ring(bound_tile, plan, rows, _split_into_blocks(columns, plan.block))
    else:
        columns = _split_into_blocks(columns, -(-plan.block // plan.devices))
        start = _empty_totals(bound_tile, rows, columns)
        totals = _reduce_blocks(bound_tile, rows, columns, start, plan.axes)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], totals)


def _reduce_ring(
    tile: BoundTile, plan: TilePlan, rows: Rows, columns: Rows
) -> tuple[Totals, Totals]:
    """Passes the columns and their totals from device to device, once around the ring."""
    ring = [(i, (i + 1) % plan.devices) for i in range(plan.devices)]
    shift = partial(lax.ppermute, axis_name=plan.axes, perm=ring)

    def visit(_: Array, state: Any) -> Any:
        columns, totals = state
        by_row, by_column = _reduce_blocks(tile, rows, columns, totals)
        return shift(columns), (by_row, shift(by_column))

    start = columns, _empty_totals(tile, rows, columns)
    return lax.fori_loop(0, plan.devices, visit, start)[1]


def _reduce_blocks(
    tile: BoundTile,
    rows: Rows,
    columns: Rows,
    totals: tuple[Totals, Totals],
    axes: tuple[str, ...] = (),
) -> tuple[Totals, Totals]:
    """Merges the tiles of all blocks of rows and columns into `totals`.

    With `axes`, each block of columns is all-gathered along them, and its totals are
    reduce-scattered.
    """

    def visit_column(c: Array, totals: tuple[Totals, Totals]) -> tuple[Totals, Totals]:
        block = _take(columns, c)
        if axes:
            block = lax.all_gather(block, axes, tiled=True)

        def visit_row(r: Array, totals: tuple[Totals, Totals]) -> tuple[Totals, Totals]:
            by_row, block_totals = totals
            row_totals, column_totals = tile(_take(rows, r), block)
            by_row = _put(by_row, _merge(_take(by_row, r), row_totals), r)
            return by_row, _merge(block_totals, column_totals)

        by_row, by_column = totals
        block_totals = _take(by_column, c)
        if axes:  # each gathered block is visited only once
            shapes = jax.eval_shape(tile, _take(rows, 0), block)[1]
            block_totals = tuple(_empty(total) for total in shapes)
        by_row, block_totals = lax.fori_loop(0, _count(rows), visit_row, (by_row, block_totals))
        if axes:
            block_totals = tuple(_reduce_scatter(total, axes) for total in block_totals)
        return by_row, _put(by_column, block_totals, c)

    return lax.fori_loop(0, _count(columns), visit_column, totals)


def _empty_totals(tile: BoundTile, rows: Rows, columns: Rows) -> tuple[Totals, Totals]:
    """Returns the totals of all blocks before the first tile."""

    def of_blocks(totals: Totals, count: int) -> Totals:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), totals)
        return tuple(_empty(total) for total in shapes)

    by_row, by_column = jax.eval_shape(tile, _take(rows, 0), _take(columns, 0))
    return of_blocks(by_row, _count(rows)), of_blocks(by_column, _count(columns))


def _split_into_blocks(rows: Rows, max_size: int) -> Rows:
    """Reshapes rows [n, …] to [blocks, rows of a block, …]: few blocks of nearly equal size."""
    n = _count(rows)
    count = -(-n // max_size)
    size = -(-n // count)
    padding = count * size - n
    if padding:
        rows = {**rows, "valid": jnp.ones(n, bool)}

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1)))
        return padded.reshape(count, size, *x.shape[1:])

    return jax.tree.map(split, rows)


def _count(rows: Rows) -> int:
    return len(jax.tree.leaves(rows)[0])


def _take(tree: Any, index: Array | int) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _put(tree: Any, part: Any, index: Array) -> Any:
    return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, index, 0), tree, part)
