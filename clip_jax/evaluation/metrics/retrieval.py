"""Retrieval between images and texts: recall at k, both ways (section 3.1, table 13).

Galleries of millions are processed in blocks on all devices. Similarities do not depend on blocks
or devices: features are rounded to a grid on which every product and every sum is exact in float64.
So equal items tie, and ranks do not depend on the order of a summation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from clip_jax.evaluation.metrics import scores

ROWS, BLOCK = 1024, 8192
_GROUP = 64  # neighbours whose maximum is compared first
KS = (1, 5, 10)
_BITS = 24  # of a feature, relative to the longest row; two of them and one more fit in float64
_NO_NUMBER = float(np.finfo(np.float64).min)  # for NaN: below all similarities
_NO_OWN = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Recalls:
    """Recall at 1, 5 and 10 in both directions.

    Attributes:
      images: the number of images.
      texts: the number of texts.
      image_to_text: the recalls `r1`, `r5` and `r10` of texts by images.
      text_to_image: the recalls `r1`, `r5` and `r10` of images by texts.
    """

    images: int
    texts: int
    image_to_text: dict[str, scores.Score]
    text_to_image: dict[str, scores.Score]


def recalls(
    image_features: Float[np.ndarray, "images d"],
    text_features: Float[np.ndarray, "texts d"],
    image_group: Int[np.ndarray, " images"],
    text_group: Int[np.ndarray, " texts"],
    rows: int = ROWS,
    block: int = BLOCK,
) -> Recalls:
    """Computes recall in both directions.

    A query is a hit at k when fewer than k items of other groups come before its first own one;
    images and texts of one group belong together. See `count_ahead` for `rows` and `block`.
    """
    image, text = (image_features, image_group), (text_features, text_group)

    def way(query: tuple[Any, Any], gallery: tuple[Any, Any]) -> dict[str, scores.Score]:
        rank = count_ahead(query[0], gallery[0], query[1], gallery[1], rows, block)
        return {f"r{k}": scores.share(rank < k) for k in KS}

    return Recalls(
        images=len(image_features),
        texts=len(text_features),
        image_to_text=way(image, text),
        text_to_image=way(text, image),
    )


def count_ahead(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    query_group: Int[np.ndarray, " q"],
    gallery_group: Int[np.ndarray, " g"],
    rows: int = ROWS,
    block: int = BLOCK,
) -> Int[np.ndarray, " q"]:
    """Returns how many items of other groups come before each query's nearest own item.

    Ties and NaN come before it. A query without an own item gets the largest integer. Each device
    computes the similarities of `rows` queries and `block` items at a time.
    """
    counts = np.full(len(query), _NO_OWN)
    known = np.isin(query_group, gallery_group)
    with _Blocks(query, gallery, rows, block) as blocks:
        for part, queries in blocks.queries():
            group = blocks.spread(query_group[part], len(queries.features))
            best = blocks.spread(np.full(0, 0.0), len(queries.features), -np.inf)
            for place, items in blocks.items():
                if np.isin(gallery_group[place], query_group[part]).any():
                    own = blocks.copied(gallery_group[place], len(items.features))
                    best = blocks.run(_best_own, best, queries, items, group, own)
            count = blocks.spread(np.zeros(0, np.int64), len(queries.features))
            for place, items in blocks.items():
                own = blocks.copied(gallery_group[place], len(items.features))
                count = blocks.run(_count, count, best, queries, items, group, own)
            counts[part] = np.where(known[part], blocks.host(count, part), _NO_OWN)
    return counts


def nearest(
    query: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    k: int,
    exclude: Int[np.ndarray, " q"] | None = None,
    rows: int = ROWS,
    block: int = BLOCK,
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """Returns the k nearest items of each query and their similarities, best first.

    Of equal items the earlier comes first. NaN is farther than everything else. A gallery of fewer
    than k items gives fewer columns.

    Args:
      exclude: an item for each query that is left out; -1 for none. If no other item is left for a
        column, its number is -1 and its similarity -inf.
      rows: see `count_ahead`.
      block: see `count_ahead`.
    """
    k = min(k, len(gallery))
    numbers, values = np.empty((len(query), k), np.int64), np.empty((len(query), k))
    excluded = np.full(len(query), -1) if exclude is None else exclude
    with _Blocks(query, gallery, rows, block) as blocks:
        for part, queries in blocks.queries():
            size = len(queries.features)
            excluded_rows = blocks.spread(excluded[part], size, -1)
            top = blocks.spread(np.full((0, k), 0.0), size, -np.inf)
            which = blocks.spread(np.full((0, k), 0), size, -1)
            for place, items in blocks.items():
                first = np.int64(place.start)
                top, which = blocks.run(_merge, top, which, queries, items, excluded_rows, first)
            best = blocks.host(top, part)
            numbers[part] = blocks.host(which, part)
            values[part] = np.where(best == _NO_NUMBER, np.nan, best) * blocks.unit
    return numbers, values


def arithmetic(
    image_feature: Float[np.ndarray, "*n d"],
    text_feature: Float[np.ndarray, "*n d"],
    weight: float = 2.0,
) -> Float[np.ndarray, "*n d"]:
    """Returns a unit-norm query for an image plus (with a negative weight, minus) a text.

    Source: ALIGN (Jia et al. 2021), section 5.4: normalise, image ± 2 × text, cosine search. Give
    `nearest` the image's own number as `exclude`.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    return unit(unit(image_feature) + weight * unit(text_feature)).astype(image_feature.dtype)


