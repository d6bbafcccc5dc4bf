"""Features of a whole set, on every device, whatever its size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax.data.example import only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source, read_pair
from clip_jax.distributed import global_batch, sharding
from clip_jax.evaluation.zero_shot import ensemble
from clip_jax.models.clip import CLIP, assembled, normalize
from clip_jax.models.vit import VisionTransformer
from clip_jax.tokenizers import packing

Features = Float[np.ndarray, "n embed_dim"]
Advance = Callable[[int], object]

_AHEAD = 2  # batches that the devices are given before an answer is read


class Encoded(NamedTuple):
    """What a tower makes of pictures.

    features: of unit norm, what texts are compared with.
    pooled: before the projection, which a ViT has; of other towers their features. Linear probes
      look at these (appendix A.3 of the paper).
    """

    features: Features
    pooled: Float[np.ndarray, "n width"]


class Encoder:
    """The two towers of a model as compiled functions from arrays of any length to features.

    Rows are padded to full batches, encoded over the mesh, and cut back: a set of any size gives
    the same features on any number of devices, bit for bit where no axis of the mesh splits a
    layer, for each device always has as many rows.

    Args:
      graph, variables: a model's structure, and its parameters and batch statistics on `mesh`.
      mesh: the devices.
      batch_size: rows that each device takes at a time.
      pad_id: of the tokenizer, where the text tower is blind to padding: columns that no text
        reaches are then left out.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        variables: Any,
        mesh: Mesh,
        batch_size: int,
        pad_id: int | None = None,
    ) -> None:
        self.mesh = mesh
        self.graph, self._variables = graph, variables
        self._pad_id = pad_id
        self._rows = batch_size * sharding.batch_shards(mesh)
        self._own = global_batch.process_rows(mesh, self._rows)
        self._towers = {name: _tower(graph, name, mesh) for name in ("image", "pooled", "text")}

    def fingerprint(self) -> str:
        """What changes when a parameter does, the same on any mesh."""
        return fingerprint(self._variables)

    def _all(
        self, tower: str, batches: Iterable[tuple[Any, int]], total: int, advance: Advance
    ) -> Any:
        """What a tower makes of batches: each this process's rows, and how many of all count."""
        held: list[np.ndarray] = []
        waiting: list[tuple[Any, int]] = []
        done = 0

        def read() -> None:
            nonlocal done
            made, count = waiting.pop(0)
            parts = [np.asarray(part)[:count] for part in jax.tree.leaves(made)]
            if not held:
                held.extend(np.empty((total, *part.shape[1:]), part.dtype) for part in parts)
            for whole, part in zip(held, parts, strict=True):
                whole[done : done + count] = part
            done += count
            advance(count)

        for own, count in batches:
            array = global_batch.global_batch({"rows": own}, self.mesh)["rows"]
            waiting.append((self._towers[tower](self._variables, array), count))
            if len(waiting) == _AHEAD:
                read()
        while waiting:
            read()
        return held

    def _cut(self, total: int) -> Iterator[tuple[np.ndarray, int]]:
        """Of each batch the numbers that this process encodes, and how many of all count.

        What is missing from the last batch is its last number again.
        """
        for first in range(0, total, self._rows):
            yield np.minimum(first + self._own, total - 1), min(self._rows, total - first)

    def images(
        self,
        source: Source,
        preprocess: Preprocess,
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> Features:
        """Unit-norm features of every picture of a source, in its order.

        Each process decodes only the pictures that its devices encode, by `threads` at once (0: as
        many as it has processors). `advance` is told of every batch how many pictures it was.
        """
        batches = _pixels(source, preprocess, threads, self._cut(len(source)))
        return self._all("image", batches, len(source), advance)[0]

    def encoded(
        self,
        source: Source,
        preprocess: Preprocess,
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> Encoded:
        """As `images`, with what stands before the projection too, in the same pass."""
        batches = _pixels(source, preprocess, threads, self._cut(len(source)))
        return Encoded(*self._all("pooled", batches, len(source), advance))

    def tokens(self, tokens: np.ndarray) -> Features:
        """Unit-norm features of int32 [n, context]."""
        if self._pad_id is not None:
            tokens = packing.trim(tokens, pad_id=self._pad_id)
        cut = self._cut(len(tokens))
        batches = ((tokens[numbers], count) for numbers, count in cut)
        return self._all("text", batches, len(tokens), lambda _: None)[0]


def _pixels(
    source: Source, preprocess: Preprocess, threads: int, cut: Iterable[tuple[np.ndarray, int]]
) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of pixels; the next is being made while one is used."""

    def pixels(i: np.integer) -> np.ndarray:
        pair = read_pair(source, int(i))
        with only_pair_errors("picture", pair.name):
            return preprocess(decode(pair.image, pair.name))

    def stacked(made: tuple[Iterator[np.ndarray], np.ndarray, int]) -> tuple[np.ndarray, int]:
        images, where, count = made
        return np.stack(list(images))[where], count

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        before = None
        for numbers, count in cut:
            wanted, where = np.unique(numbers, return_inverse=True)
            after = pool.map(pixels, wanted), where, count
            if before:
                yield stacked(before)
            before = after
        if before:
            yield stacked(before)


def _image(model: CLIP, rows: jax.Array) -> jax.Array:
    return model.encode_image(rows, normalized=True)


def _pooled(model: CLIP, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    tower = model.vision
    if not isinstance(tower, VisionTransformer):
        features = tower(rows)
        return normalize(features), features.astype(jnp.float32)
    pooled = tower.pooled(rows)
    features = tower.projection(pooled) if tower.config.projection else pooled
    return normalize(features), pooled.astype(jnp.float32)


def _text(model: CLIP, rows: jax.Array) -> jax.Array:
    return model.encode_text(rows, normalized=True)


_MADE: dict[str, Callable[..., Any]] = {"image": _image, "pooled": _pooled, "text": _text}


@lru_cache(maxsize=16)
def _tower(graph: nnx.GraphDef, name: str, mesh: Mesh) -> Callable[..., Any]:
    """A tower as one function for all encoders: later parameters of a run compile nothing."""

    def encode(variables: Any, rows: jax.Array) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return _MADE[name](assembled(graph, variables), rows)

    return jax.jit(encode, out_shardings=sharding.replicated(mesh))


def classifier(
    encoder: Encoder,
    tokenize: Callable[..., np.ndarray],
    labels: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> Features:
    """A row of weights per label: its templates' features averaged and normalised again.

    Source: section 3.1.4, prompt ensembling. `templates` hold `{}` where the label goes; a label
    may have several names, whose texts are averaged all together.
    """
    names = [(label,) if isinstance(label, str) else tuple(label) for label in labels]
    texts = [t.replace("{}", name) for one in names for name in one for t in templates]
    features = encoder.tokens(tokenize(texts, truncate=True))
    return ensemble(features, [len(one) * len(templates) for one in names])


def fingerprint(variables: Any) -> str:
    """What changes when one of a tree's numbers does; the same on any mesh.

    Sums of integers that wrap around: no order of adding them matters, so that nothing need be
    gathered.
    """
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    said = [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), [int(n) for n in found])
        for (path, leaf), found in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(repr(said).encode()).hexdigest()


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[list[jax.Array]]:
    return [[_sum(leaf, seed) for seed in (0x9E3779B1, 0x85EBCA77)] for leaf in leaves]


def _sum(leaf: jax.Array, seed: int) -> jax.Array:
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, words).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        step = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        place = place * jnp.uint32(0xC2B2AE3D) + step + jnp.uint32(1)
    mixed = (bits ^ (place * jnp.uint32(seed))) * jnp.uint32(0x27D4EB2F)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(seed | 1)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
