"""Captions that a model writes, compared with those of people: CIDEr-D and BLEU-4."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.datasets.dataset_loader import nothing_left_out
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.metrics import captions
from clip_jax.evaluation.report import captions as sections
from clip_jax.evaluation.report.section import Section, shortened, without_thumbnails
from clip_jax.evaluation.serialization import Thumbnail
from clip_jax.inference.captions import generation_with
from clip_jax.models.head import DECODER


@dataclasses.dataclass(frozen=True)
class Caption:
    """An image with its written caption and its true ones.

    Attributes:
      picture: the image.
      name: the name of its file.
      caption: the written caption.
      truths: the true captions.
    """

    picture: Thumbnail
    name: str
    caption: str
    truths: list[str]


@dataclasses.dataclass(frozen=True)
class CaptioningResult(Result):
    """How close written captions are to those of people.

    Attributes:
      cider: the mean CIDEr-D of the images, from 0 to 10. Papers state it times 100.
      bleu4: BLEU-4 of the set, from 0 to 1.
      images: the number of images that have captions.
      beams: the captions that beam search kept; 1: the likeliest token was taken each time.
      examples: random images.
    """

    cider: float
    bleu4: float
    images: int
    beams: int
    examples: list[Caption]

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns `cider` and `bleu4`."""
        return {"cider": self.cider, "bleu4": self.bleu4}


class Captioning(Evaluator[CaptioningResult]):
    """Writes a caption of each image, and compares it with all true ones."""

    name = "captioning"
    result = CaptioningResult
    heads = (DECODER,)

    def needs(self, dataset: Dataset) -> str:
        """Needs captions."""
        return "" if dataset.texts else "captions"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[Any]:
        """Depends on the beams."""
        return [context.options.beams]

    def run(self, context: EvalContext, dataset: Dataset) -> CaptioningResult:
        """Writes captions and computes the metrics."""
        beams, length = context.options.beams, context.encoder.config.text.context_length
        options = generation_with(context.tokenizer, max_tokens=length, beams=beams)
        with (
            nothing_left_out(dataset.name),
            context.progress(dataset.name, len(dataset)) as advance,
        ):
            rows = context.encoder.captions(
                dataset.source, context.preprocess, options, advance=advance
            )
        written = [context.tokenizer.decode(row.tolist()) for row in rows]
        own = [[dataset.texts[j] for j in numbers] for numbers in dataset.texts_of_images()]
        compared = [i for i, texts in enumerate(own) if texts]
        words = [captions.words(written[i]) for i in compared]
        references = [[captions.words(text) for text in own[i]] for i in compared]
        chosen = context.choose(dataset, context.options.pictures)
        return CaptioningResult(
            cider=float(np.mean(captions.cider_d(words, references))),
            bleu4=captions.bleu4(words, references),
            images=len(compared),
            beams=beams,
            examples=[
                Caption(
                    picture=context.thumbnail(dataset.source, i),
                    name=dataset.source[i].name,
                    caption=written[i],
                    truths=own[i],
                )
                for i in chosen
            ],
        )

    def sections(self, results: Mapping[str, CaptioningResult]) -> Iterable[Section]:
        """Returns the metrics, and random images with their captions."""
        yield Section("captioning", "Captioning", without_thumbnails(sections.metrics))
        yield Section("captions", "Captions", shortened(24, sections.examples), detail=True)