class _Rows(NamedTuple):
    """Features on the devices, the factor that scales them to the grid, and a mask of real rows."""

    features: Float[Array, "n d"]
    factor: Float[Array, ""]
    valid: Bool[Array, " n"]


class _Blocks:
    """Two sets of features as padded blocks: queries spread over all devices, items replicated.

    The lengths of blocks are powers of two, so that few shapes are compiled.
    """

    def __init__(self, query: np.ndarray, gallery: np.ndarray, rows: int, block: int) -> None:
        devices = np.array(jax.devices())
        mesh = Mesh(devices, ("rows",))
        self._query, self._gallery = query, gallery
        self._spread, self._copied = NamedSharding(mesh, P("rows")), NamedSharding(mesh, P())
        most = -(-len(query) // len(devices))
        self._rows = min(rows, _padded(most)) * len(devices)
        self._block = min(block, _padded(len(gallery)))
        self._factors = tuple(map(_factor, (query, gallery)))
        self.unit = 1 / (self._factors[0] * self._factors[1])

    def __enter__(self) -> _Blocks:
        self._wide = jax.enable_x64(True)
        self._wide.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._wide.__exit__(*error)

    def queries(self) -> Iterator[tuple[slice, _Rows]]:
        """Slices of the queries, each with its block."""
        for start in range(0, len(self._query), self._rows):
            part = slice(start, min(start + self._rows, len(self._query)))
            yield part, self._on(self._query[part], self._rows, 0, self.spread)

    def items(self) -> Iterator[tuple[slice, _Rows]]:
        """Slices of the gallery, each with its block."""
        for start in range(0, len(self._gallery), self._block):
            part = slice(start, min(start + self._block, len(self._gallery)))
            yield part, self._on(self._gallery[part], self._block, 1, self.copied)

    def _on(self, x: np.ndarray, size: int, side: int, place: Callable[..., Array]) -> _Rows:
        factor = self.copied(np.full(1, self._factors[side]), 1)
        return _Rows(place(x, size), factor[0], place(np.ones(len(x), bool), size, False))

    def spread(self, x: np.ndarray, size: int, fill: Any = 0) -> Array:
        """Returns an array with a row for each query of a block, spread over the devices."""
        return _placed(x, size, fill, self._spread)

    def copied(self, x: np.ndarray, size: int, fill: Any = 0) -> Array:
        """Returns an array replicated on every device."""
        return _placed(x, size, fill, self._copied)

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """Runs a compiled step on blocks of queries and items.

        Its results are spread as queries are.
        """
        return _compiled(step, self._spread)(*args)

    def host(self, x: Array, part: slice) -> np.ndarray:
        """Returns the rows of a block without padding, on every process."""
        return np.asarray(_compiled(_same, self._copied)(x))[: part.stop - part.start]


@lru_cache(maxsize=64)
def _compiled(step: Callable[..., Any], sharding: NamedSharding) -> Callable[..., Any]:
    return jax.jit(step, out_shardings=sharding)


def _same(x: Array) -> Array:
    return x


def _padded(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _placed(x: np.ndarray, size: int, fill: Any, sharding: NamedSharding) -> Array:
    """Returns an array padded to `size` rows and placed on devices.

    Every process has the full array, and places its devices' rows.
    """
    padded = np.full((size, *x.shape[1:]), fill, x.dtype)
    padded[: len(x)] = x
    return jax.make_array_from_callback(padded.shape, sharding, lambda index: padded[index])


def _factor(x: Float[np.ndarray, "n d"]) -> float:
    """Returns the power of two that scales the longest row to a length of at most 2 ** _BITS."""
    longest = 0.0
    for start in range(0, len(x), BLOCK):
        lengths = np.linalg.norm(x[start : start + BLOCK].astype(np.float64), axis=1)
        longest = max(longest, lengths[np.isfinite(lengths)].max(initial=0))
    # a unit length may be rounded up
    return 2.0 ** (_BITS - int(np.frexp(0.999 * longest)[1])) if longest else 1.0


def _similarity(queries: _Rows, items: _Rows) -> Float[Array, "q g"]:
    """Returns the exact dot products of rounded features.

    They are exact because no partial sum exceeds the product of both lengths. A row that is not all
    finite gives NaN.
    """

    def grid(rows: _Rows) -> Float[Array, "n d"]:
        x = jnp.rint(rows.features.astype(jnp.float64) * rows.factor)
        return jnp.where(jnp.isfinite(x), x, jnp.nan)

    return grid(queries) @ grid(items).T


def _best_own(best: Array, queries: _Rows, items: _Rows, group: Array, own: Array) -> Array:
    mine = (group[:, None] == own) & items.valid
    return jnp.maximum(best, jnp.where(mine, _similarity(queries, items), -jnp.inf).max(axis=1))


def _count(
    count: Array, best: Array, queries: _Rows, items: _Rows, group: Array, own: Array
) -> Array:
    before = ~(_similarity(queries, items) < best[:, None])
    return count + (before & (group[:, None] != own) & items.valid).sum(axis=1)


def _merge(
    top: Array, which: Array, queries: _Rows, items: _Rows, barred: Array, first: Array
) -> tuple[Array, Array]:
    """Returns the best of the previous items and of a block; of equal items the earlier."""
    similarity = _similarity(queries, items)
    numbers = first + jnp.arange(similarity.shape[1])
    allowed = items.valid & (numbers != barred[:, None])
    known = jnp.where(jnp.isnan(similarity), _NO_NUMBER, similarity)
    values = jnp.concatenate([top, jnp.where(allowed, known, -jnp.inf)], axis=1)
    names = jnp.where(allowed, numbers, -1)
    best, place = _top(values, top.shape[1])
    merged = jnp.take_along_axis(jnp.concatenate([which, names], axis=1), place, axis=1)
    return best, jnp.where(jnp.isneginf(best), -1, merged)


def _top(values: Float[Array, "q n"], k: int) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """The k largest values of each row and their columns, of equals the first; without a sort.

    They are in the k groups of neighbours with the largest maxima.
    """
    q, n = values.shape
    if n <= _GROUP * k:
        return _one_by_one(values, k)
    padded = jnp.pad(values, ((0, 0), (0, -n % _GROUP)), constant_values=-jnp.inf)
    groups = padded.reshape(q, -1, _GROUP)
    chosen = jnp.sort(_one_by_one(groups.max(axis=2), k)[1], axis=1)
    few = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(q, k * _GROUP)
    best, place = _one_by_one(few, k)
    group = jnp.take_along_axis(chosen, place // _GROUP, axis=1)
    return best, group * _GROUP + place % _GROUP


def _one_by_one(
    values: Float[Array, "q n"], k: int
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """The same by k searches, each for the value after the previous one."""
    n = values.shape[1]
    place = jnp.arange(n)

    def following(last: tuple[Array, Array], _: None) -> tuple[Any, Any]:
        value, where = (x[:, None] for x in last)
        left = (values < value) | ((values == value) & (place > where))
        best = jnp.where(left, values, -jnp.inf).max(axis=1)
        first = jnp.where(left & (values == best[:, None]), place, n).min(axis=1)
        return (best, first), (best, first)

    start = jnp.full(len(values), jnp.inf), jnp.full(len(values), -1)
    _, (best, where) = jax.lax.scan(following, start, None, length=k)
    return best.T, where.T
