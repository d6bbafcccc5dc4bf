"""Datasets to evaluate on: the standard ones as data, and opening these and the user's own."""

from clip_jax.evaluation.datasets.dataset import Dataset, MissingDataset, Split, Splits
from clip_jax.evaluation.datasets.dataset_loader import open_dataset
from clip_jax.evaluation.datasets.options import read_labels
from clip_jax.evaluation.datasets.registry import StandardDataset, expand, names, standard

__all__ = [
    "Dataset",
    "MissingDataset",
    "Split",
    "Splits",
    "StandardDataset",
    "expand",
    "names",
    "open_dataset",
    "read_labels",
    "standard",
]
