"""Metrics of written captions against those of people: BLEU-4 and CIDEr-D.

Sources: Papineni et al. 2002, BLEU; Vedantam et al. 2015, CIDEr. Details are those of COCO's
evaluation server (Chen et al. 2015): BLEU over the whole set with the closest reference length,
CIDEr-D with its document frequencies in the references of the set, times 10.

COCO splits words by the Penn Treebank tokenizer, a Java program. `words` agrees with it on plain
English captions; scores of captions with unusual punctuation can differ.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

Words = tuple[str, ...]
_ORDERS = (1, 2, 3, 4)  # lengths of n-grams
_SIGMA = 6.0  # words; of the Gaussian over differences of length
_SUFFIX = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-.,/][^\W_]+)*")


def words(text: str) -> Words:
    """Returns the words of a text in lower case, without punctuation.

    Contractions are two words (`do n't`, `dog 's`), hyphenated words and numbers one.
    """
    return tuple(_WORD.findall(_SUFFIX.sub(r" \1", text.lower().replace("’", "'"))))


def _counts(text: Words, order: int) -> Counter[Words]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))


def bleu4(written: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Returns the BLEU of a set with n-grams up to 4, from 0 to 1.

    Args:
      written: the words of the caption of each image.
      references: the words of the true captions of each image.
    """
    matches, totals = [0] * len(_ORDERS), [0] * len(_ORDERS)
    length = closest = 0
    for text, true in zip(written, references, strict=True):
        length += len(text)
        closest += min((abs(len(t) - len(text)), len(t)) for t in true)[1]
        for i, order in enumerate(_ORDERS):
            most: Counter[Words] = Counter()
            for reference in true:
                most |= _counts(reference, order)
            found = _counts(text, order)
            matches[i] += (found & most).total()
            totals[i] += found.total()
    if not all(matches):
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / len(_ORDERS)
    return math.exp(precision + min(0.0, 1 - closest / length))


def cider_d(written: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Returns the CIDEr-D of each image, from 0 to 10; that of a set is the mean.

    Args:
      written: the words of the caption of each image.
      references: the words of the true captions of each image.
    """
    totals = [0.0] * len(written)
    for order in _ORDERS:
        true_counts = [[_counts(text, order) for text in true] for true in references]
        documents = Counter(gram for true in true_counts for gram in set().union(*true))
        for i, (text, true) in enumerate(zip(written, true_counts, strict=True)):
            own = _weighted(_counts(text, order), documents, len(references))
            for reference, count in zip(references[i], true, strict=True):
                other = _weighted(count, documents, len(references))
                difference = len(text) - len(reference)
                penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
                totals[i] += penalty * _similarity(own, other) / len(true)
    return [10 * total / len(_ORDERS) for total in totals]


def _weighted(
    counts: Mapping[Words, int], documents: Mapping[Words, int], images: int
) -> dict[Words, float]:
    """Returns term frequencies times inverse document frequencies."""
    return {
        gram: count * (math.log(images) - math.log(max(1, documents.get(gram, 0))))
        for gram, count in counts.items()
    }


def _similarity(own: Mapping[Words, float], other: Mapping[Words, float]) -> float:
    """Returns the cosine, with the weights of the written caption clipped to the reference's."""
    norms = math.sqrt(sum(v * v for v in own.values()) * sum(v * v for v in other.values()))
    if not norms:
        return 0.0
    shared = own.keys() & other.keys()
    return sum(min(own[gram], other[gram]) * other[gram] for gram in shared) / norms
