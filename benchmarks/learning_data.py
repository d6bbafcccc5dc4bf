"""Training and test data of `learning.py` for both sides, and their evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import stats
from scipy.special import logsumexp

from clip_jax.data import captions, pipeline
from clip_jax.data.example import Pair, PairError
from clip_jax.data.images import decoding
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.data.rows import Prepare
from clip_jax.data.sources import Source, read_pair
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics import retrieval
from clip_jax.evaluation.metrics.zero_shot import top_k
from clip_jax.tokenizers import Tokenizer

LOSS_BATCH = 128  # rows of a batch of the test loss


class Subset:
    """Some pairs of a source, as a source."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> Pair:
        return self._source[self._numbers[i]]


def split(source: Source, every: int) -> tuple[Any, Any]:
    """A source without every `every`-th pair, and those pairs."""
    numbers = range(len(source))
    training = [i for i in numbers if i % every]
    return Subset(source, training), Subset(source, [i for i in numbers if not i % every])


def all_captions(pair: Pair, template: str) -> list[str]:
    """Every caption of a pair: one for each alternative of the template's field.

    Raises:
      PairError: a field is missing.
    """
    lists = {
        field: texts
        for field in captions.fields(template)
        if isinstance(texts := captions.field_value(pair.text, field), captions.Alternatives)
        and texts
    }
    count = max(map(len, lists.values()), default=1)
    turns = (
        {**pair.text, **{field: texts[turn % len(texts)] for field, texts in lists.items()}}
        for turn in range(count)
    )
    return [captions.fill(template, text, pair.name) for text in turns]


def our_batches(source: Any, prepare: Prepare, batch_size: int, seed: int) -> pipeline.Batches:
    """Batches of clip_jax's pipeline: an epoch has each image once, with a random caption."""
    dataset = pipeline.batches(source, prepare, batch_size=batch_size, seed=seed)
    return pipeline.iterator(dataset, threads=2, workers=0, prefetch=4, max_bad_fraction=0.01)


