"""The preprocessing of models, and the configuration files that describe it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.images.decoding import resize_and_crop, shorter_side_to
from clip_jax.data.images.pictures import picture
from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.model_config import MEAN, STD

MAX_SIZE = 8192
RESIZES = ("shortest", "squash", "longest")
RESAMPLES = {r.name.lower(): r for r in map(Image.Resampling, range(6))}  # newer ones are rare
HALVES: dict[str, Callable[[float], int]] = {"even": round, "down": math.floor}
_LEAST, _GREATEST = 1e-6, 1e6  # of factors that a file may give; no model needs others


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Converts an image to the input of a model: uint8 [size, size, 3]; the model normalises it.

    The pixels equal those of the released code for upright, opaque RGB or grey images of 8 bits a
    channel. All others are converted to such first (`decoding.to_rgb`). transformers also converts
    to RGB before it resizes, and puts transparency on white. OpenAI's code and open_clip resize
    first: palettes and black-and-white without interpolation, CMYK before its inks are mixed.

    size: of the output, pixels a side.
    resize: `shortest`: the shorter side becomes `resize_size`, then the centre is cropped (CLIP);
      `squash`: both sides become `resize_size` whatever the shape, then the same (SigLIP, ALIGN);
      `longest`: the longer side becomes `size`, and the rest is filled.
    resize_size: pixels; None: `size`.
    interpolation: `bicubic`, `bilinear`, or another of Pillow's filters.
    mean, std: of R, G and B in 0…1: the model subtracts the mean, then divides by std.
    fill: grey value around an image with `longest`.
    half: a margin of half a pixel is rounded to the `even` number of pixels (OpenAI, open_clip) or
      `down` (transformers). This shifts the crop by a pixel in one image of four.
    """

    size: int
    resize: str = "shortest"
    resize_size: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    fill: int = 0
    half: str = "even"

    def __post_init__(self) -> None:
        for key, known in (
            ("resize", RESIZES),
            ("interpolation", RESAMPLES),
            ("half", HALVES),
        ):
            _one_of("Preprocess", key, getattr(self, key), known)
        _whole("Preprocess", "size", self.size)
        _whole("Preprocess", "fill", self.fill, 0, 255)
        if self.resize_size is not None:
            _whole("Preprocess", "resize_size", self.resize_size, self.size)
            if self.resize == "longest" and self.resize_size != self.size:
                raise UserError(
                    f"Preprocess.resize_size={self.resize_size} cannot be: with resize='longest' "
                    f"nothing is cut off; leave it out"
                )
        for key, least in (("mean", -math.inf), ("std", 0.0)):
            value = getattr(self, key)
            if len(value) != 3 or not all(least < v < math.inf for v in value):
                raise _unusable("Preprocess", key, value, f"three numbers above {least:g}")

    def resized(self, size: int) -> Preprocess:
        """The same for a model of another image size; `resize_size` is scaled in proportion."""
        side = self.resize_size
        side = None if side is None else round(side * size / self.size)
        return dataclasses.replace(self, size=size, resize_size=side)

    def __call__(self, image: Any) -> np.ndarray:
        """The pixels of an image of any mode and shape; see `pictures.picture` for the types."""
        image = picture(image)
        resample = RESAMPLES[self.interpolation]
        if self.resize == "longest":
            ratio = max(image.size) / self.size
            shape = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
            square = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
            corner = ((self.size - shape[0]) // 2, (self.size - shape[1]) // 2)
            square.paste(image.resize(shape, resample), corner)
            return np.asarray(square)
        side = self.resize_size or self.size
        shape = (side, side) if self.resize == "squash" else shorter_side_to(side, image.size)
        return resize_and_crop(image, self.size, shape, resample, HALVES[self.half])


_PROCESSORS: dict[str, JsonObject] = {  # of transformers, with what their files may leave out
    "CLIP": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    },
    "Siglip": {"size": [224, 224]},
    "EfficientNet": {
        "size": [346, 346],
        "crop_size": 289,
        "rescale_offset": False,
        "include_top": True,
    },
}
_COMMON: JsonObject = {
    "do_resize": True,
    "resample": 3,
    "do_center_crop": False,
    "crop_size": None,
    "do_pad": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": 0.5,
    "image_std": 0.5,
}
_KINDS = {"clip": "CLIP", "siglip": "Siglip", "align": "EfficientNet"}


