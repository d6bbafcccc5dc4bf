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
from clip_jax.errors import counted
from clip_jax.evaluation import report
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.datasets.dataset_loader import nothing_left_out
from clip_jax.evaluation.features import Encoded, Encoder, Features, classifier
from clip_jax.evaluation.result_cache import ResultCache, key_of
from clip_jax.evaluation.serialization import Thumbnail
from clip_jax.inference.prompts import count_equal, label_prompts
from clip_jax.models.scoring import scoring_head
from clip_jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    from clip_jax.evaluation.evaluators.protocol import Result

_ADDRESS = re.compile(" at 0x[0-9a-f]+")
_ENCODED_SPLITS = 4  # splits whose features stay in memory


class Advance:
    """A function that advances a progress bar, by steps or to a count."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, more: int) -> None:
        """Advances the bar by `more` items."""
        self._bar.update(more)

    def to(self, done: int, total: int) -> None:
        """Sets the number of finished items and the total."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)


class EvalContext:
    """The features, classifiers and thumbnails that evaluators use, each computed once.

    Args:
      encoder: the model on its mesh.
      scale: the factor on the model's cosines.
      tokenizer: the tokenizer of the model.
      preprocess: the preprocessing of the model.
      options: `config.evaluate`.
      cache: the results and features of earlier evaluations.
      datasets: all datasets of the evaluation, by name.
      results: the results of the evaluators that ran already: evaluator → dataset → result.
      training: the sources that the model was trained on.
      pooled: whether features before the projection are computed, too.
      detailed: whether prompts are compared. Features before the projection are then computed
        whether or not an evaluator asks for them.
      untrained: the towers of the model that have random values.
      places: whether the mean of the features of places is given in place of pooled features.
      say: a function that takes a line about progress.
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
        untrained: Sequence[str] = (),
        places: bool = False,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.encoder, self.scale = encoder, scale
        self.tokenizer, self.preprocess = tokenizer, preprocess
        self.options, self.cache, self.detailed, self.say = options, cache, detailed, say
        self.datasets, self.results, self.training = datasets, results, training
        self.untrained, self._places = untrained, places
        self._pooled = pooled or detailed
        self._encoded: dict[str, Encoded] = {}
        self._classifiers: dict[str, Features] = {}
        self._logits: tuple[str, np.ndarray] | None = None  # of the last dataset
        self.descriptors: dict[str, np.ndarray] = {}  # of training images, by cache key

    @functools.cached_property
    def model_key(self) -> str:
        """A digest of everything that turns a file into features.

        That is the parameters, the structure of the model, the preprocessing, the tokenizer and the
        scale.
        """
        # memory addresses of functions differ between processes
        graph = hashlib.sha256(_ADDRESS.sub("", repr(self.encoder.graph)).encode()).hexdigest()
        facts = [self.encoder.fingerprint(), graph, repr(self.preprocess), self._tokens, self.scale]
        return key_of(*facts, *(["places"] if self._places else []))

    @functools.cached_property
    def _tokens(self) -> str:
        probe = self.tokenizer(["a photo of 2 cafés", "Straße 日本"], truncate=True)
        return hashlib.sha256(np.asarray(probe).tobytes()).hexdigest()

    def encode(self, name: str, source: Source) -> Encoded:
        """Returns the features of a source's images, from the cache if they are there.

        Args:
          name: the name that the progress bar shows.
          source: the images.

        Raises:
          UserError: an image cannot be used. Without it the metrics would be those of another
            dataset.
        """
        key = key_of(self.model_key, source.fingerprint, len(source)) if self.cache else name
        if key not in self._encoded:
            encoded = self.cache.encoded(key, len(source))
            if encoded is None:
                with nothing_left_out(name), self.progress(name, len(source)) as advance:
                    if self._pooled:
                        encoded = self.encoder.encoded(
                            source, self.preprocess, places=self._places, advance=advance
                        )
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
        """Shows a progress bar, on terminals in detailed evaluations only.

        Args:
          name: the text beside the bar.
          total: the number of items.
          unit: the name of an item, with a space before it.

        Yields:
          The function that advances the bar.
        """
        quiet = not (self.detailed and multihost.is_first() and sys.stderr.isatty())
        with tqdm(
            total=total, desc=name, unit=unit, dynamic_ncols=True, leave=False, disable=quiet
        ) as bar:
            yield Advance(bar)

    def classifier(self, dataset: Dataset, templates: Sequence[str] = ()) -> Features:
        """Returns the weights of a dataset's zero-shot classifier, float32 [classes, embed_dim].

        They are computed once for equal classes and templates, see `features.classifier`.

        Args:
          dataset: the dataset, with its labels and their synonyms.
          templates: prompts with `{}` for a name; empty: those of the dataset.
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
        """Returns the zero-shot logits of a dataset, [n, classes].

        The logits of the last dataset stay in memory.
        """
        if self._logits is None or self._logits[0] != dataset.name:
            images = self.encode(dataset.name, dataset.source).features
            self._logits = dataset.name, self.scale * images @ self.classifier(dataset).T
        return self._logits[1]

    def label_scores(self, dataset: Dataset) -> np.ndarray:
        """Returns the score of each label for each image, by the head that predicts words.

        See `scoring.label_scores`; `options.scoring` says how a prompt is scored.

        Args:
          dataset: the dataset, with its labels, their synonyms and its templates.
        """
        names = [(label, *dataset.synonyms.get(label, ())) for label in dataset.labels]
        texts = [
            [t.replace("{}", name) for name in group for t in dataset.templates] for group in names
        ]
        head = scoring_head(self.encoder.config)
        prompts = label_prompts(head, self.tokenizer, texts, self.options.scoring)
        self.say(
            f"{dataset.name}: scoring {counted(sum(map(len, texts)), 'prompt')} for each of "
            f"{counted(len(dataset), 'image')}"
        )
        if equal := count_equal(self.tokenizer, texts):
            self.say(
                f"{dataset.name}: {counted(equal, 'prompt')} cannot be told from another one, "
                f"because prompts are truncated to {self.tokenizer.context_length} tokens: "
                "shorter templates leave more of the labels"
            )
        with nothing_left_out(dataset.name), self.progress(dataset.name, len(dataset)) as advance:
            return self.encoder.label_scores(
                dataset.source, self.preprocess, prompts, advance=advance
            )

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """Returns the unit-norm features of texts, [texts, embed_dim]; long texts are truncated."""
        return self.encoder.tokens(self.tokenizer(list(texts), truncate=True))

    def image(self, source: Source, i: int) -> Image.Image:
        """Returns the i-th image of a source."""
        pair = source[int(i)]
        return decode(pair.image, pair.name)

    def thumbnail(self, source: Source, i: int) -> Thumbnail:
        """Returns a small copy of the i-th image of a source.

        It is empty on processes that write no report.
        """
        if not multihost.is_first():
            return Thumbnail(b"")
        return Thumbnail(report.thumbnail(self.image(source, i)))

    def choose(self, dataset: Dataset, count: int) -> list[int]:
        """Returns the numbers of at most `count` random images of a dataset.

        They are the same in every call.
        """
        count = min(count, len(dataset))
        return np.random.default_rng(0).choice(len(dataset), count, replace=False).tolist()
