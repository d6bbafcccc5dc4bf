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

from clip_jax import partition, rows
from clip_jax.data.images import decode
from clip_jax.data.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.evaluation.zero_shot import ensemble
from clip_jax.models.clip import assembled

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

    def _all(self, tower: Callable[..., jax.Array], batches: Iterable[tuple[Any, int]]) -> Features:
        """The features of batches, of each this process's rows and how many of all count."""
        parts = []
        for own, count in batches:
            array = rows.global_batch({"rows": own}, self._mesh)["rows"]
            parts.append((tower(self._variables, array), count))
        return np.concatenate([np.asarray(features)[:n] for features, n in parts])

    def _cut(self, total: int) -> Iterator[tuple[np.ndarray, int]]:
        """Of each full batch the numbers that this process encodes, and how many of all count.

        What is missing from the last batch is its last number again.
        """
        own = rows.process_rows(self._mesh, self._rows)
        for first in range(0, total, self._rows):
            yield np.minimum(first + own, total - 1), min(self._rows, total - first)

    def images(self, source: Source, preprocess: Preprocess, threads: int = 2) -> Features:
        """Unit-norm features of every picture of a source, in its order.

        Each process decodes only the pictures that its devices encode.
        """

        def pixels(i: int) -> np.ndarray:
            pair = source[int(i)]
            return preprocess(decode(pair.image, pair.name))

        def batches(pool: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, int]]:
            for numbers, count in self._cut(len(source)):
                wanted, where = np.unique(numbers, return_inverse=True)
                yield np.stack(list(pool.map(pixels, wanted)))[where], count

        with ThreadPoolExecutor(threads) as pool:
            return self._all(self._image, batches(pool))

    def tokens(self, tokens: np.ndarray) -> Features:
        """Unit-norm features of int32 [n, context]."""
        cut = self._cut(len(tokens))
        return self._all(self._text, ((tokens[numbers], count) for numbers, count in cut))


@lru_cache(maxsize=16)
def _tower(graph: nnx.GraphDef, name: str, mesh: Mesh) -> Callable[..., jax.Array]:
    """A tower as one function for all encoders: later parameters of a run compile nothing."""

    def encode(variables: Any, rows: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return getattr(assembled(graph, variables), name)(rows, normalized=True)

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
