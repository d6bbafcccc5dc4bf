"""Sharding: the mesh, and the rules from logical axes of parameters to axes of the mesh."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from clip_jax.distributed import hardware
from clip_jax.distributed.param_spec import (
    EMBEDDING,
    ParamSpec,
    ParamSpecs,
    find_spec,
    map_params,
    path_name,
)
from clip_jax.errors import UserError, counted

AXES = ("data", "fsdp", "tensor")
_ROWS = ("data", "fsdp")
BATCH = P(_ROWS)

# In this order a gradient that is summed over both axes is already where its parameter is.
_BOTH = ("tensor", "fsdp")

# The axes of the mesh that each logical axis of a parameter is sharded over.
RULES: dict[str, tuple[str, ...]] = {
    "width": ("fsdp",),  # the residual stream, where a block's layers read or write it
    "heads": ("tensor",),  # queries, keys and values of all heads
    "hidden": ("tensor",),  # the hidden layer of an MLP
    "inputs": _BOTH,  # of any other linear layer or convolution
    "outputs": (),
    "features": ("fsdp", "tensor"),  # of an embedding table
    "vocabulary": (),
    "positions": (),
    "pixels": (),
    "patch_features": _BOTH,
    "layers": (),
}

# Kinds of devices that JAX expects to be whole chips, both cores of each.
_BY_CHIPS = ("TPU v4", "TPU v5", "TPU v5p")

# Values in a row of a TPU tile; shorter rows are padded.
LANES = 128


def make_mesh(shape: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of the axes data, fsdp and tensor.

    Args:
      shape: the size of each axis. One may be -1: all devices that are left.
      devices: the devices; None: all devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [shape.get(axis, 1) for axis in AXES]
    if sizes.count(-1) == 1:
        rest = math.prod(s for s in sizes if s != -1)
        if rest > 0 and len(devices) % rest == 0:
            sizes[sizes.index(-1)] = len(devices) // rest
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        mesh_text = ", ".join(f"{axis}={shape.get(axis, 1)}" for axis in AXES)
        raise UserError(
            f"config.mesh ({mesh_text}) does not cover {counted(len(devices), 'device')}: the "
            "three must multiply to that number, or one of them be -1"
        )
    return _split_chips(sizes, devices) or _mesh(sizes, devices)


def _mesh(sizes: Sequence[int], devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def _split_chips(sizes: Sequence[int], devices: Sequence[jax.Device]) -> Mesh | None:
    """Returns a mesh of the cores of v4 or v5p chips; None if each device is a whole chip.

    JAX arranges such devices by chips only. The cores of a chip become neighbours along the
    innermost axis that they fit on.
    """
    by_place = {
        (*device.coords, device.core_on_chip): device
        for device in devices
        if device.device_kind in _BY_CHIPS
    }
    chips = [device for place, device in by_place.items() if place[-1] == 0]
    if len(chips) == len(by_place):
        return None
    cores = len(by_place) // len(chips)
    axis = max(i for i, size in enumerate(sizes) if size % cores == 0)
    chip_sizes = [size // cores if i == axis else size for i, size in enumerate(sizes)]
    mesh = _mesh(chip_sizes, chips)
    by_core = [
        [by_place[(*device.coords, core)] for device in mesh.devices.flat] for core in range(cores)
    ]
    arranged = np.stack([np.reshape(part, chip_sizes) for part in by_core], axis + 1)
    return Mesh(arranged.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts that the rows of a batch are sharded into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def partition(spec: ParamSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Returns the `PartitionSpec` of a parameter, by `RULES`.

    Mesh axes that do not divide a dimension drop out.

    Raises:
      UserError: the metadata names a logical axis that has no rule.
    """
    if len(shape) != len(spec.axes):  # such as the row sums of a factored optimizer
        return P()
    axes = [_rule(axis) for axis in spec.axes]
    if not any(axes):
        return P()
    return P(*(_dividing(n, a, mesh) for n, a in zip(shape, axes, strict=True)))


def _rule(axis: str | None) -> tuple[str, ...]:
    if axis is None:
        return ()
    if axis not in RULES:
        raise UserError(f"unknown logical axis {axis!r} of a parameter; known: {', '.join(RULES)}")
    return RULES[axis]


