"""Test sets: the standard ones as data, and opening these and the user's own."""

from clip_jax.evaluation.sets.opened import MissingSet, Split, TestSet, open_set, read_labels
from clip_jax.evaluation.sets.registry import StandardSet, expand, names, standard

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
