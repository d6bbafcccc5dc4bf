"""Features of a whole set, on every device, whatever its size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax import partition
from clip_jax.data.images import decode
from clip_jax.data.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.evaluation.zero_shot import ensemble

Features = Float[np.ndarray, "n embed_dim"]


class Encoder:
    """The two towers of a model as compiled functions from arrays of any length to features.

    Rows are padded to full batches, encoded over the mesh, and cut back: a set of any size gives
    the same features on any number of devices, and each tower is compiled once. `variables` are a
    model's parameters and batch statistics.
    """

    def __init__(self, graph: nnx.GraphDef, variables: Any, mesh: Mesh, batch_size: int) -> None:
        self._variables = variables
        self._mesh = mesh
        shards = partition.batch_shards(mesh)
        self._rows = max(1, batch_size // shards) * shards
        self._image = _tower(graph, "encode_image", mesh)
        self._text = _tower(graph, "encode_text", mesh)

    def _all(self, tower: Callable[..., jax.Array], batches: Iterable[np.ndarray]) -> Features:
        parts = []
        sharding = partition.batch_sharding(self._mesh)
        for batch in batches:
            padded = np.concatenate([batch, np.repeat(batch[:1], self._rows - len(batch), axis=0)])
            array = jax.make_array_from_callback(padded.shape, sharding, padded.__getitem__)
            parts.append((tower(self._variables, array), len(batch)))
        return np.concatenate([np.asarray(features)[:n] for features, n in parts])

    def _cut(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        return (rows[i : i + self._rows] for i in range(0, len(rows), self._rows))

    def images(self, source: Source, preprocess: Preprocess, threads: int = 2) -> Features:
        """Unit-norm features of every picture of a source, in its order."""

        def pixels(i: int) -> np.ndarray:
            pair = source[i]
            return preprocess(decode(pair.image, pair.name))

        with ThreadPoolExecutor(threads) as pool:
            ranges = range(0, len(source), self._rows)
            chunks = (range(i, min(i + self._rows, len(source))) for i in ranges)
            return self._all(self._image, (np.stack(list(pool.map(pixels, c))) for c in chunks))

    def tokens(self, tokens: np.ndarray) -> Features:
        """Unit-norm features of int32 [n, context]."""
        return self._all(self._text, self._cut(tokens))


@lru_cache(maxsize=16)
def _tower(graph: nnx.GraphDef, name: str, mesh: Mesh) -> Callable[..., jax.Array]:
    """A tower as one function for all encoders: later parameters of a run compile nothing."""

    def encode(variables: Any, rows: jax.Array) -> jax.Array:
        return getattr(nnx.merge(graph, *variables), name)(rows, normalized=True)

    return jax.jit(encode, out_shardings=partition.replicated(mesh))


def classifier(
    encoder: Encoder,
    tokenize: Callable[..., np.ndarray],
    labels: Sequence[str],
    templates: Sequence[str],
) -> Features:
    """A row of weights per label: its templates' features averaged and normalised again.

    Source: section 3.1.4, prompt ensembling. `templates` hold `{}` where the label goes.
    """
    texts = [template.replace("{}", label) for label in labels for template in templates]
    return ensemble(encoder.tokens(tokenize(texts, truncate=True)), len(templates))
