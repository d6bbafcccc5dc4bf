"""The context of an evaluation: a model, and what evaluators ask of it, computed once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from clip_jax.config.schema import Evaluate
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost
from clip_jax.evaluation import report
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.datasets.dataset_loader import nothing_left_out
from clip_jax.evaluation.features import Encoded, Encoder, Features, classifier
from clip_jax.evaluation.result_cache import ResultCache, key_of
from clip_jax.evaluation.serialization import Thumbnail
from clip_jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    from clip_jax.evaluation.evaluators.protocol import Result

_ADDRESS = re.compile(" at 0x[0-9a-f]+")
_ENCODED_SPLITS = 4  # splits whose features stay in memory


class Advance:
    """Moves a progress bar: called with how much more is done."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, more: int) -> None:
        """Adds to what is done."""
        self._bar.update(more)

    def to(self, done: int, total: int) -> None:
        """Sets how much of all is done."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)


class EvalContext:
    """Features, classifiers and thumbnails for evaluators.

    Args:
      encoder: the model on its mesh.
      scale: the factor on its cosines.
      tokenizer, preprocess: of the model.
      options: `config.evaluate`.
      cache: what an earlier evaluation computed.
      datasets: all datasets of the evaluation, by name.
      results: what evaluators found so far: evaluator → dataset → result.
      training: the sources that the model was trained on.
      pooled: whether features before the projection are computed, too.
      detailed: the long form: prompts are compared, and features before the projection computed
        whether or not an evaluator asks for them.
      say: takes a line about progress.
    """

    def __init__(
        self,
        encoder: Encoder,
        scale: float,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        options: Evaluate,
        cache: ResultCache,
        *,
        datasets: Mapping[str, Dataset] = MappingProxyType({}),
        results: Mapping[str, Mapping[str, Result]] = MappingProxyType({}),
        training: Sequence[Source] = (),
        pooled: bool = False,
        detailed: bool = False,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.encoder, self.scale = encoder, scale
        self.tokenizer, self.preprocess = tokenizer, preprocess
        self.options, self.cache, self.detailed, self.say = options, cache, detailed, say
        self.datasets, self.results, self.training = datasets, results, training
        self._pooled = pooled or detailed
        self._encoded: dict[str, Encoded] = {}
        self._classifiers: dict[str, Features] = {}
        self._logits: tuple[str, np.ndarray] | None = None  # of the last dataset
        self.descriptors: dict[str, np.ndarray] = {}  # of training images, by cache key

    @functools.cached_property
    def model_key(self) -> str:
        """A digest of the parameters and of the way from a file to features."""
        # memory addresses of functions differ between processes
        graph = hashlib.sha256(_ADDRESS.sub("", repr(self.encoder.graph)).encode()).hexdigest()
        facts = [self.encoder.fingerprint(), graph, repr(self.preprocess), self._tokens, self.scale]
        return key_of(*facts)

    @functools.cached_property
    def _tokens(self) -> str:
        probe = self.tokenizer(["a photo of 2 cafés", "Straße 日本"], truncate=True)
        return hashlib.sha256(np.asarray(probe).tobytes()).hexdigest()

    def encode(self, name: str, source: Source) -> Encoded:
        """The features of a source's images; the progress bar shows `name`.

        Raises:
          UserError: an image cannot be used; without it the numbers were another dataset's.
        """
        key = key_of(self.model_key, source.fingerprint, len(source)) if self.cache else name
        if key not in self._encoded:
            encoded = self.cache.encoded(key, len(source))
            if encoded is None:
                with nothing_left_out(name), self.progress(name, len(source)) as advance:
                    if self._pooled:
                        encoded = self.encoder.encoded(source, self.preprocess, advance=advance)
                    else:
                        images = self.encoder.images(source, self.preprocess, advance=advance)
                        encoded = Encoded(images, images)
                self.cache.keep_encoded(key, encoded)
                # mapped from disk, out of memory
                encoded = self.cache.encoded(key, len(source)) or encoded
            while len(self._encoded) >= _ENCODED_SPLITS:
                self._encoded.pop(next(iter(self._encoded)))
            self._encoded[key] = encoded
        return self._encoded[key]

    @contextlib.contextmanager
    def progress(self, name: str, total: int, unit: str = " images") -> Iterator[Advance]:
        """A progress bar, shown on terminals in detailed evaluations."""
        quiet = not (self.detailed and multihost.is_first() and sys.stderr.isatty())
        with tqdm(
            total=total, desc=name, unit=unit, dynamic_ncols=True, leave=False, disable=quiet
        ) as bar:
            yield Advance(bar)

    def classifier(self, dataset: Dataset, templates: Sequence[str] = ()) -> Features:
        """A row of weights a class, see `features.classifier`; computed once for equal classes.

        templates: in place of the dataset's own.
        """
        names = [(label, *dataset.synonyms.get(label, ())) for label in dataset.labels]
        templates = templates or dataset.templates
        key = key_of(names, list(templates), self.model_key if self.cache else "")
        if key not in self._classifiers:
            weights = self.cache.classifier(key, len(names))
            if weights is None:
                weights = classifier(self.encoder, self.tokenizer, names, templates)
                self.cache.keep_classifier(key, weights)
            self._classifiers[key] = weights
        return self._classifiers[key]

    def logits(self, dataset: Dataset) -> np.ndarray:
        """The zero-shot logits of a dataset, [n, classes]; those of the last one are kept."""
        if self._logits is None or self._logits[0] != dataset.name:
            images = self.encode(dataset.name, dataset.source).features
            self._logits = dataset.name, self.scale * images @ self.classifier(dataset).T
        return self._logits[1]

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """The features of texts."""
        return self.encoder.tokens(self.tokenizer(list(texts), truncate=True))

    def image(self, source: Source, i: int) -> Image.Image:
        """The i-th image of a source."""
        pair = source[int(i)]
        return decode(pair.image, pair.name)

    def thumbnail(self, source: Source, i: int) -> Thumbnail:
        """A small copy of the i-th image of a source; empty on processes that write no report."""
        if not multihost.is_first():
            return Thumbnail(b"")
        return Thumbnail(report.thumbnail(self.image(source, i)))

    def choose(self, dataset: Dataset, count: int) -> list[int]:
        """The numbers of some random images of a dataset, the same ones every time."""
        count = min(count, len(dataset))
        return np.random.default_rng(0).choice(len(dataset), count, replace=False).tolist()
