"""Where arrays live: the mesh, and one table from parameter names to its axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

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
    (r"token_embedding/embedding", P("tensor", "fsdp")),
    (r"patch_embedding/kernel", P(None, "fsdp")),
    (r"positional_embedding", P(None, "fsdp")),
    (r"projection/kernel", P("fsdp", "tensor")),
    (r"depthwise/kernel", P()),
    (r"kernel", P("fsdp", None)),
    (r".*", P()),
)


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
            f"config.mesh ({given}) does not cover the {len(devices)} devices: the three must "
            "multiply to that number, or one of them be -1"
        )
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The rule for a parameter; an axis that does not divide its dimension is left out."""
    spec = next(spec for pattern, spec in RULES if re.search(f"(^|/){pattern}$", path))
    if len(spec) > len(shape):
        return P()
    axes = (*(None,) * (len(shape) - len(spec)), *spec) if spec else ()
    fits = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, shape, strict=False))
    return P(*fits)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for every leaf of a state (arrays or shapes), by `RULES`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(_path(path), leaf.shape, mesh)), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def global_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as part of the global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
