"""Where arrays live: the mesh, and one table from parameter names to its axes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from clip_jax.errors import UserError, counted

AXES = ("data", "fsdp", "tensor")
_ROWS = ("data", "fsdp")
BATCH = P(_ROWS)

# In this order, so that a gradient summed over both lands where its parameter lies.
_BOTH = ("tensor", "fsdp")

# First match wins; matched against the end of a parameter's path, so that the optimizer's
# moments, which repeat the names, lie where their parameters lie. A spec names the last axes of
# an array: stacked layers lead with one more, convolutions with their windows.
RULES: tuple[tuple[str, P], ...] = (
    (r"attention/qkv/kernel", P("fsdp", "tensor")),
    (r"attention/qkv/bias", P("tensor")),
    (r"attention/out/kernel", P("tensor", "fsdp")),
    (r"mlp/fc/kernel", P("fsdp", "tensor")),
    (r"mlp/fc/bias", P("tensor")),
    (r"mlp/proj/kernel", P("tensor", "fsdp")),
    (r"token_embedding/embedding", P(None, ("fsdp", "tensor"))),
    (r"patch_embedding/kernel", P(None, _BOTH)),
    (r"positional_embedding", P(None, ("fsdp", "tensor"))),
    (r"depthwise/kernel", P()),
    (r"kernel", P(_BOTH, None)),
    (r".*", P()),
)

# Numbers that a row of a TPU's tile takes: fewer are filled up.
LANES = 128

# What `gathered` leaves where it lies: stacked layers, which are gathered one at a time
# (`models.stack`), and the table of `embedded`.
_STAY = r"(^|/)(blocks|first|rest|token_embedding)/"


def make_mesh(shape: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the axes data, fsdp and tensor; one of them may be -1: all that is left.

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
        given = ", ".join(f"{axis}={shape.get(axis, 1)}" for axis in AXES)
        raise UserError(
            f"config.mesh ({given}) does not cover {counted(len(devices), 'device')}: the three "
            "must multiply to that number, or one of them be -1"
        )
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def name_of(path: tuple[Any, ...]) -> str:
    """A leaf's path in a tree as `text/projection/kernel`, in a `flax.nnx.State` too."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The rule for a parameter; axes that do not divide its dimension are left out."""
    spec = next(spec for pattern, spec in RULES if re.search(f"(^|/){pattern}$", path))
    if len(spec) > len(shape):
        return P()
    axes = (*(None,) * (len(shape) - len(spec)), *spec) if spec else ()
    return P(*(_dividing(n, _names(a), mesh) for n, a in zip(shape, axes, strict=False)))


