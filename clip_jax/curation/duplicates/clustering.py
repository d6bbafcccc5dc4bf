"""Spherical k-means on unit-norm features of any number, streamed from disk to all devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float16, Int

from clip_jax.distributed import global_batch, sharding

_ELEMENTS = 1 << 26  # similarities of a batch on a device
_MAX_ROWS = 1 << 12  # of a batch on a device
_EXACT = jax.lax.Precision.HIGHEST

Centres = Float[np.ndarray, "clusters width"]
Parts = Iterable[Float16[np.ndarray, "rows width"]]


class Batch(NamedTuple):
    """Rows in the order of the data, padded to a fixed number.

    Attributes:
      rows: float32 [size, width], unit-norm; zero where a row has no features or is padding.
      valid: bool [size], whether a row has features.
      start: the number of the first row.
      filled: the number of rows that are no padding.
    """

    rows: np.ndarray
    valid: np.ndarray
    start: int
    filled: int


def unit_norm(rows: np.ndarray) -> Float[np.ndarray, "rows width"]:
    """Returns float32 rows of norm one; zero for rows that are zero or not finite."""
    rows = rows.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: np.ndarray = np.where(np.isfinite(norms) & (norms > 0), rows / norms, 0)
    return unit.astype(np.float32)


def batches(parts: Parts, size: int) -> Iterator[Batch]:
    """Yields all rows of a stream in batches of one size; the last is padded.

    Args:
      parts: consecutive rows, in parts of any size.
      size: the number of rows of a batch.
    """
    start, waiting, count = 0, list[np.ndarray](), 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        while count >= size:
            rows = np.concatenate(waiting)
            waiting, count = [rows[size:]], count - size
            yield _batch(rows[:size], size, start)
            start += size
    if count:
        yield _batch(np.concatenate(waiting), size, start)


def _batch(part: np.ndarray, size: int, start: int) -> Batch:
    rows = np.zeros((size, part.shape[1]), np.float32)
    rows[: len(part)] = unit_norm(part)
    return Batch(rows, np.any(rows, axis=1), start, len(part))


@jax.jit
def _nearest(
    centres: Float[Array, "clusters width"], rows: Float[Array, "rows width"]
) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
    similarity = jnp.dot(rows, centres.T, precision=_EXACT)
    return jnp.argmax(similarity, axis=1).astype(jnp.int32), jnp.max(similarity, axis=1)


@jax.jit
def _accumulate(
    centres: Array, sums: Array, counts: Array, rows: Array, valid: Array
) -> tuple[Array, Array, Array]:
    """Adds rows to the sums of their clusters; returns also the sum of their similarities."""
    numbers, similarity = _nearest(centres, rows)
    sums = sums + jax.ops.segment_sum(rows, numbers, len(centres))
    counts = counts + jax.ops.segment_sum(valid.astype(jnp.int32), numbers, len(centres))
    return sums, counts, jnp.sum(jnp.where(valid, similarity, 0))


class KMeans:
    """K-means by cosine: each pass over the data moves centres to the mean of their rows.

    A pass needs the memory of the centres and of one batch. A centre without rows stays.

    Args:
      clusters: the number of centres.
      devices: the devices that share each batch; None: all of this host.
    """

    def __init__(self, clusters: int, devices: list[jax.Device] | None = None) -> None:
        self._mesh: Mesh = sharding.make_mesh({"data": -1}, devices or jax.local_devices())
        rows = min(_MAX_ROWS, max(64, _ELEMENTS // clusters))
        self.size = rows * sharding.batch_shards(self._mesh)

    def _placed(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        parts = global_batch.global_batch({"rows": batch.rows, "valid": batch.valid}, self._mesh)
        return parts["rows"], parts["valid"]

    def move(
        self, centres: Centres, parts: Parts, advance: Callable[[int], object] = lambda _: None
    ) -> tuple[Centres, float]:
        """Makes one pass over the data.

        Args:
          centres: unit-norm centres.
          parts: all rows.
          advance: called with the number of rows of each batch.

        Returns:
          The new centres, and the mean similarity of rows to the old ones.
        """
        placed = jax.device_put(centres, sharding.replicated(self._mesh))
        sums = jnp.zeros_like(placed)
        counts = jax.device_put(np.zeros(len(centres), np.int32), placed.sharding)
        similarity, total = 0.0, 0
        for batch in batches(parts, self.size):
            sums, counts, more = _accumulate(placed, sums, counts, *self._placed(batch))
            similarity, total = similarity + float(more), total + int(batch.valid.sum())
            advance(batch.filled)
        means = unit_norm(np.asarray(sums))
        moved = np.where(np.asarray(counts)[:, None] > 0, means, centres)
        return moved.astype(np.float32), similarity / max(total, 1)

    def assign(
        self, centres: Centres, parts: Parts, advance: Callable[[int], object] = lambda _: None
    ) -> Iterator[tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]]:
        """Yields for consecutive rows the nearest centre and the similarity to it.

        The centre of a row without features is -1.

        Args:
          centres: unit-norm centres.
          parts: all rows.
          advance: called with the number of rows of each batch.
        """
        placed = jax.device_put(centres, sharding.replicated(self._mesh))
        for batch in batches(parts, self.size):
            numbers, similarity = _nearest(placed, self._placed(batch)[0])
            chosen = np.where(batch.valid, np.asarray(numbers), -1)[: batch.filled]
            advance(batch.filled)
            yield chosen.astype(np.int32), np.asarray(similarity)[: batch.filled]


def initial_centres(parts: Parts, valid: Int[np.ndarray, " n"], count: int, seed: int) -> Centres:
    """Returns different random rows as the first centres.

    Args:
      parts: all rows.
      valid: the numbers of the rows that have features.
      count: the number of centres, at most that of rows with features.
      seed: the seed of the choice.
    """
    chosen = np.sort(np.random.default_rng(seed).choice(valid, count, replace=False))
    centres, start = [], 0
    for part in parts:
        first, last = np.searchsorted(chosen, (start, start + len(part)))
        centres.append(unit_norm(part[chosen[first:last] - start]))
        start += len(part)
    return np.concatenate(centres)
