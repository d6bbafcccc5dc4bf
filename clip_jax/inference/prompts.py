"""The prompts of labels, arranged for the head of a model that scores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from clip_jax.errors import UserError
from clip_jax.models.head import DECODER
from clip_jax.models.scoring import PrefixTrees, Prompts, WordBags
from clip_jax.tokenizers import Tokenizer, packing

_PREFIXES = 128  # of a chunk
_BAGS = 4096  # prompts of a chunk


def label_prompts(
    head: str,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    score: str = "sum",
    *,
    truncate: bool = True,
) -> Prompts:
    """Arranges the prompts of labels for `scoring.label_scores`.

    The score of a label is the mean over its prompts. With a decoder, that of a prompt is the sum
    or the mean of the log-probabilities of its tokens, its end included. With the head `words`, it
    is the mean of those of its distinct words.

    Args:
      head: the name of the head, as `scoring.scoring_head` returns it.
      tokenizer: the tokenizer of the model.
      texts: the prompts of each label.
      score: `sum` or `mean`, for a decoder.
      truncate: whether prompts with too many tokens are truncated.

    Raises:
      UserError: a prompt is too long, or has no words to be scored by.
    """
    labels = [number for number, prompts in enumerate(texts) for _ in prompts]
    flat = [text for prompts in texts for text in prompts]
    rows = tokenizer(flat, truncate=truncate)
    spans = [packing.word_span(row, tokenizer) for row in rows]
    shares = [1 / len(texts[label]) for label in labels]
    if head == DECODER:
        ends = [min(int(end) + 1, rows.shape[1]) for _, end in spans]
        texts_of = [row[:end] for row, end in zip(rows, ends, strict=True)]
        firsts = [int(first) for first, _ in spans]
        return _prefix_trees(texts_of, firsts, shares, labels, score, len(texts))
    bags = [np.unique(row[first:end]) for row, (first, end) in zip(rows, spans, strict=True)]
    if empty := [text for text, bag in zip(flat, bags, strict=True) if not bag.size]:
        raise UserError(
            f"the prompt {empty[0]!r:.80} has no words, by which this model scores labels: give "
            "its label a name with words"
        )
    return _word_bags(bags, shares, labels, len(texts))


def count_equal(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> int:
    """Returns how many prompts have the tokens of another one of another text when truncated.

    Args:
      tokenizer: the tokenizer of the model.
      texts: the prompts of each label.
    """
    rows = tokenizer(sorted({text for prompts in texts for text in prompts}), truncate=True)
    full = [tuple(row) for row in rows if packing.word_span(row, tokenizer)[1] >= len(row) - 1]
    return len(full) - len(set(full))


def _word_bags(
    bags: list[np.ndarray], shares: list[float], labels: list[int], count: int
) -> WordBags:
    size = min(_BAGS, len(bags))
    width = max(1, *map(len, bags))
    target = np.zeros((-(-len(bags) // size) * size, width), np.int32)
    weight, label = np.zeros(target.shape, np.float32), np.zeros(len(target), np.int32)
    for i, (bag, share) in enumerate(zip(bags, shares, strict=True)):
        target[i, : len(bag)] = bag
        weight[i, : len(bag)] = share / max(len(bag), 1)
    label[: len(labels)] = labels
    chunks = len(target) // size, size
    return WordBags(
        target.reshape(*chunks, width),
        weight.reshape(*chunks, width),
        label.reshape(chunks),
        labels=count,
    )


@dataclasses.dataclass
class _Tree:
    """The prefixes of the prompts of a chunk; the first is the empty one."""

    numbers: dict[tuple[int, ...], int] = dataclasses.field(default_factory=lambda: {(): 0})
    prompts: list[int] = dataclasses.field(default_factory=list)

    def added(self, text: np.ndarray) -> list[tuple[int, ...]]:
        """Returns the prefixes of a text, without the whole, that the tree does not have."""
        prefixes = (tuple(text[:n].tolist()) for n in range(1, len(text)))
        return [prefix for prefix in prefixes if prefix not in self.numbers]


def _prefix_trees(
    texts: list[np.ndarray],
    firsts: list[int],
    shares: list[float],
    labels: list[int],
    score: str,
    count: int,
) -> PrefixTrees:
    """Returns the trees of texts, which are sorted so that those of a chunk share prefixes.

    Args:
      texts: the tokens of each prompt, the last predicted one included.
      firsts: the position of the first token of each that is predicted.
      shares: the factor on the score of each prompt.
      labels: the label of each prompt.
      score: `sum` or `mean`.
      count: the number of labels.
    """
    longest = max(map(len, texts))
    most = max(_PREFIXES, longest)
    trees = [_Tree()]
    for number in sorted(range(len(texts)), key=lambda i: texts[i].tolist()):
        new = trees[-1].added(texts[number])
        if len(trees[-1].numbers) + len(new) > most or len(trees[-1].prompts) == most:
            trees.append(_Tree())
            new = trees[-1].added(texts[number])
        for prefix in new:
            trees[-1].numbers[prefix] = len(trees[-1].numbers)
        trees[-1].prompts.append(number)
    shape = len(trees), max(len(tree.prompts) for tree in trees), longest
    sources, targets = np.zeros((2, *shape), np.int32)
    weight, label = np.zeros(shape, np.float32), np.zeros(shape[:2], np.int32)
    for i, tree in enumerate(trees):
        for j, number in enumerate(tree.prompts):
            text, first = texts[number], firsts[number]
            size = len(text) - first
            starts = (tuple(text[:n].tolist()) for n in range(first, len(text)))
            sources[i, j, :size] = [tree.numbers[start] for start in starts]
            targets[i, j, :size] = text[first:]
            weight[i, j, :size] = shares[number] / (size if score == "mean" else 1)
            label[i, j] = labels[number]
    widest = max(len(tree.numbers) for tree in trees)
    nodes = [_nodes(tree, -(-widest // 16) * 16) for tree in trees]
    tokens, lengths, visible = (np.stack(x) for x in zip(*nodes, strict=True))
    return PrefixTrees(tokens, lengths, visible, sources, targets, weight, label, labels=count)


def _nodes(tree: _Tree, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the last token and the length of each prefix of a tree, and what it begins with."""
    tokens, lengths = np.zeros((2, size), np.int32)
    visible = np.eye(size, dtype=bool)
    for prefix, number in tree.numbers.items():
        lengths[number] = len(prefix)
        if prefix:
            tokens[number] = prefix[-1]
            visible[number] |= visible[tree.numbers[prefix[:-1]]]
    return tokens, lengths, visible
