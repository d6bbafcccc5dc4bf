"""Semantic duplicates: pairs whose images have nearly the same features.

Features are clustered, and within a cluster each pair is compared with all that come before it in
an order that says which of several duplicates is kept. SemDeDup (Abbas et al. 2023, "SemDeDup:
Data-efficient learning at web-scale through semantic deduplication") keeps the one that is farthest
from the centre of the cluster. Features stay on disk: memory holds the centres, 20 bytes of each
pair, and the features of some clusters at a time.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt64

from clip_jax.curation import hashing
from clip_jax.curation.duplicates.clustering import unit_norm
from clip_jax.curation.scores import feature_tables
from clip_jax.curation.scores.annotations import Annotations
from clip_jax.curation.scores.parquet_files import exists
from clip_jax.errors import UserError

KEEP = ("farthest", "nearest", "first", "random")  # of duplicates, the one that is kept
MAX_CLUSTERS = 1 << 24  # so that float32 holds their numbers
_TILE = 2048  # rows that are compared with as many at a time
_LEAST = 64  # rows of the smallest tile
_BUCKET = 1 << 28  # bytes of features in memory
_MAX_BUCKETS = 256  # files that are open at a time

Advance = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """The features of all pairs of an annotation folder, as a stream that can be read again.

    Attributes:
      annotations: the folder, which `curate score --features` wrote.
      width: the number of features of an image.
    """

    annotations: Annotations
    width: int

    @classmethod
    def open(cls, annotations: Annotations) -> StoredRows:
        """Checks that the folder has features.

        Raises:
          UserError: it has none.
        """
        paths = [feature_tables.path_of(annotations.folder, x.table) for x in annotations.files]
        if missing := [path for path in paths if not exists(path)]:
            raise UserError(
                f"{missing[0]} is missing: features are stored by `curate score --features`"
            )
        return cls(annotations, feature_tables.width_of(paths[0]))

    def __len__(self) -> int:
        return sum(entry.pairs for entry in self.annotations.files)

    def __iter__(self) -> Iterator[np.ndarray]:
        for entry in self.annotations.files:
            path = feature_tables.path_of(self.annotations.folder, entry.table)
            yield from feature_tables.read(path, entry.pairs, self.width)


@jax.jit
def _compare(
    rows: Float[Array, "rows width"],
    others: Float[Array, "others width"],
    first: Int[Array, ""],
    first_other: Int[Array, ""],
) -> Float[Array, " rows"]:
    """Returns the largest similarity of each row to one of the others that comes before it."""
    similarity = jnp.dot(rows, others.T, precision=jax.lax.Precision.HIGHEST)
    places = first + jnp.arange(len(rows))
    before = (first_other + jnp.arange(len(others)))[None, :] < places[:, None]
    return jnp.max(jnp.where(before, similarity, -1.0), axis=1)


def similarity_to_earlier(
    rows: Float[np.ndarray, "n width"], device: jax.Device | None = None
) -> list[jax.Array]:
    """Starts to compute the largest similarity of each row to an earlier one; -1 for the first.

    Rows are compared in tiles of few sizes, so that little is compiled.

    Args:
      rows: unit-norm rows in order.
      device: the device; None: the first.

    Returns:
      Consecutive parts of float32 [n], which are followed by padding.
    """
    tile = min(_TILE, max(_LEAST, 1 << (len(rows) - 1).bit_length()))
    blocks = []
    for start in range(0, len(rows), tile):
        block = np.zeros((tile, rows.shape[1]), np.float32)
        part = rows[start : start + tile]
        block[: len(part)] = part
        blocks.append(jax.device_put(block, device or jax.local_devices()[0]))
    parts = []
    for i, block in enumerate(blocks):
        best = jnp.full(tile, -1.0, device=block.device)
        for j, other in enumerate(blocks[: i + 1]):
            best = jnp.maximum(best, _compare(block, other, np.int32(i * tile), np.int32(j * tile)))
        parts.append(best)
    return parts


def ranks(
    similarity: Float[np.ndarray, " n"], numbers: Int[np.ndarray, " n"], keep: str, seed: int
) -> Float[np.ndarray, " n"] | UInt64[np.ndarray, " n"]:
    """Returns what pairs of a cluster are sorted by: the first of duplicates is kept.

    Args:
      similarity: to the centre of the cluster.
      numbers: the numbers of the pairs.
      keep: one of `KEEP`.
      seed: of the random order.
    """
    if keep == "random":
        return hashing.combine(np.uint64(seed), numbers.astype(np.uint64))
    if keep == "first":
        return numbers.astype(np.uint64)
    return similarity if keep == "farthest" else -similarity


class Buckets:
    """Files that hold the features of consecutive clusters, in the order of the data.

    Args:
      folder: the folder of the files, which is replaced.
      rows: the features of all pairs.
      cluster: int32 [pairs], the cluster of each pair; -1: it has no features.
      clusters: the number of clusters.
      size: bytes of the features of a file, where a single cluster has no more.
    """

    def __init__(
        self,
        folder: Path,
        rows: StoredRows,
        cluster: Int[np.ndarray, " pairs"],
        clusters: int,
        size: int = _BUCKET,
    ) -> None:
        self._folder, self._rows, self._cluster = folder, rows, cluster
        sizes = np.bincount(cluster[cluster >= 0], minlength=clusters) * rows.width * 2
        size = max(size, int(sizes.sum()) // _MAX_BUCKETS)
        # a cluster is in the bucket of the place where it ends
        self._bucket = (np.maximum(np.cumsum(sizes), 1) - 1) // size
        self._bucket = np.unique(self._bucket, return_inverse=True)[1].astype(np.int32)

    def __len__(self) -> int:
        return int(self._bucket[-1]) + 1

    def fill(self, advance: Advance = lambda _: None) -> None:
        """Writes the files in one pass over the features."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        files = [open(self._path(number), "wb") for number in range(len(self))]  # noqa: SIM115
        try:
            start = 0
            for part in self._rows:
                cluster = self._cluster[start : start + len(part)]
                bucket = np.where(cluster >= 0, self._bucket[cluster], -1)
                for number in np.unique(bucket[bucket >= 0]).tolist():
                    files[number].write(part[bucket == number].tobytes())
                start += len(part)
                advance(len(part))
        finally:
            for file in files:
                file.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.float16"

    def read(self, number: int) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
        """Returns the numbers of the pairs of a bucket, rising, and their features as float16."""
        inside = self._cluster >= 0
        inside &= self._bucket[np.maximum(self._cluster, 0)] == number
        content = np.fromfile(self._path(number), np.float16)
        return np.flatnonzero(inside), content.reshape(-1, self._rows.width)

    def remove(self) -> None:
        """Removes the files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def similarities(
    buckets: Buckets,
    cluster: Int[np.ndarray, " pairs"],
    similarity: Float[np.ndarray, " pairs"],
    keep: str,
    seed: int,
    advance: Advance = lambda _: None,
) -> Float[np.ndarray, " pairs"]:
    """Returns the largest similarity of each pair to one of its cluster that is before it.

    Args:
      buckets: the features, written.
      cluster: the cluster of each pair; -1: it has no features.
      similarity: of each pair to the centre of its cluster.
      keep: one of `KEEP`: the order of the pairs of a cluster.
      seed: of the random order.
      advance: called with the number of pairs of each cluster.

    Returns:
      float32 [pairs]: -1 for the first pair of a cluster, NaN for pairs without features.
    """
    result = np.full(len(cluster), np.nan, np.float32)
    devices, turn = jax.local_devices(), 0
    pending: deque[tuple[np.ndarray, list[jax.Array]]] = deque()

    def collect() -> None:
        pairs, parts = pending.popleft()
        values = np.concatenate([np.asarray(part) for part in parts])[: len(pairs)]
        result[pairs] = np.clip(values, -1, 1)
        advance(len(pairs))

    for bucket in range(len(buckets)):
        for numbers, rows in _clusters(buckets, bucket, cluster, similarity, keep, seed):
            turn = (turn + 1) % len(devices)
            pending.append((numbers, similarity_to_earlier(rows, devices[turn])))
            if len(pending) > 2 * len(devices):
                collect()
    while pending:
        collect()
    return result


def _clusters(
    buckets: Buckets,
    bucket: int,
    cluster: Int[np.ndarray, " pairs"],
    similarity: Float[np.ndarray, " pairs"],
    keep: str,
    seed: int,
) -> Iterator[tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n width"]]]:
    """Yields the numbers of the pairs of each cluster of a bucket, in order, and their features.

    The features of a bucket are released at the end.
    """
    numbers, rows = buckets.read(bucket)
    rank = ranks(similarity[numbers], numbers, keep, seed)
    order = np.lexsort((numbers, rank, cluster[numbers]))
    ends = np.flatnonzero(np.diff(cluster[numbers[order]])) + 1
    for members in np.split(order, ends):
        yield numbers[members], unit_norm(rows[members])
