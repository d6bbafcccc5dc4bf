"""Which rows of the global batch a process makes, and the global arrays made of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from clip_jax.distributed import sharding


def process_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The positions in the global batch that this process's devices hold, in order.

    They follow from the mesh alone: its devices need not be sorted by process, and processes
    whose devices share rows, as along a tensor axis, each make the same ones.
    """
    return np.flatnonzero(_held(mesh, batch_size))


def _held(mesh: Mesh, batch_size: int) -> np.ndarray:
    held = np.zeros(batch_size, bool)
    pieces = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    for piece in pieces.values():
        held[piece] = True
    return held


def global_batch(rows: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The global arrays, of which this process gives the rows that `process_rows` names.

    rows: arrays [rows, …]. Nothing is sent from one process to another.
    """
    layout = sharding.batch_sharding(mesh)
    shards = sharding.batch_shards(mesh)
    own = len(process_rows(mesh, shards))

    def whole(local: np.ndarray) -> jax.Array:
        size = len(local) * shards // own
        first = np.cumsum(_held(mesh, size)) - 1  # where a position stands among the rows

        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return local[first[start] : first[stop - 1] + 1]

        return jax.make_array_from_callback((size, *local.shape[1:]), layout, piece)

    return {name: whole(local) for name, local in rows.items()}
