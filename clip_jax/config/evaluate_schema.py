"""The config keys of `evaluate`, see `schema`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.config.keys import Group, key

DTYPES = ("float32", "bfloat16", "mixed")


@dataclasses.dataclass(frozen=True)
class Evaluate(Group):
    """Evaluation during training and by --mode=evaluate."""

    every: int = key(5_000, "steps between two evaluations", at_least=1)
    at: tuple[int, ...] = key((), "steps of further evaluations, such as (100, 200, 400)")
    batch_size: int = key(64, "images, or texts, that each device takes at a time", at_least=1)
    pictures: int = key(
        12, "random test images that are shown with their most likely labels", at_least=0
    )
    templates: tuple[str, ...] = key(
        ("{}", "a photo of a {}."), "prompts of zero-shot classification; {} is the label"
    )
    caption: str = key("{caption}", "template of a test image's caption in retrieval")
    suite: tuple[str, ...] = key(
        ("zero_shot", "retrieval"),
        "evaluators: zero_shot, classifier, linear_probe, few_shot, retrieval, "
        "validation_loss, robustness, bias, scoring, perplexity, captioning, overlap, or your own "
        "as my_package.my_module:MyClass",
    )
    sets: Mapping[str, Any] = key(
        {},
        "test sets of your own: name → data, and, where the data itself has no labels, labels (a "
        "json list of names) and label (a field)",
        user_named=True,
    )
    standard: tuple[str, ...] = key((), "standard test sets, such as ('cifar10', 'imagenet')")
    folder: str = key("", "where the standard sets are")
    dtype: str = key("", "empty: the run's own, float32 for other weights", choices=("", *DTYPES))
    scoring: str = key(
        "sum",
        "the score of a prompt in the evaluator scoring, by a decoder: the sum or the mean of the "
        "log-probabilities of its tokens",
        choices=("sum", "mean"),
    )
    beams: int = key(
        1, "captions that beam search keeps in the evaluator captioning; 1: none", at_least=1
    )
    max_num_patches: int = key(
        0,
        "the most patches of an image, for a model that keeps the shapes of images (naflex); 0: "
        "as the model has them",
        at_least=0,
        at_most=(1 << 16) - 1,
    )
    loss_batch: int = key(256, "pairs of a batch of validation_loss", at_least=2)
    shots: tuple[int, ...] = key((1, 2, 4, 8, 16), "images per class in few-shot learning")
    seeds: int = key(3, "draws of those images", at_least=1)
    keep_features: bool = key(
        True, "keep features on disk, so that another evaluation need not encode again"
    )
