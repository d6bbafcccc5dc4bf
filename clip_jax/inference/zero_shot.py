"""Zero-shot classification of any number of images by any number of texts, in bounded memory."""

from __future__ import annotations

import csv
import functools
import itertools
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Integer
from PIL import Image
from tqdm import tqdm

from clip_jax.data.images.pictures import are_several, picture
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import GuessedWarning, UserError
from clip_jax.inference.batches import batch_rows, padded
from clip_jax.inference.heatmap import draw_heatmap, similarity_maps
from clip_jax.inference.prompts import label_prompts
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import CLIP
from clip_jax.models.head import DECODER
from clip_jax.models.scoring import Prompts, label_scores, scoring_head
from clip_jax.tokenizers import Tokenizer, packing

Tokenize = Tokenizer | Callable[..., np.ndarray]
Answer = list[JsonObject]
Pixels = Integer[np.ndarray, "images height width 3"]
ScoresOf = Callable[[Pixels], np.ndarray]  # to the scores of labels
BATCH_SIZE = 32
_TEXTS = 8  # times as many texts as images make a batch: they are that much smaller


class ZeroShotClassifier:
    """A zero-shot classifier of images, called as the pipeline of that name in transformers.

    Args:
      model: the model.
      preprocess: the preprocessing of the model, from an image to pixels.
      tokenize: the tokenizer of the model.
      by_words: whether labels are scored by the head that predicts words, because the text tower
        of the model did not learn; see `scoring.label_scores`.
    """

    def __init__(
        self, model: CLIP, preprocess: Preprocess, tokenize: Tokenize, *, by_words: bool = False
    ) -> None:
        self.model, self.preprocess, self.tokenize = model, preprocess, tokenize
        self._by_words = by_words

    def __call__(
        self,
        images: Any,
        candidate_labels: Sequence[str] | str | None = None,
        hypothesis_template: str | Sequence[str] = "This is a photo of {}.",
        **options: Any,
    ) -> Any:
        """Returns labels with their scores, best first.

        Args:
          images: an image in any form that `data.pictures.picture` takes, or several: a list, a
            batch as an array, a generator.
          candidate_labels: the labels, as a list or as a text with commas between them. None: those
            of the model's own classifier, which then scores the images; prompts do not matter.
          hypothesis_template: the prompt, with {} for the label; the features of several prompts
            are averaged.
          options: `batch_size`, `truncate`, `top_k` and `skip_broken` as for `stream`. The answer
            to a skipped image is None.

        Returns:
          `[{"score": …, "label": …}, …]` for an image, a list of these for several, and for a
          generator a generator, which reads only some batches ahead. Scores are a softmax over the
          labels; for a model with a sigmoid loss each is a probability of its own.

        Raises:
          UserError: there are no labels, a template has no {}, or an image is none.
        """
        several = are_several(images)
        if several and hasattr(images, "__len__") and not len(images):
            raise UserError("give at least one image and one label")
        answers = self.stream(
            images if several else [images], candidate_labels, hypothesis_template, **options
        )
        ranked = (None if isinstance(answer, UserError) else answer for answer in answers)
        if not several:
            return next(ranked)
        return ranked if hasattr(images, "__next__") else list(ranked)

    def stream(
        self,
        images: Iterable[Any],
        candidate_labels: Sequence[str] | str | None = None,
        hypothesis_template: str | Sequence[str] = "This is a photo of {}.",
        *,
        batch_size: int = BATCH_SIZE,
        truncate: bool = False,
        top_k: int | None = None,
        skip_broken: bool = False,
    ) -> Iterator[Answer | UserError]:
        """Returns an iterator over the answers to the images, in order.

        Labels are encoded at once, images some batches ahead of the answers that are read.

        Args:
          images: the images, each in any form that `data.pictures.picture` takes.
          candidate_labels: as for a call.
          hypothesis_template: as for a call.
          batch_size: the number of images that are encoded at once.
          truncate: whether texts with too many tokens are truncated.
          top_k: the number of labels in an answer; None: all.
          skip_broken: whether the answer to an image that cannot be read is the error, which is
            otherwise raised.

        Raises:
          UserError: as for a call.
        """
        for key, value in (("batch_size", batch_size), ("top_k", top_k)):
            integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and (not integer or value < 1):
                raise UserError(f"{key}={value!r} must be a whole number from 1 on")
        if candidate_labels is None:
            own = list(self.model.config.labels)
            if not own:
                raise UserError(
                    "give labels (--labels), or let the model write a caption (--caption, or the "
                    "pipeline image-to-text): it has no classifier of its own"
                    if self.model.config.head(DECODER) is not None
                    else "give labels: this model has no classifier of its own, which a run with "
                    "config.objective.name=classification trains"
                )
            return self._answers(images, own, self._class_scores, batch_size, top_k, skip_broken)
        labels = unique_labels(candidate_labels)
        templates = hypothesis_template
        templates = [templates] if isinstance(templates, str) else _listed("templates", templates)
        if wrong := [t for t in templates if not isinstance(t, str) or "{}" not in t]:
            raise UserError(f"{wrong[0]!r:.80} has no {{}} for the label")
        if not templates:
            raise UserError("give at least one template")
        if len(labels) == 1 and (self._by_words or self.model.config.logit_bias is None):
            warnings.warn(
                "with one label every image scores 100 %: give what else it could be, too",
                GuessedWarning,
                stacklevel=3,
            )
        if self._by_words:
            scores = functools.partial(
                self._word_scores, self._prompts(labels, templates, truncate)
            )
        else:
            text = self._text_features(labels, templates, batch_size * _TEXTS, truncate)
            scores = functools.partial(self._text_scores, text)
        return self._answers(images, labels, scores, batch_size, top_k, skip_broken)

    def heatmap(
        self,
        image: Any,
        labels: Sequence[str],
        hypothesis_template: str | Sequence[str] = "This is a photo of {}.",
        *,
        truncate: bool = False,
    ) -> Image.Image:
        """Draws how similar each patch of an image is to labels, see `heatmap.draw_heatmap`.

        Args:
          image: in any form that `data.pictures.picture` takes.
          labels: the labels.
          hypothesis_template: as for a call.
          truncate: as for `stream`.

        Raises:
          UserError: the image cannot be read, the image tower gives no patches, or the text tower
            did not learn.
        """
        text = self.label_features(labels, hypothesis_template, truncate=truncate)
        pixels = self.preprocess(picture(image))
        return draw_heatmap(pixels, similarity_maps(self.model, pixels, text), labels)

    def label_features(
        self,
        labels: Sequence[str],
        hypothesis_template: str | Sequence[str] = "This is a photo of {}.",
        *,
        truncate: bool = False,
    ) -> Float[np.ndarray, "labels embed_dim"]:
        """Returns the unit-norm mean of the features of each label's prompts.

        Args:
          labels: the labels.
          hypothesis_template: as for a call.
          truncate: as for `stream`.

        Raises:
          UserError: the text tower did not learn.
        """
        if self._by_words:
            raise UserError("this needs a text tower that learned; this one has random values")
        templates = hypothesis_template
        templates = [templates] if isinstance(templates, str) else list(templates)
        return self._text_features(list(labels), templates, BATCH_SIZE * _TEXTS, truncate)

    def _prompts(self, labels: list[str], templates: list[str], truncate: bool) -> Prompts:
        """Returns the prompts of each label for the head that scores them."""
        head = scoring_head(self.model.config)
        if not head:
            raise UserError(
                "this model compares images with no text: its text tower has random values: "
                "no objective trains it"
            )
        if not isinstance(self.tokenize, Tokenizer):
            raise UserError("scores of labels need the tokenizer that the model was trained with")
        texts = [[t.replace("{}", label) for t in templates] for label in labels]
        return label_prompts(head, self.tokenize, texts, truncate=truncate)

    def _text_features(
        self, labels: list[str], templates: list[str], batch_size: int, truncate: bool
    ) -> Float[np.ndarray, "labels embed_dim"]:
        """Returns the unit-norm mean of the features of each label's prompts."""
        prompts = (template.replace("{}", label) for label in labels for template in templates)
        total = len(labels) * len(templates)
        options = {"truncate": True} if truncate else {}
        trimmed = self.model.config.text.blind_to_padding and hasattr(self.tokenize, "pad_id")
        sums = np.zeros((len(labels), self.model.config.embed_dim))
        with _progress("texts", total) as bar:
            for first in range(0, total, batch_size):
                texts = list(itertools.islice(prompts, batch_size))
                tokens = self.tokenize(texts, **options)
                if trimmed:
                    tokens = packing.trim(tokens, pad_id=self.tokenize.pad_id)  # type: ignore[union-attr]
                tokens = padded(tokens, batch_rows(len(texts), batch_size, started=first > 0))
                features = np.asarray(self.model.encode_text(tokens, normalized=True))[: len(texts)]
                np.add.at(sums, np.arange(first, first + len(texts)) // len(templates), features)
                bar.update(len(texts))
        return (sums / np.linalg.norm(sums, axis=-1, keepdims=True)).astype(np.float32)

    def _answers(
        self,
        images: Iterable[Any],
        labels: list[str],
        scores_of: ScoresOf,
        batch_size: int,
        top_k: int | None,
        skip_broken: bool,
    ) -> Iterator[Answer | UserError]:
        total = len(images) if isinstance(images, Sized) else None
        started = False
        with _progress("pictures", total) as bar:
            prepared = self._pixels(images, 2 * batch_size)
            while batch := list(itertools.islice(prepared, batch_size)):
                broken = [item for item in batch if isinstance(item, UserError)]
                if broken and not skip_broken:
                    raise UserError(f"{broken[0]} (--skip-broken, or skip_broken=True, goes on)")
                pixels = [item for item in batch if not isinstance(item, UserError)]
                rows = batch_rows(len(batch), batch_size, started=started)
                scores = iter(scores_of(padded(np.stack(pixels), rows)) if pixels else ())
                started = True
                for item in batch:
                    bar.update()
                    if isinstance(item, UserError):
                        yield item
                    else:
                        yield _ranked(next(scores), labels, top_k)

    def _pixels(self, images: Iterable[Any], ahead: int) -> Iterator[np.ndarray | UserError]:
        """Yields the pixels of each image, or the error if it cannot be read.

        `ahead` images are read ahead.
        """

        def read_pixels(image: Any) -> np.ndarray | UserError:
            try:
                return self.preprocess(picture(image))
            except UserError as error:
                return error

        waiting: deque[Future[np.ndarray | UserError]] = deque()
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            try:
                for image in images:
                    waiting.append(pool.submit(read_pixels, image))
                    if len(waiting) >= ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _features(self, pixels: Pixels) -> Float[np.ndarray, "images embed_dim"]:
        return np.asarray(self.model.encode_image(pixels, normalized=True))

    def _class_scores(self, pixels: Pixels) -> Float[np.ndarray, "images labels"]:
        """Returns the probabilities of the model's own classes."""
        return _softmax(np.asarray(self.model.class_logits(jnp.asarray(self._features(pixels)))))

    def _word_scores(self, prompts: Prompts, pixels: Pixels) -> Float[np.ndarray, "images labels"]:
        """Returns a softmax over the scores of the labels by the head that predicts words."""
        return _softmax(np.asarray(_label_scores(self.model, pixels, prompts)))

    def _text_scores(
        self, text: Float[np.ndarray, "labels embed_dim"], pixels: Pixels
    ) -> Float[np.ndarray, "images labels"]:
        # in NumPy: JAX would compile a program for each of these operations
        logits = np.asarray(self.model.scale) * self._features(pixels) @ text.T
        if self.model.config.logit_bias is None:
            return _softmax(logits)
        return np.exp(-np.logaddexp(0, -logits - np.asarray(self.model.logit_bias[...])))


@nnx.jit
def _label_scores(model: CLIP, pixels: Any, prompts: Prompts) -> Any:
    return label_scores(model, pixels, prompts)


def _softmax(logits: Float[np.ndarray, "n labels"]) -> Float[np.ndarray, "n labels"]:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def split_labels(text: str) -> list[str]:
    """Splits a text at its commas into labels; double quotes protect a comma.

    Raises:
      UserError: the quotes do not match.
    """
    closed = re.sub(r'"\s+(?=,|$)', '"', text)  # csv takes no space after a quote
    try:
        (labels,) = csv.reader([closed], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"labels {text!r:.80} cannot be told apart ({error}): a label with a comma stands in "
            "double quotes"
        ) from None
    return [label.strip() for label in labels if label.strip()]


def unique_labels(candidates: Sequence[str] | str) -> list[str]:
    """Returns the labels without repetitions; a warning names the repeated ones.

    Args:
      candidates: the labels, as a list or as a text with commas between them.

    Raises:
      UserError: there is no label, or one is no text.
    """
    labels = (
        split_labels(candidates) if isinstance(candidates, str) else _listed("labels", candidates)
    )
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"a label must be a text, not {label!r:.80}")
    unique = list(dict.fromkeys(labels))
    if not unique:
        raise UserError("give at least one image and one label")
    if len(unique) < len(labels):
        seen: set[str] = set()
        repeated = list(dict.fromkeys(x for x in labels if x in seen or seen.add(x)))  # type: ignore[func-returns-value]
        examples = ", ".join(f"{label!r:.40}" for label in repeated[:3])
        more = ", …" if len(repeated) > 3 else ""
        warnings.warn(
            f"labels: {examples}{more} given more than once; each label counts once",
            GuessedWarning,
            stacklevel=3,
        )
    return unique


def _listed(what: str, texts: Any) -> list[Any]:
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise UserError(f"{what} must be a text or a list of texts, not {texts!r:.80}")
    return list(texts)


def _progress(unit: str, total: int | None) -> Any:
    """Returns a progress bar, shown on terminals after a second."""
    quiet = not sys.stderr.isatty()
    return tqdm(total=total, unit=f" {unit}", disable=quiet, delay=1, leave=False)


def _ranked(scores: np.ndarray, labels: Sequence[str], top_k: int | None) -> Answer:
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"score": float(scores[i]), "label": labels[i]} for i in order]
