"""The losses of held-out pairs: contrastive, and of the words of their captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.evaluation.report import tables
from clip_jax.evaluation.report.document import datasets_with
from clip_jax.evaluation.report.markup import Markup, join
from clip_jax.evaluation.report.tables import Column


def validation_losses(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table with the loss and the accuracies within a batch, by dataset."""
    columns = [
        Column("Set", numeric=False),
        Column("Loss"),
        Column("Image to text", hint="the image's own text has the largest logit of its batch"),
        Column("Text to image", hint="the text's own image has the largest logit of its batch"),
        Column("Pairs of a batch"),
        Column("Batches"),
    ]
    rows = [
        [
            tables.dataset_name(title, dataset.get("split")),
            tables.plain(losses.get("loss"), 4),
            tables.percent(losses.get("image_to_text_accuracy")),
            tables.percent(losses.get("text_to_image_accuracy")),
            tables.count(losses.get("batch_size")),
            tables.count(losses.get("batches")),
        ]
        for title, dataset, losses in datasets_with(results, "validation_loss")
    ]
    if not rows:
        return None
    note = tables.notes("Losses of batches of another size do not compare.")
    return join(tables.table("Validation loss", columns, rows), note)


def perplexities(results: Mapping[str, Any]) -> Markup | None:
    """Returns a table with the losses of words, by dataset."""
    columns = [
        Column("Set", numeric=False),
        Column("Perplexity"),
        Column("Loss", hint="mean cross-entropy of a token by the decoder, in nats"),
        Column("Loss of words", hint="minus the mean log-probability of a caption's words"),
        Column("Captions"),
    ]
    rows = [
        [
            tables.dataset_name(title, dataset.get("split")),
            tables.plain(values.get("perplexity"), 4),
            tables.plain(values.get("loss"), 4),
            tables.plain(values.get("words_loss"), 4),
            tables.count(values.get("captions")),
        ]
        for title, dataset, values in datasets_with(results, "perplexity")
    ]
    if not rows:
        return None
    note = tables.notes("Losses of models with other tokenizers do not compare.")
    return join(note, tables.table("Perplexity", columns, rows))
