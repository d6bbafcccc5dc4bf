"""The preprocessing of open_clip: reads and writes `preprocess_cfg`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clip_jax.data.images.preprocess import RESIZES, Preprocess
from clip_jax.data.images.values import (
    GREATEST,
    LEAST,
    bad_value,
    check_choice,
    check_colors,
    check_integer,
)
from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.model_config import MEAN, STD


def from_open_clip(
    config: Mapping[str, Any], image_size: Any, name: str = "open_clip_config.json"
) -> Preprocess:
    """Reads the preprocessing of an `open_clip_config.json` when open_clip evaluates.

    Args:
      config: the block `preprocess_cfg`; missing keys are as for OpenAI's models.
      image_size: the size in `model_cfg.vision_cfg.image_size`, which beats the block's `size`.
      name: the name of the file, for errors.

    Raises:
      UserError: a key is malformed, or asks for what is not done here.
    """
    if not isinstance(config, Mapping):
        raise bad_value(name, "preprocess_cfg", config, "a JSON object")
    check_choice(name, "preprocess_cfg.mode", config.get("mode") or "RGB", ("RGB",))

    def setting(key: str, choices: tuple[str, ...]) -> str:
        return check_choice(name, f"preprocess_cfg.{key}", config.get(key) or choices[0], choices)

    def numbers(key: str, default: tuple[float, ...], least: float) -> tuple[float, ...]:
        return check_colors(name, f"preprocess_cfg.{key}", config.get(key) or default, least)

    pair = isinstance(image_size, list | tuple) and len(image_size) == 2
    if pair and repr(image_size[0]) == repr(image_size[1]):
        image_size = image_size[0]
    interpolation = setting("interpolation", ("bicubic", "bilinear", "random"))
    fill = config.get("fill_color")
    return Preprocess(
        check_integer(name, "image_size", image_size),
        setting("resize_mode", RESIZES),
        interpolation="bicubic" if interpolation == "random" else interpolation,
        mean=numbers("mean", MEAN, -GREATEST),
        std=numbers("std", STD, LEAST),
        fill=0 if fill is None else check_integer(name, "preprocess_cfg.fill_color", fill, 0, 255),
    )


def to_open_clip(preprocess: Preprocess) -> JsonObject:
    """Returns the `preprocess_cfg` for the same preprocessing when open_clip evaluates.

    Only `half` is lost: open_clip always rounds margins to even numbers.

    Raises:
      UserError: open_clip cannot do it.
    """
    if preprocess.budget is not None:
        raise UserError(
            "open_clip takes squares, this model images of any shape: write it for transformers"
        )
    if preprocess.resize_size not in (None, preprocess.size):
        raise UserError(
            f"open_clip cannot resize to {preprocess.resize_size} and cut out {preprocess.size}: "
            "write it for transformers"
        )
    if preprocess.interpolation not in ("bicubic", "bilinear"):
        raise UserError(
            f"open_clip knows bicubic and bilinear interpolation, not {preprocess.interpolation}"
        )
    return {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize,
        "fill_color": preprocess.fill,
    }
