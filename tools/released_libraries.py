"""Imports the libraries that released the weights, beside a torch for CPUs."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.peers import import_torchvision


def import_library(name: str) -> Any:
    """Imports open_clip or transformers, and torchvision before it."""
    import_torchvision()
    return importlib.import_module(name)
