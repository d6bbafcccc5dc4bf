"""Scores of pairs by a model: the CLIP score, linear heads, and image features.

The CLIP score is the cosine of the features of image and caption (DataComp's strongest plain
baseline keeps the top 30 %; Gadre et al. 2023). A data-filtering network is a CLIP that was
fine-tuned on clean pairs (Fang et al. 2023, "Data Filtering Networks").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from clip_jax.curation.scores.heads import Head
from clip_jax.data import captions
from clip_jax.data.example import REASONS, Fields, PairError, only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.sources import Source, read_pair
from clip_jax.evaluation.features import Advance, Encoder
from clip_jax.evaluation.metrics.zero_shot import ensemble
from clip_jax.tokenizers import Tokenizer

CHUNK = 1 << 14  # pairs whose pixels are encoded before their captions are


@dataclasses.dataclass
class Scores:
    """The scores of consecutive pairs.

    Attributes:
      values: for each column float32 [pairs]; NaN: no value.
      features: the unit-norm features of the images, float32 [pairs, embed_dim]; NaN where the
        image cannot be read.
      reasons: int8 [pairs], the number in `example.REASONS` of why a pair has no CLIP score; -1:
        it has one.
      complaint: about one of the pairs without a score.
    """

    values: dict[str, Float[np.ndarray, " pairs"]]
    features: Float[np.ndarray, "pairs embed_dim"]
    reasons: np.ndarray
    complaint: str = ""

    def broken(self) -> np.ndarray:
        """Returns the number of pairs without a score by reason, int64 [reasons]."""
        return np.bincount(self.reasons[self.reasons >= 0], minlength=len(REASONS))


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores pairs by a model.

    Attributes:
      encoder: the model on its mesh.
      preprocess: the preprocessing of the model.
      tokenizer: the tokenizer of the model.
      templates: caption templates; the first that a pair fills gives its caption.
      average: whether the features of the captions by all templates are averaged in its place.
      heads: linear heads on the features of the image.
      column: the name of the CLIP score.
      threads: the number of threads that decode; 0: one per processor.
    """

    encoder: Encoder
    preprocess: Preprocess
    tokenizer: Tokenizer
    templates: tuple[str, ...] = ("{caption}",)
    average: bool = False
    heads: tuple[Head, ...] = ()
    column: str = "clip_score"
    threads: int = 0

    def score(
        self, source: Source, count: int, advance: Advance = lambda _: None
    ) -> Iterator[Scores]:
        """Yields the scores of the first `count` pairs of a source, in parts.

        Args:
          source: the pairs.
          count: the number of pairs.
          advance: called with the number of pairs of each finished batch.
        """
        size = max(1, CHUNK // self.encoder.rows) * self.encoder.rows
        for start in range(0, count, size):
            yield self._score(source, start, min(size, count - start), advance)

    def _score(self, source: Source, start: int, count: int, advance: Advance) -> Scores:
        tokens: list[np.ndarray | None] = [None] * count
        reasons, lost = np.full(count, -1, np.int8), np.zeros(count, bool)
        complaints: dict[int, str] = {}

        def note(row: int, error: PairError) -> None:
            reasons[row] = REASONS.index(error.reason)
            complaints[row] = str(error)

        def pixels(row: int) -> np.ndarray:
            try:
                pair = read_pair(source, start + row)
                try:
                    tokens[row] = self._tokens(pair.text, pair.name)
                except PairError as error:
                    note(row, error)
                with only_pair_errors("picture", pair.name):
                    return self.preprocess(decode(pair.image, pair.name))
            except PairError as error:
                note(row, error)
                lost[row] = True
                return np.zeros(self.preprocess.shape, np.uint8)

        images = self.encoder.pixels(count, pixels, self.threads, advance)
        images[lost] = np.nan
        values = {self.column: self._cosines(images, tokens)}
        for head in self.heads:
            values |= head(images)
        complaint = complaints[min(complaints)] if complaints else ""
        return Scores(values, images, reasons, complaint)

    def _tokens(self, text: Fields, name: str) -> np.ndarray:
        """Returns the tokens of a pair's captions, int32 [captions, context]."""
        with only_pair_errors("caption", name):
            most = len(self.templates) if self.average else 1
            texts = captions.filled(self.templates, text, name, most)
            return self.tokenizer(texts, truncate=True)

    def _cosines(
        self, images: Float[np.ndarray, "pairs embed_dim"], tokens: Sequence[np.ndarray | None]
    ) -> Float[np.ndarray, " pairs"]:
        """Returns the CLIP score of each pair; NaN without an image or a caption."""
        cosines = np.full(len(images), np.nan, np.float32)
        groups = [(row, rows) for row, rows in enumerate(tokens) if rows is not None]
        if groups:
            texts = self.encoder.tokens(np.concatenate([rows for _, rows in groups]))
            if self.average:
                texts = ensemble(texts, [len(rows) for _, rows in groups])
            numbers = [row for row, _ in groups]
            cosines[numbers] = np.sum(images[numbers] * texts, axis=1)
        return cosines


def columns_of(scorer: Scorer, model: str) -> dict[str, str]:
    """Returns the description of each column that a scorer gives.

    Args:
      scorer: the scorer.
      model: the name of its model.
    """
    how = " averaged" if scorer.average else ""
    texts = " or ".join(scorer.templates)
    named = {scorer.column: f"cosine of image and caption ({texts}{how}) by {model}"}
    for head in scorer.heads:
        named |= dict.fromkeys(
            head.columns, f"linear head {head.name} on image features of {model}"
        )
    return named