def open_clip_batches(
    source: Any, template: str, tokenizer: Tokenizer, model: Any, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Batches as open_clip's `data.py` makes them from a table of images and captions.

    A row is an image with one of its captions. An epoch has each row once, in random order; rows
    that do not fill a batch are left out. Images go through open_clip's training transform.
    """
    import torch
    from open_clip.transform import image_transform

    vision = model.vision
    transform = image_transform(vision.image_size, True, mean=vision.mean, std=vision.std)
    rows = [
        (i, caption)
        for i in range(len(source))
        for caption in all_captions(read_pair(source, i), template)
    ]
    if len(rows) < batch_size:
        raise UserError(f"{len(rows)} captioned pictures make no batch of {batch_size}")
    torch.manual_seed(seed)
    while True:
        order = torch.randperm(len(rows)).tolist()
        for first in range(0, len(rows) - batch_size + 1, batch_size):
            chosen = [rows[j] for j in order[first : first + batch_size]]
            pictures = [
                transform(decoding.decode((pair := read_pair(source, i)).image, pair.name))
                for i, _ in chosen
            ]
            tokens = tokenizer([caption for _, caption in chosen], truncate=True)
            yield {"image": torch.stack(pictures), "tokens": tokens}


class TestSet(NamedTuple):
    """Images and texts on which both sides are evaluated.

    image: uint8 [n, size, size, 3].
    tokens: all distinct captions, int32 [m, context].
    image_group, text_group: equal numbers mark what belongs together, [n] and [m].
    partner: for each image, the index of its first caption in `tokens`.
    label, label_tokens: for each image the index of its label among all labels, and their prompts;
      None if images have no labels.
    """

    image: np.ndarray
    tokens: np.ndarray
    image_group: np.ndarray
    text_group: np.ndarray
    partner: np.ndarray
    label: np.ndarray | None
    label_tokens: np.ndarray | None


def read_test_set(
    source: Any, template: str, tokenizer: Tokenizer, size: int, label: str, prompt: str
) -> TestSet:
    """Reads a whole test set, without the pairs that cannot be used.

    label: the field with an image's label; no labels if it is empty or if a pair lacks the field.
    """
    preprocess = Preprocess(size)
    pixels, partner, groups, labels = [], [], [], []
    places: dict[str, int] = {}
    text_group: list[int] = []
    for i in range(len(source)):
        try:
            pair = read_pair(source, i)
            texts = all_captions(pair, template)
            pixels.append(preprocess(decoding.decode(pair.image, pair.name)))
        except PairError:
            continue
        # images with the same caption, such as drawings of one emoji, belong together
        group = text_group[places[texts[0]]] if texts[0] in places else len(pixels)
        for text in texts:
            if text not in places:
                places[text] = len(places)
                text_group.append(group)
        partner.append(places[texts[0]])
        groups.append(group)
        labels.append(captions.field_value(pair.text, label) if label else None)
    if len(pixels) < 2:
        raise UserError(f"{source!r} holds {len(pixels)} usable pairs: a test needs 2 or more")
    names = sorted({str(name) for name in labels})
    known = None not in labels and len(names) > 1
    return TestSet(
        np.stack(pixels),
        tokenizer(list(places), truncate=True),
        np.array(groups),
        np.array(text_group),
        np.array(partner),
        np.array([names.index(str(name)) for name in labels]) if known else None,
        tokenizer([prompt.replace("{}", name) for name in names], truncate=True) if known else None,
    )


class Side(Protocol):
    """A model that is trained; see `parity.Ours` and `parity.Theirs`."""

    def features(self, images: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit-norm features of images and texts."""
        ...

    def logit_scale_and_bias(self) -> tuple[float, float]:
        """The factor on the cosines, and the bias added to them."""
        ...


def evaluate(side: Side, test: TestSet, sigmoid: bool) -> dict[str, float]:
    """Test loss, recall both ways and zero-shot accuracy (percent), and the logit scale."""
    count = len(test.tokens)
    prompts = () if test.label_tokens is None else (test.label_tokens,)
    image, text = side.features(test.image, np.concatenate([test.tokens, *prompts]))
    image, text = image.astype(np.float64), text.astype(np.float64)
    scale, bias = side.logit_scale_and_bias()
    metrics = {"test loss": batch_loss(image, text[test.partner], scale, bias, sigmoid)}
    recalls = retrieval.recalls(image, text[:count], test.image_group, test.text_group)
    for k in ("r1", "r10"):
        for way, short in (("image_to_text", "i→t"), ("text_to_image", "t→i")):
            metrics[f"{k.upper().replace('R', 'R@')} {short} %"] = (
                100 * getattr(recalls, way)[k].value
            )
    if test.label is not None:
        metrics["zero-shot %"] = 100 * top_k(image @ text[count:].T, test.label)["top1"]
    return {**metrics, "logit scale": scale}


def batch_loss(
    image: np.ndarray, text: np.ndarray, scale: float, bias: float = 0.0, sigmoid: bool = False
) -> float:
    """The mean loss of full batches of `LOSS_BATCH` pairs in a fixed random order.

    Args:
      image, text: unit-norm features [n, d]; row i of both is a pair.
      scale, bias: of the logits.
      sigmoid: use the loss of SigLIP instead of CLIP's.
    """
    size = min(LOSS_BATCH, len(image))
    order = np.random.default_rng(0).permutation(len(image))
    losses = []
    for first in range(0, len(image) - size + 1, size):
        part = order[first : first + size]
        logits = scale * image[part] @ text[part].T + bias
        if sigmoid:
            signed = np.where(np.eye(size, dtype=bool), -logits, logits)
            losses.append(np.logaddexp(0, signed).sum() / size)
        else:
            own = np.diag(logits)
            both = logsumexp(logits, axis=0) + logsumexp(logits, axis=1)
            losses.append((both / 2 - own).mean())
    return float(np.mean(losses))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t; NaN for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread
