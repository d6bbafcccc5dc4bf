"""Test pictures that the model was trained on, and what they are worth (section 5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import Source, read_pair
from clip_jax.evaluation import overlap, retrieval, scores
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.datasets.dataset_loader import whole
from clip_jax.evaluation.suite import classifying
from clip_jax.evaluation.suite.context import EvalContext
from clip_jax.evaluation.suite.result_cache import key_of

_PART = 1024  # pictures between two looks at the progress
_SHOWN = 12  # pairs


def run(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """The `overlap` part of a set's results."""
    with whole(test.name):
        views = _described(context, f"{test.name} copies", test.source, overlap.views)
    train = [_trained(context, source) for source in context.training]
    number, similarity = overlap.nearest_train(views, np.concatenate(train))
    threshold = overlap.THRESHOLD if test.threshold is None else test.threshold
    found = overlap.assess(_right(context, test), similarity, threshold)
    ends = np.cumsum([len(one) for one in train])
    found["suggested_threshold"] = overlap.threshold_for(views)
    found["pairs"] = []
    shown = (
        overlap.pairs(number, similarity, threshold, _SHOWN) if context.options["pictures"] else []
    )
    for pair in shown:
        which = int(np.searchsorted(ends, pair["train"], side="right"))
        own = int(pair["train"]) - int(ends[which - 1] if which else 0)
        found["pairs"].append(
            {
                "test": context.thumbnail(test.source, int(pair["test"]), pictures),
                "train": context.thumbnail(context.training[which], own, pictures),
                "similarity": pair["similarity"],
            }
        )
    return found


def _right(context: EvalContext, test: TestSet) -> np.ndarray:
    """Which pictures the model gets right: their class, or else their first text."""
    images = context.encoded(test.name, test.source).features
    if test.target is None:
        texts = context.texts(test.texts)
        return retrieval.ahead(images, texts, test.image_group, test.text_group) < 1
    weights, right = context.classifier(test), np.empty(len(images), bool)
    for part in classifying.blocks(len(images), len(weights)):
        logits, target = images[part] @ weights.T, test.target[part]
        if target.ndim == 1:
            right[part] = scores.ranks(logits, target) < 1
        else:  # any of its labels
            right[part] = np.take_along_axis(target, logits.argmax(axis=1)[:, None], 1)[:, 0]
    return right


def _trained(context: EvalContext, source: Source) -> np.ndarray:
    """Descriptors of training pictures; of one that is broken, which training leaves out, zeros."""
    ramp = overlap.describe(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))  # as they are made now
    key = key_of("descriptors", ramp.tolist(), source.fingerprint, len(source))
    if key not in context.descriptors:
        found = context.kept.descriptors(key)
        if found is None:
            found = _described(context, "training pictures", source, _or_nothing)
            context.kept.keep_descriptors(key, found)
        context.descriptors[key] = found
    return context.descriptors[key]


def _or_nothing(image: Image.Image | None) -> np.ndarray:
    blank = Image.new("RGB", (8, 8), (128, 128, 128))
    return overlap.describe(blank if image is None else image)


def _described(
    context: EvalContext, name: str, source: Source, describe: Callable[[Any], np.ndarray]
) -> np.ndarray:
    """What `describe` makes of every picture, in order; of None where one is broken."""
    strict = describe is not _or_nothing

    def one(i: int) -> np.ndarray:
        try:
            pair = read_pair(source, i)
            with only_pair_errors("picture", pair.name):
                return describe(decode(pair.image, pair.name))
        except PairError:
            if strict:
                raise
            return describe(None)

    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, context.bar(name, len(source)) as advance:
        for first in range(0, len(source), _PART):
            numbers = range(first, min(first + _PART, len(source)))
            parts.append(np.stack(list(pool.map(one, numbers))))
            advance(len(numbers))
    return np.concatenate(parts)
