"""Features of datasets of any size, computed on all devices."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clip_jax.data.example import only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source, read_pair
from clip_jax.distributed import global_batch, sharding
from clip_jax.evaluation import programs
from clip_jax.evaluation.metrics.zero_shot import ensemble
from clip_jax.losses import caption_losses
from clip_jax.models.generation import Generation
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.scoring import Prompts
from clip_jax.tokenizers import packing

Features = Float[np.ndarray, "n embed_dim"]
Advance = Callable[[int], object]
PixelsOf = Callable[[int], np.ndarray]  # uint8 [size, size, 3], by the number of an image

_AHEAD = 2  # batches in flight before a result is read


class Encoded(NamedTuple):
    """The outputs of the image tower.

    Attributes:
      features: unit-norm features, to be compared with those of texts.
      pooled: features before a ViT's projection, the unnormalised features of other towers. Linear
        probes use these (appendix A.3 of the paper).
    """

    features: Features
    pooled: Float[np.ndarray, "n width"]


class Encoder:
    """The two towers of a model, compiled to encode any number of rows.

    Rows are padded to full batches, encoded over the mesh, and cut back. Each device always encodes
    the same number of rows, so that features are equal on any number of devices, bit for bit unless
    an axis of the mesh splits layers.

    Args:
      graph: the model's structure.
      variables: the model's parameters and batch statistics, on `mesh`.
      mesh: the devices.
      batch_size: rows that each device encodes at a time.
      pad_id: the id of the tokenizer's padding, if the text tower ignores padding; columns that
        contain only padding are then left out.

    Attributes:
      rows: the number of rows that all devices encode at a time.
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
        self.rows = batch_size * sharding.batch_shards(mesh)
        self._process_rows = global_batch.process_rows(mesh, self.rows)
        self._programs = {name: programs.compiled(graph, name, mesh) for name in programs.PROGRAMS}

    def fingerprint(self) -> str:
        """Returns a digest of the parameters, the same on any mesh."""
        return fingerprint(self._variables)

    def logit_bias(self) -> float | None:
        """Returns the bias that the model adds to its logits; None for a model without one."""
        model = nnx.merge(self.graph, *self._variables)
        return None if model.config.logit_bias is None else float(model.logit_bias[...])

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes of the model's classifier; empty without a classifier."""
        return self.config.labels

    def class_logits(self, features: Features) -> Float[np.ndarray, "n classes"]:
        """Returns the logits of the model's classifier for unit-norm features of images."""
        numbers = self._batches(len(features))
        batches = ((features[rows], count) for rows, count in numbers)
        return self._encode("classes", batches, len(features), lambda _: None)[0]

    def _encode(
        self,
        program: str,
        batches: Iterable[tuple[Any, int]],
        total: int,
        advance: Advance,
        *more: Any,
    ) -> list[np.ndarray]:
        """Returns the outputs of a program.

        Args:
          program: a key of `programs.PROGRAMS`.
          batches: this process's rows of each batch, one array or several by name, and how many
            rows of the batch are not padding.
          total: the number of rows of all batches.
          advance: called with the number of rows of each finished batch.
          more: what the program takes beside the rows, equal for all batches.
        """
        placed = jax.device_put(more, sharding.replicated(self.mesh))
        outputs: list[np.ndarray] = []
        pending: list[tuple[Any, int]] = []
        done = 0

        def collect_oldest() -> None:
            nonlocal done
            output, count = pending.pop(0)
            parts = [np.asarray(part)[:count] for part in jax.tree.leaves(output)]
            if not outputs:
                outputs.extend(np.empty((total, *part.shape[1:]), part.dtype) for part in parts)
            for array, part in zip(outputs, parts, strict=True):
                array[done : done + count] = part
            done += count
            advance(count)

        for rows, count in batches:
            if isinstance(rows, dict):
                batch: Any = global_batch.global_batch(rows, self.mesh)
            else:
                batch = global_batch.global_batch({"rows": rows}, self.mesh)["rows"]
            pending.append((self._programs[program](self._variables, batch, *placed), count))
            if len(pending) == _AHEAD:
                collect_oldest()
        while pending:
            collect_oldest()
        return outputs

    def _batches(self, total: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yields the row numbers of each batch that this process encodes, and its row count.

        The row count is that of the whole batch. The last batch is padded with its last row.
        """
        for first in range(0, total, self.rows):
            yield np.minimum(first + self._process_rows, total - 1), min(self.rows, total - first)

    def _images(
        self, source: Source, preprocess: Preprocess, threads: int
    ) -> Iterator[tuple[np.ndarray, int]]:
        """Yields batches of the pixels of all images of a source, see `_encode`."""
        return _stacked(_reader(source, preprocess), threads, self._batches(len(source)))

    def images(
        self,
        source: Source,
        preprocess: Preprocess,
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> Features:
        """Returns the unit-norm features of all images of a source, in order.

        Each process decodes only the images that its devices encode.

        Args:
          source: the images.
          preprocess: the preprocessing of the model.
          threads: the number of threads that decode; 0: one per processor.
          advance: called with the number of images of each finished batch.
        """
        return self.pixels(len(source), _reader(source, preprocess), threads, advance)

    def pixels(
        self,
        total: int,
        pixels: PixelsOf,
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> Features:
        """Returns the unit-norm features of `total` images, in order.

        Args:
          total: the number of images.
          pixels: returns the pixels of an image by its number; called in threads, and only for the
            images that this process encodes.
          threads: as for `images`.
          advance: as for `images`.
        """
        batches = _stacked(pixels, threads, self._batches(total))
        return self._encode("image", batches, total, advance)[0]

    def encoded(
        self,
        source: Source,
        preprocess: Preprocess,
        threads: int = 0,
        advance: Advance = lambda _: None,
        *,
        places: bool = False,
    ) -> Encoded:
        """Returns the features of `images` and those before the projection, from the same pass.

        With `places` the latter are the mean of the features of each image's places.
        """
        batches = self._images(source, preprocess, threads)
        program = "places" if places else "pooled"
        return Encoded(*self._encode(program, batches, len(source), advance))

    def label_scores(
        self,
        source: Source,
        preprocess: Preprocess,
        prompts: Prompts,
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> Float[np.ndarray, "n labels"]:
        """Returns the score of each label for each image, by the head that `scoring_head` names.

        Args:
          source: the images.
          preprocess: the preprocessing of the model.
          prompts: the prompts of the labels.
          threads: as for `images`.
          advance: as for `images`.
        """
        batches = self._images(source, preprocess, threads)
        return self._encode("label_scores", batches, len(source), advance, prompts)[0]

    def captions(
        self,
        source: Source,
        preprocess: Preprocess,
        options: Generation,
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> Int[np.ndarray, "n tokens"]:
        """Returns the tokens of a caption for each image, written by the model's decoder.

        Args:
          source: the images.
          preprocess: the preprocessing of the model.
          options: how captions are written.
          threads: as for `images`.
          advance: as for `images`.
        """
        batches = self._images(source, preprocess, threads)
        return self._encode("captions", batches, len(source), advance, programs.Static(options))[0]

    def caption_losses(
        self,
        source: Source,
        preprocess: Preprocess,
        images: Int[np.ndarray, " pairs"],
        captions: Mapping[str, np.ndarray],
        threads: int = 0,
        advance: Advance = lambda _: None,
    ) -> dict[str, Float[np.ndarray, " pairs"]]:
        """Returns the losses of captions by the model's heads, see `caption_losses`.

        Args:
          source: the images.
          preprocess: the preprocessing of the model.
          images: the number of the image of each caption.
          captions: the captions as `tokens` and `span`.
          threads: as for `images`.
          advance: as for `images`.
        """
        numbers = list(self._batches(len(images)))
        where = ((images[rows], count) for rows, count in numbers)
        stacked = _stacked(_reader(source, preprocess), threads, where)
        batches = (
            ({"image": pixels, **{name: part[rows] for name, part in captions.items()}}, count)
            for (pixels, count), (rows, _) in zip(stacked, numbers, strict=True)
        )
        losses = self._encode("caption_losses", batches, len(images), advance)
        heads = [head for head, _ in self.config.heads]
        return dict(zip(caption_losses.names(heads), losses, strict=True))

    @functools.cached_property
    def config(self) -> CLIPConfig:
        """The architecture of the model."""
        config: CLIPConfig = nnx.merge(self.graph, *self._variables).config
        return config

    def tokens(self, tokens: np.ndarray) -> Features:
        """Returns the unit-norm features of texts, given their tokens, int32 [n, context]."""
        if self._pad_id is not None:
            tokens = packing.trim(tokens, pad_id=self._pad_id)
        numbers = self._batches(len(tokens))
        batches = ((tokens[rows], count) for rows, count in numbers)
        return self._encode("text", batches, len(tokens), lambda _: None)[0]


def _reader(source: Source, preprocess: Preprocess) -> PixelsOf:
    def pixels(i: int) -> np.ndarray:
        pair = read_pair(source, i)
        with only_pair_errors("picture", pair.name):
            return preprocess(decode(pair.image, pair.name))

    return pixels


def _stacked(
    pixels: PixelsOf, threads: int, numbers: Iterable[tuple[np.ndarray, int]]
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of pixels; one is used while the next is decoded."""

    def stack(decoded: tuple[Iterator[np.ndarray], np.ndarray, int]) -> tuple[np.ndarray, int]:
        images, where, count = decoded
        return np.stack(list(images))[where], count

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        previous = None
        for rows, count in numbers:
            distinct, where = np.unique(rows, return_inverse=True)
            current = pool.map(pixels, distinct.tolist()), where, count
            if previous:
                yield stack(previous)
            previous = current
        if previous:
            yield stack(previous)


def classifier(
    encoder: Encoder,
    tokenize: Callable[..., np.ndarray],
    labels: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> Features:
    """Returns the weights of a zero-shot classifier, one row of unit norm per label.

    A row is the normalised average of the features of the label's prompts.

    Source: section 3.1.4, prompt ensembling.

    Args:
      encoder: the model.
      tokenize: the tokenizer of the model.
      labels: a label may have several names, whose prompts are averaged together.
      templates: prompts with `{}` for a name.
    """
    synonyms = [(label,) if isinstance(label, str) else tuple(label) for label in labels]
    texts = [t.replace("{}", name) for names in synonyms for name in names for t in templates]
    features = encoder.tokens(tokenize(texts, truncate=True))
    return ensemble(features, [len(names) * len(templates) for names in synonyms])


def fingerprint(variables: Any) -> str:
    """Returns a digest of the values in a tree of arrays, the same on any mesh.

    It is made of integer sums that wrap around. Their order does not matter, so that nothing is
    gathered.
    """
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    facts = [
        (jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype), [int(n) for n in leaf_sums])
        for (path, leaf), leaf_sums in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


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
