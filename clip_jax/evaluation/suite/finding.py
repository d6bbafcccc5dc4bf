"""Retrieval on a set, its galleries, and arithmetic with embeddings (section 3.1; ALIGN)."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_jax.evaluation import retrieval
from clip_jax.evaluation.datasets import TestSet
from clip_jax.evaluation.features import Features
from clip_jax.evaluation.suite.context import EvalContext

_QUERIES, _SHOWN = 6, 6  # of the galleries
_ARITHMETIC = 3  # pictures, each plus and minus a text
_BATCH = 12  # pairs of the similarity matrix


def run(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """The `retrieval` part of a set's results."""
    images = context.encoded(test.name, test.source).features
    texts = context.texts(test.texts)
    found = retrieval.both_ways_scores(images, texts, test.image_group, test.text_group)
    if context.options["pictures"]:
        found["gallery"] = gallery(context, test, images, texts, pictures)
        if context.whole:
            found["arithmetic"] = arithmetic(context, test, images, texts, pictures)
    return found


def _some(count: int, wanted: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).choice(count, min(count, wanted), replace=False))


def gallery(
    context: EvalContext,
    test: TestSet,
    images: Features,
    texts: Features,
    pictures: dict[str, bytes],
) -> list[dict[str, Any]]:
    """Some texts with the pictures nearest to them."""
    chosen = _some(len(texts), _QUERIES)
    near, similar = retrieval.nearest(texts[chosen], images, _SHOWN)
    return [
        {
            "text": test.texts[j],
            "pictures": [context.thumbnail(test.source, i, pictures) for i in row],
            "similarities": [float(value) for value in values],
            "own": [bool(test.image_group[i] == test.text_group[j]) for i in row],
        }
        for j, row, values in zip(chosen, near, similar, strict=True)
    ]


def arithmetic(
    context: EvalContext,
    test: TestSet,
    images: Features,
    texts: Features,
    pictures: dict[str, bytes],
) -> list[dict[str, Any]]:
    """Some pictures plus and minus the text of another, and what is nearest (ALIGN, section 5)."""
    found = []
    chosen = _some(len(images), 2 * _ARITHMETIC)
    for i, other in zip(chosen[::2], chosen[1::2], strict=False):
        texts_there = np.flatnonzero(test.text_group == test.image_group[other])
        if not len(texts_there):
            continue
        j = int(texts_there[0])
        for sign, weight in (("+", 2.0), ("−", -2.0)):
            query = retrieval.arithmetic(images[i], texts[j], weight)
            near, _ = retrieval.nearest(query[None], images, _SHOWN, np.array([i]))
            found.append(
                {
                    "picture": context.thumbnail(test.source, i, pictures),
                    "text": test.texts[j],
                    "sign": sign,
                    "found": [
                        context.thumbnail(test.source, k, pictures) for k in near[0] if k >= 0
                    ],
                }
            )
    return found


def similarity(context: EvalContext, test: TestSet, pictures: dict[str, bytes]) -> dict[str, Any]:
    """Cosines between a few pictures and their own texts, all with all (figure 1 of the paper)."""
    images, texts = context.encoded(test.name, test.source).features, []
    chosen: list[int] = []
    for i in context.chosen(test, len(test)):
        there = np.flatnonzero(test.text_group == test.image_group[i])
        if len(there) and int(there[0]) not in texts:
            chosen.append(i)
            texts.append(int(there[0]))
        if len(chosen) == _BATCH:
            break
    features = context.texts([test.texts[j] for j in texts])
    return {
        "set": test.name,
        "pictures": [context.thumbnail(test.source, i, pictures) for i in chosen],
        "texts": [test.texts[j] for j in texts],
        "matrix": (images[chosen] @ features.T).tolist(),
    }
