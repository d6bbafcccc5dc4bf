"""CLIP in JAX: `model, preprocess, tokenize = clip_jax.load("runs/quickstart")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from clip_jax.models.clip import CLIP

__version__ = "0.1.0"
__all__ = ["available_models", "load", "tokenize"]


def available_models() -> list[str]:
    """The names of the architectures that this version knows."""
    from clip_jax.models.zoo import ARCHITECTURES

    return list(ARCHITECTURES)


def load(path: str) -> tuple[CLIP, Callable[..., Any], Callable[..., np.ndarray]]:
    """A trained model with its preprocessing and tokenizer; see `pretrained.load`."""
    from clip_jax import pretrained

    return pretrained.load(path)


def tokenize(
    texts: str | list[str], context_length: int = 77, truncate: bool = False
) -> np.ndarray:
    """CLIP's own tokens of texts: int32 [texts, context_length].

    Raises:
      UserError: a text is longer and `truncate` is False.
    """
    from clip_jax import tokenizers

    return tokenizers.load("clip", context_length)(texts, truncate=truncate)