def _dividing(n: int, axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> Any:
    """As many of the axes as `n` divides over, as an entry of a spec."""
    while axes and n % _size(mesh, axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None


def _names(axes: Any) -> tuple[str, ...]:
    """An entry of a spec as a tuple of the mesh's axes."""
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _size(mesh: Mesh | AbstractMesh, axes: Any) -> int:
    return math.prod(mesh.shape[axis] for axis in _names(axes))


def shardings(tree: Any, mesh: Mesh, *, over_data: bool = False) -> Any:
    """A `NamedSharding` for every leaf of a tree (arrays or shapes), by `RULES`.

    With `over_data` matrices are spread over the data axis as well, as an optimizer's state may
    be (ZeRO stage 1, Rajbhandari et al. 2019).
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path, leaf, mesh, over_data)), tree
    )


def _spec(path: tuple[Any, ...], leaf: Any, mesh: Mesh | AbstractMesh, over_data: bool) -> P:
    spec = spec_for(name_of(path), leaf.shape, mesh)
    if not over_data or leaf.ndim < 2:
        return spec
    axes = [*spec, *(None,) * (leaf.ndim - len(spec))]
    parts = [_size(mesh, a) for a in axes]
    for i in sorted(range(leaf.ndim), key=lambda i: -leaf.shape[i] // parts[i]):
        if leaf.shape[i] % (parts[i] * mesh.shape["data"]) == 0:
            axes[i] = (*_names(axes[i]), "data")
            return P(*axes)
    return spec


def spread(tree: Any, *, over_data: bool = False) -> Any:
    """Parameters or what has their shapes, such as gradients, laid out as `shardings` says."""
    mesh = _context()
    if mesh is None:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _constrained(x, *_spec(path, x, mesh, over_data)), tree
    )


def cut(batch: Any, parts: int) -> Any:
    """Arrays [n, …] as [parts, n / parts, …]; of each part every device holds as many rows.

    Nothing moves: a device cuts up its own rows.
    """
    shards = _shards()

    def divided(x: Array) -> Array:
        x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return _constrained(x.reshape(parts, -1, *x.shape[3:]), None, *BATCH)

    return jax.tree.map(divided, batch)


def joined(batch: Any) -> Any:
    """The reverse of `cut`."""
    shards = _shards()

    def whole(x: Array) -> Array:
        x = x.reshape(len(x), shards, -1, *x.shape[2:]).swapaxes(0, 1)
        return rows(x.reshape(-1, *x.shape[3:]))

    return jax.tree.map(whole, batch)


def _shards() -> int:
    mesh = _context()
    return 1 if mesh is None else batch_shards(mesh)


def _context() -> AbstractMesh | None:
    """The mesh that a program is being traced for; none in a notebook."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def _constrained(x: Array, *axes: Any) -> Array:
    mesh = _context()
    if mesh is None or mesh.manual_axes:  # a device by itself
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def by_device(
    function: Callable[[Any, Any], tuple[Any, Any]], shared: Any, batch: Any
) -> tuple[Any, Any]:
    """`function(shared, batch)` by each device, on the rows that it holds of a batch.

    Of the two that it returns the first is summed over the devices, the second are rows again.
    """
    mesh = _context()
    if mesh is None or batch_shards(mesh) == 1:  # all rows are every device's
        return function(shared, batch)

    def own(shared: Any, batch: Any) -> tuple[Any, Any]:
        sums, found = function(shared, batch)
        return jax.lax.psum(sums, _ROWS), found

    # left to the compiler, an axis of size one keeps it from fusing a softmax with its product
    left = {"tensor"} if mesh.shape["tensor"] > 1 else set()
    return jax.shard_map(
        own,
        mesh=mesh,
        axis_names=set(AXES) - left,
        in_specs=(P(), BATCH),
        out_specs=(P(), BATCH),
        check_vma=False,  # one sum for all rounds of a loop, not one each
    )(shared, batch)


def rows(x: Array) -> Array:
    """`x`, whose first axis counts rows of a batch: they lie where the batch's do, and whole."""
    return _constrained(x, *BATCH)


def embedded(table: Array, tokens: Array, dtype: Any) -> Array:
    """The rows of a `table` [vocabulary, width] that `tokens` name, [batch, context, width].

    A table that is spread over few devices stays where it lies: each looks its features up for all
    rows of its fsdp and tensor group, and then they change hands, far fewer bytes than the table.
    Over many devices a feature or two of each would fill a tile of `LANES`; then it is gathered.
    """
    mesh = _context()
    if mesh is not None and table.shape[1] < LANES * _size(mesh, _BOTH):
        return rows(_looked_up(table, rows(tokens), dtype))
    x = jnp.take(table.astype(dtype), _constrained(tokens, "data"), axis=0)
    for axes in (("fsdp", "tensor"), "fsdp"):
        x = _constrained(x, "data", None, axes)
    return rows(x)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _looked_up(table: Array, tokens: Array, dtype: Any) -> Array:
    return jnp.take(_constrained(table.astype(dtype), None, None), tokens, axis=0)


def _looked_up_forward(table: Array, tokens: Array, dtype: Any) -> tuple[Array, Any]:
    return _looked_up(table, tokens, dtype), (table, tokens)


def _looked_up_backward(dtype: Any, held: Any, gradient: Array) -> tuple[Array, None]:
    """A token's gradients are summed in float32, however many it has."""
    table, tokens = held

    def own(_: Any, rows: tuple[Array, Array]) -> tuple[Array, tuple[()]]:
        zero = jnp.zeros(table.shape, jnp.float32)
        return zero.at[rows[0]].add(rows[1].astype(jnp.float32)), ()

    sums, _ = by_device(own, (), (tokens, gradient))
    mesh = _context()
    if mesh is not None:
        sums = _constrained(sums, *spec_for("token_embedding/embedding", table.shape, mesh))
    return sums.astype(table.dtype), None


_looked_up.defvjp(_looked_up_forward, _looked_up_backward)


def splits(count: int) -> bool:
    """Whether `count` heads are split over the tensor axis."""
    mesh = _context()
    return mesh is not None and mesh.shape["tensor"] > 1 and count % mesh.shape["tensor"] == 0


def gathered(params: Any) -> Any:
    """Parameters as a layer uses them: whole, but for the tensor axis.

    What fsdp spread over devices comes together here; gradients are spread again.
    """
    mesh = _context()
    if mesh is None:
        return params

    def gather(path: tuple[Any, ...], leaf: Array) -> Array:
        name = name_of(path)
        held = spec_for(name, leaf.shape, mesh)
        used = P(*("tensor" if axis == "tensor" else None for axis in held))
        stays = held == used or re.search(_STAY, name)
        return leaf if stays else _gather(leaf, held, used)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: Array, held: P, used: P) -> Array:
    return jax.lax.with_sharding_constraint(leaf, used)


def _gather_forward(leaf: Array, held: P, used: P) -> tuple[Array, None]:
    return _gather(leaf, held, used), None


def _gather_backward(held: P, used: P, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, held),)


_gather.defvjp(_gather_forward, _gather_backward)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())
