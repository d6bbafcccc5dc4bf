"""Test sets: the standard ones as data, and opening these and the user's own."""

from clip_jax.evaluation.datasets.dataset_loader import open_set, read_labels
from clip_jax.evaluation.datasets.registry import StandardSet, expand, names, standard
from clip_jax.evaluation.datasets.testset import MissingSet, Split, TestSet

__all__ = [
    "MissingSet",
    "Split",
    "StandardSet",
    "TestSet",
    "expand",
    "names",
    "open_set",
    "read_labels",
    "standard",
]
