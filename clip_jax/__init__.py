"""CLIP in JAX: `model, preprocess, tokenize = clip_jax.load("runs/quickstart")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clip_jax import plan
from clip_jax.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from clip_jax.inference.pretrained import ZeroShotClassifier
    from clip_jax.models.clip import CLIP

__all__ = ["__version__", "available_models", "load", "pipeline", "plan", "tokenize"]


def available_models() -> list[str]:
    """The names of the architectures that this version knows."""
    from clip_jax.models.architectures import ARCHITECTURES

    return list(ARCHITECTURES)


def load(
    model: str, weights: str | None = None, **options: Any
) -> tuple[CLIP, Callable[..., Any], Callable[..., np.ndarray]]:
    """A trained model with its preprocessing and tokenizer.

    `load("runs/mine")` reads a run, `load("ViT-B/32", weights="ViT-B-32.pt")` another library's
    file, `load("folder")` one of its folders; `pretrained.load` has the options.
    """
    from clip_jax.inference import pretrained

    return pretrained.load(model, weights, **options)


def pipeline(
    task: str = "zero-shot-image-classification", model: str = "", **options: Any
) -> ZeroShotClassifier:
    """A function from a picture and labels to labels with scores; see `pretrained.pipeline`."""
    from clip_jax.inference import pretrained

    return pretrained.pipeline(task, model, **options)


def tokenize(
    texts: str | list[str], context_length: int = 77, truncate: bool = False
) -> np.ndarray:
    """CLIP's own tokens of texts: int32 [texts, context_length].

    Raises:
      UserError: a text is longer and `truncate` is False.
    """
    from clip_jax import tokenizers

    return tokenizers.load("clip", context_length)(texts, truncate=truncate)
