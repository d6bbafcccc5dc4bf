"""Changes a trained model to another resolution or text length."""

from __future__ import annotations

import dataclasses
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.clip import Params
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.registry import kind_of
from clip_jax.weights.configs import differences


def resize_config(
    config: CLIPConfig,
    image_size: int | None = None,
    context_length: int | None = None,
    max_num_patches: int | None = None,
) -> CLIPConfig:
    """Returns the same architecture for images of another size or texts of another length.

    Args:
      config: the architecture.
      image_size: the side of an image in pixels; None leaves it as it is.
      context_length: the number of tokens; None leaves it as it is.
      max_num_patches: the most patches of an image, for a tower that keeps the shapes of images;
        None leaves it as it is.

    Raises:
      UserError: the model cannot have that size.
    """
    for key, value in (("image_size", image_size), ("max_num_patches", max_num_patches)):
        if value is None:
            continue
        sizes = config.vision.sizes()
        if key not in sizes:
            raise UserError(
                f"{key}={value}: of a {kind_of(config.vision)} only {', '.join(sizes)} can be "
                "changed"
            )
        config = config.with_vision(**{key: value})
    if context_length is not None:
        config = config.with_text(context_length=context_length)
    return config


def resize_model(
    params: Params,
    config: CLIPConfig,
    image_size: int | None = None,
    context_length: int | None = None,
    keep_positions: int = 0,
    max_num_patches: int | None = None,
) -> tuple[Params, CLIPConfig]:
    """Returns the same model for images of another size, or texts of another length.

    Args:
      params: the parameters of a model of `config`.
      config: the architecture.
      image_size: the side of an image in pixels; None leaves it as it is.
      context_length: the number of tokens; None leaves it as it is.
      keep_positions: the number of first positions of texts that stay as they are, while the others
        are stretched; Long-CLIP keeps 20. 0: all are resized alike.
      max_num_patches: the most patches of an image; None leaves it as it is.

    Returns:
      The resized parameters and their architecture.

    Raises:
      UserError: the model cannot have that size.
    """
    vision, text, config = (
        config.vision,
        config.text,
        resize_config(config, image_size, context_length, max_num_patches),
    )
    if config.vision.image_size != vision.image_size:
        tower = vision.resize_positions(params["vision"], config.vision.image_size)
        params = {**params, "vision": tower}
    if config.text.context_length != text.context_length:
        keep = {"keep": keep_positions} if keep_positions else {}
        tower = text.resize_positions(params["text"], config.text.context_length, **keep)
        params = {**params, "text": tower}
        heads = {
            name: head.resize_positions(params["heads"][name], config.text.context_length)
            for name, head in config.heads
            if name in params.get("heads", {})
        }
        params = {**params, "heads": heads} if heads else params
    return params, config


def check_fits(config: CLIPConfig, wanted: CLIPConfig, path: Any, resize: bool, how: str) -> None:
    """Checks that a file has the wanted architecture, except for sizes if `resize` is set.

    Heads do not matter.

    Args:
      config: the file's architecture.
      wanted: the architecture that is to be trained.
      path: the file, for messages.
      resize: whether positions may be resized.
      how: how the user allows that, for messages.

    Raises:
      UserError: names the first difference.
    """
    if config.log_scale != wanted.log_scale:
        raise UserError(
            f"{path} holds a model with model.log_scale={config.log_scale}, not {wanted.log_scale}"
        )
    both_biased = None not in (config.logit_bias, wanted.logit_bias)
    same = dataclasses.replace(
        wanted,
        temperature=config.temperature,
        max_logit_scale=config.max_logit_scale,
        logit_bias=config.logit_bias if both_biased else wanted.logit_bias,
    )
    theirs, ours = (one.without_heads().to_dict() for one in (config, same))
    _check_values(theirs, ours, config, path, resize, how)


def check_tower_fits(
    config: CLIPConfig, wanted: CLIPConfig, side: str, path: Any, resize: bool, how: str
) -> None:
    """Checks that one tower of a file has the wanted architecture, see `check_fits`.

    Args:
      config: the file's architecture.
      wanted: the architecture that is to be trained.
      side: the tower, `vision` or `text`.
      path, resize, how: as for `check_fits`.

    Raises:
      UserError: names the first difference.
    """

    def values(model: CLIPConfig) -> JsonObject:
        tower = {**model.to_dict()[side], "activation": activation_of(model, side)}
        sizes = {"embed_dim": model.embed_dim, "projection_width": model.projection_width}
        return {**sizes, side: tower}

    theirs, ours = values(config), values(wanted)
    if theirs[side]["kind"] != ours[side]["kind"]:  # they have not the same keys
        theirs, ours = ({side: {"kind": one[side]["kind"]}} for one in (theirs, ours))
    _check_values(theirs, ours, config, path, resize, how)


def activation_of(config: CLIPConfig, side: str) -> str:
    """Returns the activation of a tower: its own, or that of its MLPs; empty if it has neither."""
    tower = config.vision if side == "vision" else config.text
    return getattr(tower, "activation", "") or (config.activation if tower.blocks else "")


def _check_values(
    theirs: JsonObject,
    wanted: JsonObject,
    config: CLIPConfig,
    path: Any,
    resize: bool,
    how: str,
) -> None:
    """Raises UserError for the first difference of two architectures that matters."""
    sizes = {"vision.image_size", "vision.ragged", "text.context_length"}
    free = {"vision.mean", "vision.std", "vision.patch_dropout", "vision.max_num_patches"}
    if config.text.any_length:
        free.add("text.context_length")
    for key, old, new in differences(theirs, wanted):
        if key in free or (resize and key in sizes):
            continue
        if key in sizes:
            raise UserError(
                f"{path} was trained with model.{key}={old}, not {new}: {how} resizes its positions"
            )
        raise UserError(f"{path} holds a model with model.{key}={old!r}, not {new!r}")
