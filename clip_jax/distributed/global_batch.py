"""Makes global arrays from the rows of a batch that each process has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from clip_jax.distributed import sharding


def process_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """Returns which rows of the global batch are on this process's devices, in order.

    The positions depend only on the mesh. Its devices need not be sorted by process. Processes
    whose devices share rows, as along a tensor axis, have the same positions.
    """
    return np.flatnonzero(_is_local(mesh, batch_size))


def _is_local(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns true for the rows of the global batch that are on this process's devices."""
    is_local = np.zeros(batch_size, bool)
    pieces = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    for piece in pieces.values():
        is_local[piece] = True
    return is_local


def global_batch(rows: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes the global arrays of a batch, without communication.

    Args:
      rows: arrays [rows, …] of this process, in the order of `process_rows`.
      mesh: the mesh.
    """
    layout = sharding.batch_sharding(mesh)
    shards = sharding.batch_shards(mesh)
    own = len(process_rows(mesh, shards))

    def make_global(local: np.ndarray) -> jax.Array:
        size = len(local) * shards // own
        first = np.cumsum(_is_local(mesh, size)) - 1  # the index of a position in `local`

        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return local[first[start] : first[stop - 1] + 1]

        return jax.make_array_from_callback((size, *local.shape[1:]), layout, piece)

    return {name: make_global(local) for name, local in rows.items()}
