"""Every image against every text, a tile at a time, over the blocks and the devices.

A tile is a function of a block of rows and a block of columns. What it adds to each is a `Total`,
which tells how two of them become one, be it on a device or between devices.
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

BLOCK = 2048

Rows = dict[str, Any]


class Sum(NamedTuple):
    """A sum."""

    value: Array


class Max(NamedTuple):
    """A maximum."""

    value: Array


class SumExp(NamedTuple):
    """A sum of exponentials, divided by the greatest of them, whose exponent is `top`."""

    top: Array
    total: Array

    def under(self, top: Array) -> Array:
        """The sum divided by the exponential of another top, which is not below its own."""
        return self.total * jnp.exp(self.top - top)


Total = Sum | Max | SumExp
Totals = tuple[Total, ...]
Tile = Callable[[Any, Rows, Rows], tuple[Totals, Totals]]
PartialTile = Callable[[Rows, Rows], tuple[Totals, Totals]]  # its shared arrays given


def _empty(total: Total) -> Total:
    """Before any tile; of arrays or shapes."""
    match total:
        case Sum(x):
            return Sum(jnp.zeros(x.shape, x.dtype))
        case Max(x):
            return Max(jnp.full(x.shape, FLOOR, x.dtype))
        case SumExp(top, x):
            return SumExp(jnp.full(top.shape, FLOOR, top.dtype), jnp.zeros(x.shape, x.dtype))


def _merge(a: Totals, b: Totals) -> Totals:
    """After the tiles of both."""
    return tuple(_merge_one(x, y) for x, y in zip(a, b, strict=True))


def _merge_one(a: Total, b: Total) -> Total:
    match a, b:
        case Sum(x), Sum(y):
            return Sum(x + y)
        case Max(x), Max(y):
            return Max(jnp.maximum(x, y))
        case SumExp(), SumExp():
            top = jnp.maximum(a.top, b.top)
            return SumExp(top, a.under(top) + b.under(top))
    raise TypeError(f"{a} and {b} are of two kinds")


def _settle(total: Total, axes: tuple[str, ...]) -> Total:
    """After the tiles of all devices along the axes: each gets what belongs to its own rows."""

    def own(x: Array) -> Array:
        size = len(x) // lax.axis_size(axes)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size)

    match total:
        case Sum(x):
            return Sum(lax.psum_scatter(x, axes, tiled=True))
        case Max(x):
            return Max(own(lax.pmax(x, axes)))
        case SumExp(top):
            top = lax.pmax(top, axes)
            return SumExp(own(top), lax.psum_scatter(total.under(top), axes, tiled=True))


class Plan(NamedTuple):
    """How the tiles are visited; `axes` of the mesh split the rows."""

    layout: str
    block: int
    mesh: AbstractMesh
    axes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Into how many parts the rows are split."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


def make_plan(layout: str, block: int, n: int) -> Plan:
    """The plan for n rows over the mesh of the tracing context.

    The axes are those of a batch, and the tensor axis, so that its replicas do not repeat each
    other's work; one that does not divide the rows is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes: tuple[str, ...] = ()
    for axis in sharding.AXES:
        parts = math.prod(mesh.shape[a] for a in axes)
        if (size := mesh.shape.get(axis, 1)) > 1 and n % (parts * size) == 0:
            axes = (*axes, axis)
    return Plan(layout, block or BLOCK, mesh, axes)


def sweep(tile: Tile, shared: Any, rows: Rows, columns: Rows, plan: Plan) -> tuple[Any, Any]:
    """What all tiles add to all rows and to all columns: `Totals` of the kinds that a tile gives.

    Args:
      tile: from `shared`, a block of rows and a block of columns to what it adds to these. Where
        blocks hold padding, their "valid" says what is none.
      shared: arrays that every tile needs whole.
      rows: arrays [n, …].
      columns: arrays [n, …].
      plan: how to visit them.
    """
    if not plan.axes:
        return _walk(tile, plan, shared, rows, columns)
    split = P(plan.axes)
    return jax.shard_map(
        partial(_walk, tile, plan),
        mesh=plan.mesh,
        in_specs=(P(), split, split),
        out_specs=(split, split),
        check_vma=False,  # replicas over an axis that does not split the rows are equal
    )(shared, rows, columns)


def _walk(tile: Tile, plan: Plan, shared: Any, rows: Rows, columns: Rows) -> tuple[Totals, Totals]:
    """The part of one device: all tiles of its rows."""
    n, part = _count(columns), partial(tile, shared)
    rows = _blocks(rows, plan.block)
    if plan.layout == "ring" and plan.axes:
        totals = _ring(part, plan, rows, _blocks(columns, plan.block))
    else:
        columns = _blocks(columns, -(-plan.block // plan.devices))
        totals = _tiles(part, rows, columns, _start(part, rows, columns), plan.axes)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], totals)


def _ring(tile: PartialTile, plan: Plan, rows: Rows, columns: Rows) -> tuple[Totals, Totals]:
    """Columns go from device to device, with what they are given, until they are home."""
    ring = [(i, (i + 1) % plan.devices) for i in range(plan.devices)]
    shift = partial(lax.ppermute, axis_name=plan.axes, perm=ring)

    def visit(_: Array, state: Any) -> Any:
        columns, totals = state
        by_row, by_column = _tiles(tile, rows, columns, totals)
        return shift(columns), (by_row, shift(by_column))

    start = columns, _start(tile, rows, columns)
    return lax.fori_loop(0, plan.devices, visit, start)[1]


def _tiles(
    tile: PartialTile,
    rows: Rows,
    columns: Rows,
    totals: tuple[Totals, Totals],
    axes: tuple[str, ...] = (),
) -> tuple[Totals, Totals]:
    """Every block of rows with every block of columns, added to what they had.

    A block of columns is gathered along the axes, and each device gets back what its own got.
    """

    def column(c: Array, totals: tuple[Totals, Totals]) -> tuple[Totals, Totals]:
        block = _take(columns, c)
        if axes:
            block = lax.all_gather(block, axes, tiled=True)

        def row(r: Array, totals: tuple[Totals, Totals]) -> tuple[Totals, Totals]:
            by_row, given = totals
            to_row, to_column = tile(_take(rows, r), block)
            return _put(by_row, _merge(_take(by_row, r), to_row), r), _merge(given, to_column)

        by_row, by_column = totals
        before = _take(by_column, c)
        if axes:  # a gathered block comes only once
            shapes = jax.eval_shape(tile, _take(rows, 0), block)[1]
            before = tuple(_empty(total) for total in shapes)
        by_row, given = lax.fori_loop(0, _count(rows), row, (by_row, before))
        if axes:
            given = tuple(_settle(total, axes) for total in given)
        return by_row, _put(by_column, given, c)

    return lax.fori_loop(0, _count(columns), column, totals)


def _start(tile: PartialTile, rows: Rows, columns: Rows) -> tuple[Totals, Totals]:
    """The totals of all blocks before any tile."""

    def blocks(totals: Totals, count: int) -> Totals:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), totals)
        return tuple(_empty(total) for total in shapes)

    by_row, by_column = jax.eval_shape(tile, _take(rows, 0), _take(columns, 0))
    return blocks(by_row, _count(rows)), blocks(by_column, _count(columns))


def _blocks(rows: Rows, most: int) -> Rows:
    """Rows [n, …] as [blocks, rows of a block, …]: as few blocks as can be, as equal as can be."""
    n = _count(rows)
    count = -(-n // most)
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
