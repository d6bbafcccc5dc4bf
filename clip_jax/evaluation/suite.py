"""Every evaluation of a config on one model: numbers by slash-named keys, and pictures."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax import files
from clip_jax.data.captions import fill
from clip_jax.data.images import decode
from clip_jax.data.pairs import PairError
from clip_jax.data.paths import resolve
from clip_jax.data.preprocess import Preprocess
from clip_jax.data.sources import Source, open_source
from clip_jax.errors import UserError
from clip_jax.evaluation import picture, retrieval, zero_shot
from clip_jax.evaluation.features import Encoder, Features, classifier
from clip_jax.tokenizers import Tokenizer


class TestSet:
    """A set of test pictures with labels and captions, opened and checked once.

    Args:
      name: what its metrics are called by.
      values: `data` (as `config.data.train`), `labels` (a JSON list of names, or an object that
        holds one under `name`), `label` (the field of a pair's text that names its class); for a
        table also `image` and `root`, as in `config.data`.
      caption: template of the text that belongs to a picture in retrieval.
    """

    __test__ = False  # not a test of pytest's

    def __init__(self, name: str, values: Mapping[str, Any], caption: str) -> None:
        for key in ("data", "labels", "label"):
            if not values.get(key):
                raise UserError(
                    f"evaluate.sets.{name} needs data, labels and label: no {key} given"
                )
        self.name = name
        table = (values.get("image", ""), values.get("root", ""))
        self.source: Source = open_source(values["data"], *table)
        self.labels = read_labels(values["labels"], name)
        with _whole(name):
            pairs = map(self.source.__getitem__, range(len(self.source)))
            texts = [(pair.text, pair.name) for pair in pairs]
        self.captions, self.group = np.unique(
            [fill(caption, text, where) for text, where in texts], return_inverse=True
        )
        classes = {label: i for i, label in enumerate(self.labels)}
        named = [(fill(f"{{{values['label']}}}", text, where), where) for text, where in texts]
        for label, where in named:
            if label not in classes:
                raise UserError(
                    f"evaluate.sets.{name}: {label!r} of {where} is no label of {values['labels']}"
                )
        self.target = np.array([classes[label] for label, _ in named])


@contextlib.contextmanager
def _whole(name: str) -> Iterator[None]:
    """Nothing is left out of a test set, or its numbers would be those of another.

    Raises:
      UserError: a pair of it cannot be used.
    """
    try:
        yield
    except PairError as error:
        raise UserError(f"evaluate.sets.{name}: {error}: mend it or take it out") from None


def read_labels(path: str, name: str) -> list[str]:
    """The class names in a JSON file: a list, or the list under `name`."""
    file = Path(resolve(path))
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"evaluate.sets.{name}.labels: {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"evaluate.sets.{name}.labels: {file} is not JSON ({error})") from None
    labels = labels.get(name) if isinstance(labels, dict) else labels
    if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels) or not labels:
        raise UserError(f"{file} must hold a list of distinct names (or one under {name!r})")
    return [str(label) for label in labels]


class Suite:
    """The test sets of a config, ready to judge parameters again and again.

    The zero-shot classifier is computed once per parameters, labels and templates.
    """

    def __init__(
        self, config: Mapping[str, Any], tokenizer: Tokenizer, preprocess: Preprocess
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._sets = [TestSet(n, v, config["caption"]) for n, v in config["sets"].items()]
        self._classifiers: dict[str, Features] = {}

    def __bool__(self) -> bool:
        return bool(self._sets)

    def _classifier(self, encoder: Encoder, labels: list[str]) -> Features:
        key = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
        if key not in self._classifiers:
            templates = self._config["templates"]
            self._classifiers[key] = classifier(encoder, self._tokenizer, labels, templates)
        return self._classifiers[key]

    def __call__(
        self, encoder: Encoder, logit_scale: float, folder: Path | None
    ) -> dict[str, float]:
        """Metrics of every set; with a `folder`, a sheet of random pictures per set in it."""
        self._classifiers.clear()
        metrics: dict[str, float] = {}
        for test in self._sets:
            with _whole(test.name):
                images = encoder.images(test.source, self._preprocess)
            logits = logit_scale * images @ self._classifier(encoder, test.labels).T
            texts = encoder.tokens(self._tokenizer(list(test.captions), truncate=True))
            found = retrieval.both_ways(images, texts, test.group, np.arange(len(texts)))
            metrics |= _named(f"zero_shot/{test.name}", zero_shot.top_k(logits, test.target))
            metrics |= _named(f"retrieval/{test.name}", found)
            if folder and self._config["pictures"]:
                self._sheet(test, logits, folder / f"{test.name}.png")
        return metrics

    def _sheet(self, test: TestSet, logits: np.ndarray, path: Path) -> None:
        count = min(self._config["pictures"], len(test.source))
        chosen = np.random.default_rng(0).choice(len(test.source), count, replace=False)
        guesses = [self._guess(test, logits[i], int(i)) for i in chosen]
        title = f"{test.name}: {count} random pictures of {len(test.source):,}, "
        title += f"likeliest of {len(test.labels):,} labels"
        with files.whole(path) as file:
            picture.draw_guesses(guesses, title).save(file, "PNG")

    def _guess(self, test: TestSet, logits: np.ndarray, i: int) -> picture.Guess:
        pair = test.source[i]
        order, shares = zero_shot.likeliest(logits, min(5, len(test.labels)))
        names = [test.labels[j] for j in order]
        return picture.Guess(
            decode(pair.image, pair.name), test.labels[test.target[i]], names, shares.tolist()
        )


def _named(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def table(metrics: Mapping[str, float], keys: Iterable[str] = ("zero_shot", "retrieval")) -> str:
    """The metrics as lines of `name  12.3 %`."""
    chosen = {k: v for k, v in metrics.items() if k.startswith(tuple(keys))}
    width = max(map(len, chosen), default=0)
    return "\n".join(f"  {name:<{width}}  {value:7.2%}" for name, value in chosen.items())