def from_hugging_face(
    config: Mapping[str, Any], name: str = "preprocessor_config.json"
) -> Preprocess:
    """The preprocessing that transformers does by a `preprocessor_config.json` or
    `processor_config.json`.

    The processors of CLIP, SigLIP and EfficientNet (ALIGN) that resample with Pillow are supported;
    those of transformers on torch round some pixels differently.

    Args:
      config: the JSON's content.
      name: of the file, for errors.

    Raises:
      UserError: a key is missing or malformed, or asks for what is not done here.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{name} must hold a JSON object")
    nested = config.get("image_processor")
    config = nested if isinstance(nested, Mapping) else config
    kind = _processor(config, name)
    defaults = _COMMON | _PROCESSORS[kind]
    values = defaults | {k: v for k in defaults if (v := config.get(k)) is not None}

    def flag(key: str) -> bool:
        return _one_of(name, key, values.get(key, False), (True, False))

    if not flag("do_resize"):
        raise _unusable(name, "do_resize", False, "true: a model takes pictures of one size")
    if flag("do_pad"):
        raise _unusable(name, "do_pad", True, "false: padding is not done here")
    resample = Image.Resampling(_whole(name, "resample", values["resample"], 0, 5))

    resize, side = _resize(name, values["size"], squash=kind == "EfficientNet")
    size = side
    if flag("do_center_crop"):
        _, size = _resize(name, values["crop_size"], squash=True, key="crop_size")
    elif resize == "shortest":
        raise _unusable(name, "do_center_crop", False, "true where size is the shorter side's")
    if size > side:
        raise _unusable(name, "crop_size", size, f"at most size={side}: padding is not done here")
    mean, std = _normalization(name, values, flag)
    return Preprocess(
        size,
        resize,
        None if side == size else side,
        resample.name.lower(),
        mean,
        std,
        half="down",
    )


def to_hugging_face(preprocess: Preprocess, kind: str) -> JsonObject:
    """The `preprocessor_config.json` for the same preprocessing in transformers.

    Only `half` is lost: transformers always rounds margins down.

    Args:
      preprocess: what a model was trained with.
      kind: the model's: `clip`, `siglip` or `align`.

    Raises:
      UserError: the processor of that kind cannot do it.
    """
    _one_of("to_hugging_face", "kind", kind, _KINDS)
    side = preprocess.resize_size or preprocess.size
    crop = preprocess.size != side
    shortest, squash = (preprocess.resize == how for how in ("shortest", "squash"))
    possible = {"clip": shortest or squash, "siglip": squash and not crop, "align": squash}
    if not possible[kind]:
        raise UserError(
            f"transformers' processor of {kind} cannot do resize={preprocess.resize!r}, "
            f"resize_size={side}, size={preprocess.size}: take another kind, or open_clip's form"
        )
    config = {
        "image_processor_type": f"{_KINDS[kind]}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if shortest else {"height": side, "width": side},
        "resample": int(RESAMPLES[preprocess.interpolation]),
        "do_center_crop": shortest or crop,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if kind == "siglip":
        del config["do_center_crop"], config["crop_size"]
    if kind == "align":
        config |= {"rescale_offset": False, "include_top": False}
    return config


def from_open_clip(
    config: Mapping[str, Any], image_size: Any, name: str = "open_clip_config.json"
) -> Preprocess:
    """The preprocessing of an `open_clip_config.json` when open_clip evaluates.

    Args:
      config: the block `preprocess_cfg`; missing keys are as for OpenAI's models.
      image_size: of the model: `model_cfg.vision_cfg.image_size`, which beats the block's `size`.
      name: of the file, for errors.

    Raises:
      UserError: a key is malformed, or asks for what is not done here.
    """
    if not isinstance(config, Mapping):
        raise _unusable(name, "preprocess_cfg", config, "a JSON object")
    _one_of(name, "preprocess_cfg.mode", config.get("mode") or "RGB", ("RGB",))

    def choice(key: str, known: tuple[str, ...]) -> str:
        return _one_of(name, f"preprocess_cfg.{key}", config.get(key) or known[0], known)

    def numbers(key: str, default: tuple[float, ...], least: float) -> tuple[float, ...]:
        return _numbers(name, f"preprocess_cfg.{key}", config.get(key) or default, least)

    pair = isinstance(image_size, list | tuple) and len(image_size) == 2
    if pair and repr(image_size[0]) == repr(image_size[1]):
        image_size = image_size[0]
    interpolation = choice("interpolation", ("bicubic", "bilinear", "random"))
    fill = config.get("fill_color")
    return Preprocess(
        _whole(name, "image_size", image_size),
        choice("resize_mode", RESIZES),
        interpolation="bicubic" if interpolation == "random" else interpolation,
        mean=numbers("mean", MEAN, -_GREATEST),
        std=numbers("std", STD, _LEAST),
        fill=0 if fill is None else _whole(name, "preprocess_cfg.fill_color", fill, 0, 255),
    )


def to_open_clip(preprocess: Preprocess) -> JsonObject:
    """The `preprocess_cfg` for the same preprocessing when open_clip evaluates.

    Only `half` is lost: open_clip always rounds margins to even numbers.

    Raises:
      UserError: open_clip cannot do it.
    """
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


def _unusable(name: str, key: str, value: Any, wanted: str) -> UserError:
    shown = repr(value)
    shown = shown if len(shown) < 80 else f"{shown[:80]}…"
    return UserError(f"{name}: {key}={shown} must be {wanted}")


def _one_of(name: str, key: str, value: Any, known: Iterable[Any]) -> Any:
    if not any(type(value) is type(k) and value == k for k in known):
        raise _unusable(name, key, value, " or ".join(map(repr, known)))
    return value


def _whole(name: str, key: str, value: Any, least: int = 1, most: int = MAX_SIZE) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _unusable(name, key, value, f"a whole number in {least}…{most}")
    return value


def _numbers(name: str, key: str, value: Any, least: float) -> tuple[float, ...]:
    """Three numbers; one stands for all."""
    three = value if isinstance(value, list | tuple) else [value] * 3
    if len(three) != 3 or not all(type(v) in (int, float) for v in three):
        raise _unusable(name, key, value, "a number each for red, green and blue")
    if not all(least <= v <= _GREATEST for v in three):
        raise _unusable(name, key, value, f"in {least:g}…{_GREATEST:g}")
    return tuple(map(float, three))


def _processor(config: Mapping[str, Any], name: str) -> str:
    """The kind of processor, by any name that its class has had in transformers."""
    key = "image_processor_type"
    if config.get(key) is None and config.get("feature_extractor_type") is not None:
        key = "feature_extractor_type"
    value = config.get(key)
    for kind in _PROCESSORS:
        classes = (f"{kind}ImageProcessor", f"{kind}FeatureExtractor")
        if isinstance(value, str) and value.removesuffix("Fast").removesuffix("Pil") in classes:
            return kind
    raise _unusable(name, key, value, "CLIP's, Siglip's or EfficientNet's ImageProcessor")


def _resize(name: str, value: Any, squash: bool, key: str = "size") -> tuple[str, int]:
    """How to resize and to which side, from a size in any form of transformers."""
    if isinstance(value, Mapping):
        sides = {k: v for k, v in value.items() if v is not None}
        if set(sides) == {"shortest_edge"} and key == "size":
            return "shortest", _whole(name, f"{key}.shortest_edge", sides["shortest_edge"])
        value = [sides.get("height"), sides.get("width")] if len(sides) == 2 else None
        if value is None or None in value:
            allowed = "a height and a width" + (", or a shortest_edge" if key == "size" else "")
            raise _unusable(name, key, sides, allowed)
    if isinstance(value, list | tuple):
        if len(value) != 2 or type(value[0]) is not type(value[1]) or value[0] != value[1]:
            raise _unusable(name, key, value, "as wide as high: a model here takes squares")
        return "squash", _whole(name, key, value[0])
    return "squash" if squash else "shortest", _whole(name, key, value)


def _normalization(
    name: str, values: Mapping[str, Any], flag: Callable[[str], bool]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of colours in 0…1 that are equivalent to all steps of a processor."""
    factor = 1.0
    if flag("do_rescale"):
        factor = _numbers(name, "rescale_factor", values["rescale_factor"], _LEAST)[0]
    offset = 1.0 if flag("do_rescale") and flag("rescale_offset") else 0.0
    mean = _numbers(name, "image_mean", values["image_mean"], -_GREATEST)
    std = _numbers(name, "image_std", values["image_std"], _LEAST)
    once, again, scale = flag("do_normalize"), flag("include_top"), 255 * factor
    return (
        tuple((offset + m * once) / scale for m in mean),
        tuple(s ** (once + again) / scale for s in std),
    )
