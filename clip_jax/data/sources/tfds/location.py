"""Where TensorFlow Datasets prepares data sets, and the command that does it."""

from __future__ import annotations

import importlib.util
import os

COMMAND = "python -m clip_jax tfds"


def is_installed() -> bool:
    """Returns whether TensorFlow Datasets can be imported."""
    try:
        return importlib.util.find_spec("tensorflow_datasets") is not None
    except ValueError:  # a module that is blocked
        return False


def data_dir() -> str:
    """Returns where data sets are prepared: TFDS_DATA_DIR, or TensorFlow Datasets' own default."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
