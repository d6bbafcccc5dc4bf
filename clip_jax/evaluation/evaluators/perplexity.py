"""The perplexity of held-out captions, given their images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from clip_jax.evaluation.context import EvalContext
from clip_jax.evaluation.datasets import Dataset
from clip_jax.evaluation.datasets.dataset_loader import nothing_left_out
from clip_jax.evaluation.evaluators.protocol import Evaluator, Result
from clip_jax.evaluation.report import losses
from clip_jax.evaluation.report.section import Section, without_thumbnails
from clip_jax.models.scoring import HEADS
from clip_jax.tokenizers import packing


@dataclasses.dataclass(frozen=True)
class PerplexityResult(Result):
    """The losses of held-out captions.

    Attributes:
      loss: the mean cross-entropy of the words and ends of all captions, in nats; None without a
        decoder. A decoder of both directions counts forward.
      perplexity: its exponential.
      words_loss: minus the mean log-probability of the distinct words of a caption; None without a
        head that predicts words.
      captions: the number of captions.
      tokens: the number of words and ends.
    """

    loss: float | None
    perplexity: float | None
    words_loss: float | None
    captions: int
    tokens: int

    def flat_metrics(self) -> Mapping[str, float | None]:
        """Returns `loss`, `perplexity` and `words_loss`."""
        return {"loss": self.loss, "perplexity": self.perplexity, "words_loss": self.words_loss}


class Perplexity(Evaluator[PerplexityResult]):
    """How well the heads that predict words predict captions of images that training does not see.

    Every image counts with each of its captions.
    """

    name = "perplexity"
    result = PerplexityResult
    heads = HEADS
    curves = ("loss",)

    def needs(self, dataset: Dataset) -> str:
        """Needs captions."""
        return "" if dataset.texts else "captions"

    def depends_on(self, context: EvalContext, dataset: Dataset) -> Sequence[str]:
        """Depends on nothing else."""
        return ()

    def run(self, context: EvalContext, dataset: Dataset) -> PerplexityResult:
        """Computes the means over all pairs."""
        of_images = dataset.texts_of_images()
        pairs = [(i, j) for i, numbers in enumerate(of_images) for j in numbers]
        images, texts = np.array(pairs, np.int64).reshape(-1, 2).T
        tokens = context.tokenizer(dataset.texts, truncate=True)
        span = np.stack([packing.word_span(row, context.tokenizer) for row in tokens])
        captions = {"tokens": tokens[texts], "span": span[texts]}
        with nothing_left_out(dataset.name), context.progress(dataset.name, len(images)) as advance:
            sums = {
                name: float(np.sum(values, dtype=np.float64))
                for name, values in context.encoder.caption_losses(
                    dataset.source, context.preprocess, images, captions, advance=advance
                ).items()
            }
        count = sums.get("tokens", 0)
        loss = sums["decoder"] / count if count else None
        return PerplexityResult(
            loss=loss,
            perplexity=None if loss is None else math.exp(min(loss, 700.0)),
            words_loss=sums["words"] / sums["captions"] if sums.get("captions") else None,
            captions=len(images),
            tokens=int(count),
        )

    def sections(self, results: Mapping[str, PerplexityResult]) -> Iterable[Section]:
        """Returns the section with the table of losses."""
        yield Section("perplexity", "Perplexity", without_thumbnails(losses.perplexities))
