"""A model before its test sets: what every evaluator asks of it, computed once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source
from clip_jax.distributed import multihost
from clip_jax.evaluation import report
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.datasets.dataset_loader import whole
from clip_jax.evaluation.features import Encoded, Encoder, Features, classifier
from clip_jax.evaluation.suite.result_cache import ResultCache, key_of
from clip_jax.evaluation.suite.splits import Splits
from clip_jax.tokenizers import Tokenizer

_PLACE = re.compile(" at 0x[0-9a-f]+")
_HELD = 4  # splits whose features stay at hand


class Advance:
    """A progress bar's hand: called with how much more is done."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __call__(self, more: int) -> None:
        """So much more is done."""
        self._bar.update(more)

    def to(self, done: int, total: int) -> None:
        """So much of all is done."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)


class EvalContext:
    """Features, classifiers and thumbnails for evaluators.

    Args:
      encoder: the model on its mesh.
      scale: its factor on the cosines.
      tokenizer, preprocess: of the model.
      options: `config.evaluate`.
      kept: what an earlier evaluation found.
      splits: of sets by name, what a probe learns from.
      training: what the model was trained on.
      whole: the long form: prompts compared, and features before the projection, which probes
        look at, made at once whether or not there is one.
      say: takes a line about what is going on.
    """

    def __init__(
        self,
        encoder: Encoder,
        scale: float,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        options: Mapping[str, Any],
        kept: ResultCache,
        *,
        splits: Mapping[str, Splits] = MappingProxyType({}),
        training: Sequence[Source] = (),
        whole: bool = False,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.encoder, self.scale = encoder, scale
        self.tokenizer, self.preprocess = tokenizer, preprocess
        self.options, self.kept, self.whole, self.say = options, kept, whole, say
        self.splits, self.training = splits, training
        self._encoded: dict[str, Encoded] = {}
        self._classifiers: dict[str, Features] = {}
        self.descriptors: dict[str, np.ndarray] = {}  # of training pictures, see `matching`

    @functools.cached_property
    def model(self) -> str:
        """What changes when a parameter or the way from a file to features does."""
        # where functions lie in memory is another place in every process
        graph = hashlib.sha256(_PLACE.sub("", repr(self.encoder.graph)).encode()).hexdigest()
        said = [self.encoder.fingerprint(), graph, repr(self.preprocess), self._tokens, self.scale]
        return key_of(*said)

    @functools.cached_property
    def _tokens(self) -> str:
        probe = self.tokenizer(["a photo of 2 cafés", "Straße 日本"], truncate=True)
        return hashlib.sha256(np.asarray(probe).tobytes()).hexdigest()

    def encoded(self, name: str, source: Source) -> Encoded:
        """What the image tower makes of a source's pictures; `name` is shown meanwhile.

        Raises:
          UserError: a picture cannot be used, since without it the numbers were another set's.
        """
        key = key_of(self.model, source.fingerprint, len(source)) if self.kept else name
        if key not in self._encoded:
            found = self.kept.encoded(key)
            if found is None or len(found.features) != len(source):
                with whole(name), self.bar(name, len(source)) as advance:
                    if self.whole or self.splits:
                        found = self.encoder.encoded(source, self.preprocess, advance=advance)
                    else:
                        images = self.encoder.images(source, self.preprocess, advance=advance)
                        found = Encoded(images, images)
                self.kept.keep_encoded(key, found)
                found = self.kept.encoded(key) or found  # from the disk they take no memory
            while len(self._encoded) >= _HELD:
                self._encoded.pop(next(iter(self._encoded)))
            self._encoded[key] = found
        return self._encoded[key]

    @contextlib.contextmanager
    def bar(self, name: str, total: int, unit: str = " images") -> Iterator[Advance]:
        """A progress bar where somebody watches."""
        quiet = not (self.whole and multihost.is_first() and sys.stderr.isatty())
        with tqdm(
            total=total, desc=name, unit=unit, dynamic_ncols=True, leave=False, disable=quiet
        ) as bar:
            yield Advance(bar)

    def classifier(self, test: TestSet, templates: Sequence[str] = ()) -> Features:
        """A row of weights a class, see `features.classifier`; computed once for equal ones.

        templates: in place of the set's own.
        """
        names = [(label, *test.synonyms.get(label, ())) for label in test.labels]
        templates = templates or test.templates
        key = key_of(names, list(templates), self.model if self.kept else "")
        if key not in self._classifiers:
            weights = self.kept.classifier(key)
            if weights is None or weights.shape[:1] != (len(names),):
                weights = classifier(self.encoder, self.tokenizer, names, templates)
                self.kept.keep_classifier(key, weights)
            self._classifiers[key] = weights
        return self._classifiers[key]

    def texts(self, texts: Sequence[str]) -> Features:
        """Features of texts."""
        return self.encoder.tokens(self.tokenizer(list(texts), truncate=True))

    def picture(self, source: Source, i: int) -> Image.Image:
        """The i-th picture of a source."""
        pair = source[int(i)]
        return decode(pair.image, pair.name)

    def thumbnail(self, source: Source, i: int, pictures: dict[str, bytes]) -> str:
        """Puts a small copy of the i-th picture into `pictures`; returns its name there."""
        if not multihost.is_first():
            return ""
        content = report.thumbnail(self.picture(source, i))
        name = hashlib.sha256(content).hexdigest()[:16]
        pictures[name] = content
        return name

    def chosen(self, test: TestSet, count: int) -> list[int]:
        """The numbers of some random pictures of a set, the same ones every time."""
        count = min(count, len(test))
        return np.random.default_rng(0).choice(len(test), count, replace=False).tolist()

    def answer(
        self,
        what: str,
        test: TestSet,
        make: Callable[[dict[str, bytes]], dict[str, Any]],
        *more: Any,
    ) -> dict[str, Any]:
        """An evaluator's answer on a set: what was kept of it, or what `make` gives.

        `make` is given a dictionary to put thumbnails in. `more` is what else the answer follows
        from.
        """
        if not self.kept:
            pictures: dict[str, bytes] = {}
            found = make(pictures)
            self.kept.pictures |= pictures
            return found
        options = json.loads(json.dumps([self.options["pictures"], *more], default=str))
        key = key_of(what, self.model, test.fingerprint, options)
        found_before = self.kept.answer(key)
        if found_before is not None:
            self.say(f"{test.name}: {what} was done before")
            return found_before
        pictures = {}
        found = make(pictures)
        self.kept.keep(key, found, pictures)
        return found