def _dividing(n: int, axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> Any:
    """Returns as many of the axes as divide `n`, as an entry of a `PartitionSpec`."""
    while axes and n % _size(mesh, axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None


def _names(axes: Any) -> tuple[str, ...]:
    """Returns an entry of a `PartitionSpec` as a tuple of mesh axes."""
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _size(mesh: Mesh | AbstractMesh, axes: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in _names(axes))


def shardings(tree: Any, specs: ParamSpecs, mesh: Mesh, *, over_data: bool = False) -> Any:
    """Returns a `NamedSharding` for every leaf of a tree (arrays or shapes).

    Args:
      tree: parameters, or a tree that repeats their paths, such as an optimizer's state. Leaves
        that belong to no parameter are replicated.
      specs: the metadata of the parameters.
      mesh: the mesh.
      over_data: whether matrices are sharded over the data axis as well, as an optimizer's state
        may be (ZeRO stage 1, Rajbhandari et al. 2019).
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = find_spec(path_name(path), specs)
        axes = P() if spec is None else _partition(spec, leaf, mesh, over_data)
        return NamedSharding(mesh, axes)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _partition(spec: ParamSpec, leaf: Any, mesh: Mesh | AbstractMesh, over_data: bool) -> P:
    axes = partition(spec, leaf.shape, mesh)
    if not over_data or leaf.ndim < 2:
        return axes
    entries = [*axes, *(None,) * (leaf.ndim - len(axes))]
    parts = [_size(mesh, entry) for entry in entries]
    for i in sorted(range(leaf.ndim), key=lambda i: -leaf.shape[i] // parts[i]):
        if leaf.shape[i] % (parts[i] * mesh.shape["data"]) == 0:
            entries[i] = (*_names(entries[i]), "data")
            return P(*entries)
    return axes


def constrain_params(tree: Any, specs: ParamSpecs, *, over_data: bool = False) -> Any:
    """Constrains parameters or their gradients to their `shardings`."""
    mesh = _context()
    if mesh is None:
        return tree
    return map_params(
        lambda spec, x: _constrained(x, *_partition(spec, x, mesh, over_data)), specs, tree
    )


def split_chunks(batch: Any, parts: int) -> Any:
    """Reshapes arrays [n, …] to [parts, n / parts, …], each part sharded evenly over the devices.

    There is no communication: each device splits its own rows.
    """
    shards = row_shards()

    def divided(x: Array) -> Array:
        x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return _constrained(x.reshape(parts, -1, *x.shape[3:]), None, *BATCH)

    return jax.tree.map(divided, batch)


def merge_chunks(batch: Any) -> Any:
    """Reverses `split_chunks`."""
    shards = row_shards()

    def merge(x: Array) -> Array:
        x = x.reshape(len(x), shards, -1, *x.shape[2:]).swapaxes(0, 1)
        return constrain_rows(x.reshape(-1, *x.shape[3:]))

    return jax.tree.map(merge, batch)


def row_shards() -> int:
    """Returns the number of shards of a batch on the mesh of the program that is traced."""
    mesh = _context()
    return 1 if mesh is None else batch_shards(mesh)


def _context() -> AbstractMesh | None:
    """Returns the mesh that a program is being traced for; None in a notebook."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def _constrained(x: Array, *axes: Any) -> Array:
    mesh = _context()
    if mesh is None or mesh.manual_axes:  # inside `by_device`
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def by_device(
    function: Callable[[Any, Any], tuple[Any, Any]], shared: Any, batch: Any
) -> tuple[Any, Any]:
    """Calls `function(shared, batch)` on each device, with the device's own rows of a batch.

    Args:
      function: returns a tree that is summed over the devices, and a tree of rows.
      shared: what all devices get whole.
      batch: rows of a batch.

    Returns:
      The sum of the first results over the devices, and the rows of all devices.
    """
    mesh = _context()
    if mesh is None or batch_shards(mesh) == 1:  # every device has all rows
        return function(shared, batch)

    def own(shared: Any, batch: Any) -> tuple[Any, Any]:
        sums, rows = function(shared, batch)
        return jax.lax.psum(sums, _ROWS), rows

    # an automatic axis of size one keeps XLA from fusing a softmax with its product
    left = {"tensor"} if mesh.shape["tensor"] > 1 else set()
    return jax.shard_map(
        own,
        mesh=mesh,
        axis_names=set(AXES) - left,
        in_specs=(P(), BATCH),
        out_specs=(P(), BATCH),
        check_vma=False,  # one sum after a loop, not one in each iteration
    )(shared, batch)


def constrain_rows(x: Array) -> Array:
    """Constrains `x` to be sharded like a batch on its first axis, the rows, and on no other."""
    return _constrained(x, *BATCH)


def by_rows_and_heads(function: Callable[..., Array], *arrays: Array) -> Array:
    """Calls a function of arrays [batch, length, heads, size] on each device, with its own part.

    Rows are sharded like a batch, heads over the tensor axis if it divides them. XLA cannot shard
    custom kernels by itself.

    Args:
      function: returns an array of the same rows and heads.
      arrays: as many rows as `splits_rows` allows.
    """
    mesh = _context()
    if mesh is None or mesh.size == 1:
        return function(*arrays)
    heads = "tensor" if splits_heads(arrays[0].shape[2]) else None
    left = [axis for axis in AXES if axis not in mesh.manual_axes]
    rows = tuple(axis for axis in _ROWS if axis in left)
    part = P(rows or None, None, heads)
    return jax.shard_map(
        function,
        mesh=mesh,
        axis_names=set(left),
        in_specs=(part,) * len(arrays),
        out_specs=part,
        check_vma=False,
    )(*arrays)


def splits_rows(count: int) -> bool:
    """Returns whether `count` rows can be sharded like a batch, or are one device's already."""
    mesh = _context()
    if mesh is None:
        return True
    return (
        count % math.prod(mesh.shape[axis] for axis in _ROWS if axis not in mesh.manual_axes) == 0
    )


def traced_gpu() -> hardware.Chip | None:
    """Returns the NVIDIA GPU that a program is being traced for; None for others."""
    mesh = _context()
    device = None if mesh is None else mesh.abstract_device
    return hardware.chip_of(device.device_kind) if device and device.platform == "gpu" else None


def row_major_on_gpus(x: Array) -> Array:
    """Returns `x`, whose last axis lies contiguous in the memory of a GPU.

    XLA of jax 0.12 would choose other layouts for activations between layers, and transpose them.
    """
    if traced_gpu() is None:
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def embed_tokens(table: Array, tokens: Array, dtype: Any) -> Array:
    """Returns the rows of a `table` [vocabulary, width] for `tokens`: [batch, context, width].

    A table that is sharded over few devices is not gathered. Each device looks up its features for
    all rows of its fsdp and tensor group; then an all-to-all moves far fewer bytes than the table.
    Over many devices each would have only a few features in a tile of `LANES`: then the table is
    gathered.
    """
    mesh = _context()
    if mesh is not None and table.shape[1] < LANES * _size(mesh, _BOTH):
        return constrain_rows(_looked_up(table, constrain_rows(tokens), dtype))
    x = jnp.take(table.astype(dtype), _constrained(tokens, "data"), axis=0)
    for axes in (("fsdp", "tensor"), "fsdp"):
        x = _constrained(x, "data", None, axes)
    return constrain_rows(x)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _looked_up(table: Array, tokens: Array, dtype: Any) -> Array:
    return jnp.take(_constrained(table.astype(dtype), None, None), tokens, axis=0)


def _looked_up_forward(table: Array, tokens: Array, dtype: Any) -> tuple[Array, Any]:
    return _looked_up(table, tokens, dtype), (table, tokens)


def _looked_up_backward(dtype: Any, saved: Any, gradient: Array) -> tuple[Array, None]:
    """Sums the gradients of a token in float32, however many there are."""
    table, tokens = saved

    def own(_: Any, rows: tuple[Array, Array]) -> tuple[Array, tuple[()]]:
        zero = jnp.zeros(table.shape, jnp.float32)
        return zero.at[rows[0]].add(rows[1].astype(jnp.float32)), ()

    sums, _ = by_device(own, (), (tokens, gradient))
    mesh = _context()
    if mesh is not None:
        sums = _constrained(sums, *partition(EMBEDDING, table.shape, mesh))
    return sums.astype(table.dtype), None


_looked_up.defvjp(_looked_up_forward, _looked_up_backward)


def splits_heads(count: int) -> bool:
    """Returns whether `count` heads are sharded over the tensor axis."""
    mesh = _context()
    return mesh is not None and mesh.shape["tensor"] > 1 and count % mesh.shape["tensor"] == 0


def gather_params(params: Any, specs: ParamSpecs) -> Any:
    """Returns parameters as a layer uses them: all-gathered over fsdp, still sharded over tensor.

    The gradients are sharded over fsdp again. Parameters whose metadata says `gather=False` stay
    as they are.
    """
    mesh = _context()
    if mesh is None:
        return params

    def gather(spec: ParamSpec, leaf: Array) -> Array:
        sharded = partition(spec, leaf.shape, mesh)
        gathered = P(*("tensor" if axis == "tensor" else None for axis in sharded))
        return _gather(leaf, sharded, gathered) if spec.gather and sharded != gathered else leaf

    return map_params(gather, specs, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: Array, sharded: P, gathered: P) -> Array:
    return jax.lax.with_sharding_constraint(leaf, gathered)


def _gather_forward(leaf: Array, sharded: P, gathered: P) -> tuple[Array, None]:
    return _gather(leaf, sharded, gathered), None


def _gather_backward(sharded: P, gathered: P, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, sharded),)


_gather.defvjp(_gather_forward, _gather_backward)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, P())
