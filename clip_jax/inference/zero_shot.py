"""Zero-shot classification of any number of pictures by any number of texts, in bounded memory."""

from __future__ import annotations

import csv
import itertools
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from clip_jax.data.images.pictures import as_numpy, is_array, picture
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import GuessedWarning, UserError
from clip_jax.models.clip import CLIP
from clip_jax.tokenizers import Tokenizer, packing

Tokenize = Tokenizer | Callable[..., np.ndarray]
Answer = list[dict[str, Any]]
BATCH_SIZE = 32
_TEXTS = 8  # times as many texts as pictures make a batch: they are that much smaller


class ZeroShotClassifier:
    """Says which of some labels pictures show; called as transformers' pipeline of that name."""

    def __init__(self, model: CLIP, preprocess: Preprocess, tokenize: Tokenize) -> None:
        self.model, self.preprocess, self.tokenize = model, preprocess, tokenize

    def __call__(
        self,
        images: Any,
        candidate_labels: Sequence[str] | str,
        hypothesis_template: str | Sequence[str] = "This is a photo of {}.",
        **options: Any,
    ) -> Any:
        """Labels with their scores, best first.

        Args:
          images: a picture in any form that `data.pictures.picture` takes, or several: a list, a
            batch as an array, a generator.
          candidate_labels: the labels, as a list or between commas.
          hypothesis_template: the prompt, with {} for the label; the features of several are
            averaged.
          options: `batch_size`, `truncate`, `top_k` and `skip_broken` as of `stream`. For a picture
            that is skipped the answer is None.

        Returns:
          `[{"score": …, "label": …}, …]` for a picture, a list of these for several, and for a
          generator a generator, which reads no further ahead than some batches. Scores are a
          softmax over the labels, or, for a model with a sigmoid loss, each on its own.

        Raises:
          UserError: no labels, a template without {}, or what is no picture.
        """
        several = _is_several(images)
        if several and hasattr(images, "__len__") and not len(images):
            raise UserError("give at least one picture and one label")
        answers = self.stream(
            images if several else [images], candidate_labels, hypothesis_template, **options
        )
        plain = (None if isinstance(answer, UserError) else answer for answer in answers)
        if not several:
            return next(plain)
        return plain if hasattr(images, "__next__") else list(plain)

    def stream(
        self,
        images: Iterable[Any],
        candidate_labels: Sequence[str] | str,
        hypothesis_template: str | Sequence[str] = "This is a photo of {}.",
        *,
        batch_size: int = BATCH_SIZE,
        truncate: bool = False,
        top_k: int | None = None,
        skip_broken: bool = False,
    ) -> Iterator[Answer | UserError]:
        """The answer to each picture in turn.

        Labels are encoded at once; pictures while the answers are read, some batches ahead of them.

        Args:
          images: pictures, each in any form that `data.pictures.picture` takes.
          candidate_labels, hypothesis_template: as of a call.
          batch_size: pictures that are encoded at once.
          truncate: cut texts that have too many tokens.
          top_k: how many labels of each picture to give; None: all.
          skip_broken: give the error in place of an answer where a picture cannot be read.

        Raises:
          UserError: as a call.
        """
        for key, value in (("batch_size", batch_size), ("top_k", top_k)):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if value is not None and (not whole or value < 1):
                raise UserError(f"{key}={value!r} must be a whole number from 1 on")
        labels = labels_of(candidate_labels)
        templates = hypothesis_template
        templates = [templates] if isinstance(templates, str) else _listed("templates", templates)
        if wrong := [t for t in templates if not isinstance(t, str) or "{}" not in t]:
            raise UserError(f"{wrong[0]!r:.80} has no {{}} for the label")
        if not templates:
            raise UserError("give at least one template")
        if len(labels) == 1 and self.model.config.logit_bias is None:
            warnings.warn(
                "with one label every picture scores 100 %: give what else it could be, too",
                GuessedWarning,
                stacklevel=3,
            )
        text = self._text_features(labels, templates, batch_size * _TEXTS, truncate)
        return self._answers(images, labels, text, batch_size, top_k, skip_broken)

    def _text_features(
        self, labels: list[str], templates: list[str], batch_size: int, truncate: bool
    ) -> Float[np.ndarray, "labels embed_dim"]:
        """A unit vector a label: the mean of its prompts' features."""
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
                tokens = _padded(tokens, _rows(len(texts), batch_size, first > 0))
                made = np.asarray(self.model.encode_text(tokens, normalized=True))[: len(texts)]
                np.add.at(sums, np.arange(first, first + len(texts)) // len(templates), made)
                bar.update(len(texts))
        return (sums / np.linalg.norm(sums, axis=-1, keepdims=True)).astype(np.float32)

    def _answers(
        self,
        images: Iterable[Any],
        labels: list[str],
        text: np.ndarray,
        batch_size: int,
        top_k: int | None,
        skip_broken: bool,
    ) -> Iterator[Answer | UserError]:
        total = len(images) if isinstance(images, Sized) else None
        started = False
        with _progress("pictures", total) as bar:
            made = self._pixels(images, 2 * batch_size)
            while some := list(itertools.islice(made, batch_size)):
                broken = [one for one in some if isinstance(one, UserError)]
                if broken and not skip_broken:
                    raise broken[0]
                pixels = [one for one in some if not isinstance(one, UserError)]
                rows = _rows(len(some), batch_size, started)
                scores = iter(self._scores(pixels, rows, text) if pixels else ())
                started = True
                for one in some:
                    bar.update()
                    if isinstance(one, UserError):
                        yield one
                    else:
                        yield _ranked(next(scores), labels, top_k)

    def _pixels(self, images: Iterable[Any], ahead: int) -> Iterator[np.ndarray | UserError]:
        """What each picture is to the model, or why it is none; `ahead` are read before."""

        def read(given: Any) -> np.ndarray | UserError:
            try:
                return self.preprocess(picture(given))
            except UserError as error:
                return error

        waiting: deque[Future[np.ndarray | UserError]] = deque()
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
            try:
                for given in images:
                    waiting.append(pool.submit(read, given))
                    if len(waiting) >= ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _scores(
        self, pixels: list[np.ndarray], rows: int, text: np.ndarray
    ) -> Float[np.ndarray, "pictures labels"]:
        batch = _padded(np.stack(pixels), rows)
        image = np.asarray(self.model.encode_image(batch, normalized=True))[: len(pixels)]
        # with NumPy: in JAX each of these operations would be a program to compile
        logits = np.asarray(self.model.scale) * image @ text.T
        if self.model.config.logit_bias is None:
            shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
            return shares / shares.sum(axis=-1, keepdims=True)
        return np.exp(-np.logaddexp(0, -logits - np.asarray(self.model.logit_bias[...])))


def split_labels(text: str) -> list[str]:
    """Labels between commas; one that holds a comma stands in double quotes.

    Raises:
      UserError: quotes that do not match.
    """
    closed = re.sub(r'"\s+(?=,|$)', '"', text)  # csv takes no space after a quote
    try:
        (found,) = csv.reader([closed], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UserError(
            f"labels {text!r:.80} cannot be told apart ({error}): a label with a comma stands in "
            "double quotes"
        ) from None
    return [label.strip() for label in found if label.strip()]


def labels_of(given: Sequence[str] | str) -> list[str]:
    """Labels, each once; a warning says which stood there twice.

    Raises:
      UserError: there is none, or one is no text.
    """
    labels = split_labels(given) if isinstance(given, str) else _listed("labels", given)
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"a label must be a text, not {label!r:.80}")
    once = list(dict.fromkeys(labels))
    if not once:
        raise UserError("give at least one picture and one label")
    if len(once) < len(labels):
        seen: set[str] = set()
        twice = list(dict.fromkeys(x for x in labels if x in seen or seen.add(x)))  # type: ignore[func-returns-value]
        shown = ", ".join(f"{label!r:.40}" for label in twice[:3])
        more = ", …" if len(twice) > 3 else ""
        warnings.warn(
            f"labels: {shown}{more} given more than once; each label counts once",
            GuessedWarning,
            stacklevel=3,
        )
    return once


def _listed(what: str, given: Any) -> list[Any]:
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise UserError(f"{what} must be a text or a list of texts, not {given!r:.80}")
    return list(given)


def _is_several(images: Any) -> bool:
    if is_array(images):
        values = as_numpy(images)
        names = values.ndim == 1 and values.dtype.kind in "OSU"  # such as a column of a table
        return names or values.ndim > 3
    alone = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | dict)
    return not alone and not hasattr(images, "read") and hasattr(images, "__iter__")


def _rows(count: int, batch_size: int, started: bool) -> int:
    """The rows of a batch: few shapes are compiled, and a lone picture is no whole batch."""
    return batch_size if started else min(batch_size, 1 << (count - 1).bit_length())


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def _progress(unit: str, total: int | None) -> Any:
    """A bar for people, after a second."""
    quiet = not sys.stderr.isatty()
    return tqdm(total=total, unit=f" {unit}", disable=quiet, delay=1, leave=False)


def _ranked(scores: np.ndarray, labels: Sequence[str], top_k: int | None) -> Answer:
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"score": float(scores[i]), "label": labels[i]} for i in order]
