"""The libraries that released the weights, where they are installed (the extra `parity`)."""

from __future__ import annotations

from typing import Any

import pytest


def torchvision() -> None:
    """Imports torchvision, whose operators may be missing beside a torch for CPUs.

    Its Python alone is wanted.
    """
    torch = pytest.importorskip("torch")
    register = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        pytest.importorskip("torchvision")
    finally:
        torch.library.register_fake = register


def open_clip() -> Any:
    """open_clip; the test is skipped without it."""
    torchvision()
    return pytest.importorskip("open_clip")


def transformers() -> Any:
    """transformers; the test is skipped without it."""
    torchvision()
    return pytest.importorskip("transformers")
