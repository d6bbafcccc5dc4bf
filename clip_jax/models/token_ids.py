"""The input of text towers: checks of what a caller passes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from clip_jax.errors import UserError
from clip_jax.models.model_config import TextTower

_HOW = "encode_text takes whole numbers [batch, context], as tokenize([…]) makes them"


def split_windows(
    tokens: Any, config: TextTower
) -> tuple[Int[Array, "rows context"], Bool[Array, "batch windows"]]:
    """Checks texts in windows, and returns the rows of all windows and which of them there are.

    A window that a text does not have, of -1 everywhere, is replaced by the text's first.

    Args:
      tokens: [batch, windows, context], as `tokenizers.windows` makes them.
      config: the text tower's config.

    Raises:
      UserError: as for `checked_tokens`, or a text has no first window.
    """
    traced = isinstance(tokens, jax.core.Tracer)
    windows = tokens if traced else jnp.asarray(np.asarray(tokens))
    there = windows[..., 0] >= 0
    if not traced and not bool(there[:, 0].all()):
        raise UserError(f"a text has no first window; {_HOW}")
    rows = jnp.where(there[..., None], windows, windows[:, :1])
    return checked_tokens(rows.reshape(-1, rows.shape[-1]), config), there


def window_mean(
    features: Float[Array, "rows embed_dim"], there: Bool[Array, "batch windows"]
) -> Float[Array, "batch embed_dim"]:
    """Returns the mean of the features of each text's windows; arguments from `split_windows`."""
    each = features.reshape(*there.shape, features.shape[-1]) * there[..., None]
    return each.sum(axis=1) / there.sum(axis=1, keepdims=True)


def checked_tokens(tokens: Any, config: TextTower) -> Int[Array, "batch context"]:
    """Checks the argument of `encode_text`, and returns it as an array for a tower.

    Looking up an id that is not in the table returns meaningless values without an error, so ids
    are compared with the vocabulary here. Traced values are not checked.

    Args:
      tokens: [batch, context] of NumPy, JAX or torch, or lists of ids.
      config: the text tower's config.

    Raises:
      UserError: tokens are texts, have a wrong shape or type, or are of another tokenizer.
    """
    if isinstance(tokens, jax.core.Tracer):
        return tokens
    if not isinstance(tokens, jax.Array):
        try:
            tokens = np.asarray(tokens)
        except Exception as error:  # each library has its own
            raise UserError(
                f"{type(tokens).__name__} is no array ({error!s:.80}); {_HOW}"
            ) from None
    if tokens.dtype.kind in "OSU":
        raise UserError(f"texts are not tokens; {_HOW}")
    if tokens.dtype.kind not in "ui":
        raise UserError(f"tokens of {tokens.dtype} mean nothing here; {_HOW}")
    if tokens.ndim != 2:
        hint = "; the batch is missing: tokens[None]" if tokens.ndim == 1 else ""
        raise UserError(f"tokens are of shape {tuple(tokens.shape)}{hint}; {_HOW}")
    most = config.context_length
    if not 1 <= tokens.shape[1] <= most:
        raise UserError(
            f"{tokens.shape[1]} tokens a text, this model takes {most}: use the tokenize "
            "that clip_jax.load gives with it"
        )
    if tokens.size and (not isinstance(tokens, jax.Array) or tokens.is_fully_addressable):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= config.vocab_size:
            raise UserError(
                f"tokens from {low} to {high} are not of this model's tokenizer, which has the ids "
                f"0 to {config.vocab_size - 1}: use the tokenize that clip_jax.load gives with it"
            )
    return jnp.asarray(tokens, jnp.int32)
