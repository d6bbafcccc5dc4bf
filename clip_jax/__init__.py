"""Train, evaluate and serve CLIP models in JAX.

    model, preprocess, tokenize = clip_jax.load("runs/quickstart")

Importing this package imports neither JAX nor a model; the functions below do when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clip_jax import plan
from clip_jax.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from clip_jax.models.clip import CLIP

__all__ = ["__version__", "available_models", "load", "pipeline", "plan", "tokenize"]


def available_models() -> list[str]:
    """The names of the known architectures, such as `ViT-B/32`."""
    from clip_jax.models.architectures import available

    return available()


def load(
    model: str, weights: str | None = None, **options: Any
) -> tuple[CLIP, Callable[..., Any], Callable[..., np.ndarray]]:
    """Loads a trained model with its preprocessing and its tokenizer.

    `load("runs/mine")` loads a run, `load("ViT-B/32", weights="ViT-B-32.pt")` a file of another
    library, and `load("folder")` a folder of another library.
    `clip_jax.inference.pretrained.load` describes the options, the results and the errors.
    """
    from clip_jax.inference import pretrained

    return pretrained.load(model, weights, **options)


def pipeline(task: str = "zero-shot-image-classification", model: str = "", **options: Any) -> Any:
    """Returns a function from images and labels to labels with scores, or from images to captions.

    `clip_jax.inference.pretrained.pipeline` describes the options and the errors.
    """
    from clip_jax.inference import pretrained

    return pretrained.pipeline(task, model, **options)


def tokenize(
    texts: str | list[str], context_length: int = 77, truncate: bool = False
) -> np.ndarray:
    """Tokenizes texts with CLIP's tokenizer.

    Returns:
      int32 [texts, context_length].

    Raises:
      UserError: a text has too many tokens and `truncate` is False.
    """
    from clip_jax import tokenizers

    return tokenizers.load("clip", context_length)(texts, truncate=truncate)
