"""Tables of positions for another resolution or length of text than a model was trained for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.errors import UserError
from clip_jax.models.clip import Params
from clip_jax.models.model_config import CLIPConfig, EfficientNetConfig, ResNetConfig, TextConfig
from clip_jax.weights.configs import differences


def _grid(
    table: Float[Array, "places width"], old: int, new: int, before: int
) -> Float[Array, "new_places width"]:
    """A square of positions, after `before` that have no place, at another resolution.

    Bicubic and antialiased, as open_clip does it (torch's coefficients).
    """
    first, square = table[:before], table[before:].reshape(old, old, -1)
    square = jax.image.resize(
        square.astype(jnp.float32),
        (new, new, square.shape[-1]),
        jax.image.ResizeMethod.CUBIC_PYTORCH,
    )
    return jnp.concatenate([first, square.reshape(new * new, -1).astype(table.dtype)])


def _line(table: Float[Array, "places width"], new: int) -> Float[Array, "new_places width"]:
    """Positions of texts, of another length: linear, as open_clip does it."""
    shape = new, table.shape[1]
    line = jax.image.resize(table.astype(jnp.float32), shape, "linear", antialias=False)
    return line.astype(table.dtype)


def sized(
    config: CLIPConfig, image_size: int | None = None, context_length: int | None = None
) -> CLIPConfig:
    """The same architecture for images or texts of another size; None leaves it as it is.

    Raises:
      UserError: the model cannot have that size.
    """
    vision, text = config.vision, config.text
    if image_size is not None:
        vision = dataclasses.replace(vision, image_size=image_size)
    if context_length is not None:
        text = dataclasses.replace(text, context_length=context_length)
    return dataclasses.replace(config, vision=vision, text=text)


def resized(
    params: Params,
    config: CLIPConfig,
    image_size: int | None = None,
    context_length: int | None = None,
) -> tuple[Params, CLIPConfig]:
    """The same model for images of another size, or texts of another length.

    Args:
      params: of a model of `config`.
      image_size: pixels; None leaves it as it is.
      context_length: tokens; None leaves it as it is.

    Raises:
      UserError: the model cannot have that size.
    """
    vision, text, config = config.vision, config.text, sized(config, image_size, context_length)
    if config.vision.image_size != vision.image_size:
        params = {**params, "vision": _images(params["vision"], vision, config.vision.image_size)}
    length = config.text.context_length
    if length != text.context_length and isinstance(text, TextConfig) and text.layers:
        table = _line(params["text"]["positional_embedding"], length)
        params = {**params, "text": {**params["text"], "positional_embedding": table}}
    return params, config


def _images(params: Params, vision: Any, size: int) -> Params:
    if isinstance(vision, EfficientNetConfig):
        return params  # it has no positions
    if isinstance(vision, ResNetConfig):
        pool = params["pool"]
        table = _grid(pool["positional_embedding"], vision.image_size // 32, size // 32, 1)
        return {**params, "pool": {**pool, "positional_embedding": table}}
    patch = vision.patch_size
    table = _grid(
        params["positional_embedding"],
        vision.image_size // patch,
        size // patch,
        int(vision.pool == "class"),
    )
    return {**params, "positional_embedding": table}


def check_fits(found: CLIPConfig, wanted: CLIPConfig, path: Any, resize: bool, how: str) -> None:
    """That a file's architecture is the wanted one, but for sizes that `resize` allows to differ.

    Raises:
      UserError: names the first difference, and `how` one chooses to resize.
    """
    same = dataclasses.replace(
        wanted,
        temperature=found.temperature,
        max_logit_scale=found.max_logit_scale,
        logit_bias=found.logit_bias if wanted.logit_bias is not None else None,
    )
    sizes = {"vision.image_size", "vision.ragged", "text.context_length"}
    free = {"vision.mean", "vision.std", "vision.patch_dropout"}
    if not isinstance(found.text, TextConfig):  # BERT, whose table is longer than its texts
        free.add("text.context_length")
    for key, old, new in differences(found.to_dict(), same.to_dict()):
        if key in free or (resize and key in sizes):
            continue
        if key in sizes:
            raise UserError(
                f"{path} was trained with model.{key}={old}, not {new}: {how} resizes its positions"
            )
        raise UserError(f"{path} holds a model with model.{key}={old!r}, not {new!r}")
