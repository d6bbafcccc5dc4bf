"""Imports the libraries that released the weights, beside a torch for CPUs."""

from __future__ import annotations

import importlib
from typing import Any


def import_library(name: str) -> Any:
    """Imports open_clip or transformers.

    Both import torchvision, whose operators may be missing beside a torch for CPUs. Only its
    Python code is wanted.
    """
    import torch

    register = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = register
    return importlib.import_module(name)
