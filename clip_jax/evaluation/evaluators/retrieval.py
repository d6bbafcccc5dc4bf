"""Retrieval on a dataset, galleries, and arithmetic with embeddings (section 3.1; ALIGN)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.evaluators.protocol import Document, Evaluator, Result
from clip_jax.evaluation.features import Features
from clip_jax.evaluation.metrics import retrieval
from clip_jax.evaluation.report import overview, pairs
from clip_jax.evaluation.report.album import Album
from clip_jax.evaluation.report.markup import Markup
from clip_jax.evaluation.report.section import Section, shortened, without_thumbnails
from clip_jax.evaluation.serialization import Thumbnail, to_json
from clip_jax.io.files import JsonObject

_QUERIES, _SHOWN = 6, 6  # of the galleries
_ARITHMETIC = 3  # images, each plus and minus a text
_BATCH = 12  # pairs of the similarity matrix


@dataclasses.dataclass(frozen=True)
class Query:
    """A text with its nearest images, their similarities, and which of them belong to it."""

    text: str
    pictures: list[Thumbnail]
    similarities: list[float]
    own: list[bool]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """An image plus or minus a text, and the images nearest to the result."""

    picture: Thumbnail
    text: str
    sign: str
    found: list[Thumbnail]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """The cosines between all pairs of some images and texts (figure 1 of the paper)."""

    set: str
    pictures: list[Thumbnail]
    texts: list[str]
    matrix: list[list[float]]


@dataclasses.dataclass(frozen=True)
class RetrievalResult(retrieval.Recalls, Result):
    """Recall in both directions; where images are shown, also galleries and similarities of pairs.

    Attributes:
      gallery: some texts with the nearest images.
      arithmetic: images plus and minus texts; only in detailed evaluations.
      similarity: the cosines of some pairs. Those of the report's first dataset are at the top of
        report.json.
    """

    gallery: list[Query] | None = None
    arithmetic: list[Arithmetic] | None = None
    similarity: Similarity | None = None

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns `DIRECTION/rK` for both directions."""
        ways = {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image}
        return {
            f"{way}/{name}": score.value
            for way, scores in ways.items()
            for name, score in scores.items()
        }

    def to_json(self) -> JsonObject:
        """Returns all fields except the similarity."""
        json: JsonObject = to_json(dataclasses.replace(self, similarity=None))
        return json


class Retrieval(Evaluator[RetrievalResult]):
    """Searches images by texts and texts by images."""

    name = "retrieval"
    result = RetrievalResult
    texts = True
    curves = ("/r1",)

    def needs(self, dataset: Dataset) -> str:
        """Needs captions."""
        return "" if dataset.texts else "captions"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str]:
        """Depends on nothing else."""
        return ()

    def run(self, context: EvalContext, dataset: Dataset) -> RetrievalResult:
        """Computes recall, and the galleries and similarities that the report shows."""
        images = context.encode(dataset.name, dataset.source).features
        texts = context.encode_texts(dataset.texts)
        recalls = retrieval.recalls(images, texts, dataset.image_group, dataset.text_group)
        result = RetrievalResult(**vars(recalls))
        if not context.options.pictures:
            return result
        return dataclasses.replace(
            result,
            gallery=_gallery(context, dataset, images, texts),
            arithmetic=_arithmetic(context, dataset, images, texts) if context.detailed else None,
            similarity=_similarity(context, dataset, images),
        )

    def document(self, results: Mapping[str, RetrievalResult]) -> Document:
        """Returns the results below their datasets, and the similarity of the first at the top."""
        first = next(iter(results.values()), None)
        top = {"similarity": to_json(first.similarity)} if first and first.similarity else {}
        return Document(super().document(results).datasets, top)

    def sections(self, results: Mapping[str, RetrievalResult]) -> Iterable[Section]:
        """Returns recall, galleries and arithmetic; similarities as a detail."""
        yield Section(
            "retrieval",
            "Retrieval",
            without_thumbnails(pairs.retrieval),
            tiles=overview.retrieval_tiles,
        )
        yield Section("galleries", "Text finds images", shortened(8, pairs.galleries))
        yield Section("arithmetic", "Image ± text", shortened(8, pairs.arithmetic))
        yield Section("similarity", "Similarities", _similarity_section, detail=True)


def _similarity_section(document: Mapping[str, Any], album: Album, room: float) -> Markup | None:
    del room  # it is small
    return pairs.similarity(document, album)


def _choose(count: int, most: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).choice(count, min(count, most), replace=False))


def _gallery(
    context: EvalContext, dataset: Dataset, images: Features, texts: Features
) -> list[Query]:
    chosen = _choose(len(texts), _QUERIES)
    nearest, similarities = retrieval.nearest(texts[chosen], images, _SHOWN)
    return [
        Query(
            text=dataset.texts[j],
            pictures=[context.thumbnail(dataset.source, i) for i in row],
            similarities=[float(value) for value in values],
            own=[bool(dataset.image_group[i] == dataset.text_group[j]) for i in row],
        )
        for j, row, values in zip(chosen, nearest, similarities, strict=True)
    ]


def _arithmetic(
    context: EvalContext, dataset: Dataset, images: Features, texts: Features
) -> list[Arithmetic]:
    """Returns some images plus and minus the text of another, and the nearest images.

    Source: ALIGN, section 5.
    """
    results = []
    chosen = _choose(len(images), 2 * _ARITHMETIC)
    for i, other in zip(chosen[::2], chosen[1::2], strict=False):
        others_texts = np.flatnonzero(dataset.text_group == dataset.image_group[other])
        if not len(others_texts):
            continue
        j = int(others_texts[0])
        for sign, weight in (("+", 2.0), ("−", -2.0)):
            query = retrieval.arithmetic(images[i], texts[j], weight)
            nearest, _ = retrieval.nearest(query[None], images, _SHOWN, np.array([i]))
            results.append(
                Arithmetic(
                    picture=context.thumbnail(dataset.source, i),
                    text=dataset.texts[j],
                    sign=sign,
                    found=[context.thumbnail(dataset.source, k) for k in nearest[0] if k >= 0],
                )
            )
    return results


def _similarity(context: EvalContext, dataset: Dataset, images: Features) -> Similarity:
    chosen: list[int] = []
    texts: list[int] = []
    for i in context.choose(dataset, len(dataset)):
        own = np.flatnonzero(dataset.text_group == dataset.image_group[i])
        if len(own) and int(own[0]) not in texts:
            chosen.append(i)
            texts.append(int(own[0]))
        if len(chosen) == _BATCH:
            break
    features = context.encode_texts([dataset.texts[j] for j in texts])
    return Similarity(
        set=dataset.name,
        pictures=[context.thumbnail(dataset.source, i) for i in chosen],
        texts=[dataset.texts[j] for j in texts],
        matrix=(images[chosen] @ features.T).tolist(),
    )
