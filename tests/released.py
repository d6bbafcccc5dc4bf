"""The libraries that released the weights, where they are installed (the extra `parity`)."""

from __future__ import annotations

from typing import Any

import pytest

from tools.released_libraries import import_library


def torchvision() -> Any:
    """torchvision's Python; the test is skipped without it."""
    return _library("torchvision")


def open_clip() -> Any:
    """open_clip; the test is skipped without it."""
    return _library("open_clip")


def transformers() -> Any:
    """transformers; the test is skipped without it."""
    return _library("transformers")


def _library(name: str) -> Any:
    pytest.importorskip("torch")
    try:
        return import_library(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
