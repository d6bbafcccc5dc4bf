"""Preparations for importing the other libraries of a comparison."""

from __future__ import annotations

import contextlib


def import_torchvision() -> None:
    """Imports torchvision, whose operators may be missing beside a torch for CPUs.

    The other libraries import it and need only its Python code here.
    """
    import torch

    register = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        with contextlib.suppress(ImportError):
            import torchvision  # noqa: F401
    finally:
        torch.library.register_fake = register
