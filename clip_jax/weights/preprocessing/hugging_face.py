"""The preprocessing of transformers: reads and writes `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from clip_jax.data.images.preprocess import PATCHES, RESAMPLES, Preprocess
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
from clip_jax.models.patches import MOST_PATCHES, PatchBudget

_PROCESSORS: dict[str, JsonObject] = {  # of transformers, with what their files may leave out
    "CLIP": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": 224,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    },
    "Siglip": {"size": [224, 224]},
    "Siglip2": {"resample": 2, "patch_size": 16, "max_num_patches": 256},
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
_KINDS = {
    "clip": "CLIP",
    "metaclip_2": "CLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
    "align": "EfficientNet",
}


def from_hugging_face(
    config: Mapping[str, Any], name: str = "preprocessor_config.json"
) -> Preprocess:
    """Reads the preprocessing that transformers does.

    The processors of CLIP, SigLIP, SigLIP 2 NaFlex and EfficientNet (ALIGN) that resample with
    Pillow are supported; those of transformers on torch round some pixels differently.

    Args:
      config: the content of a `preprocessor_config.json` or `processor_config.json`.
      name: the name of the file, for errors.

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
        return check_choice(name, key, values.get(key, False), (True, False))

    if not flag("do_resize"):
        raise bad_value(name, "do_resize", False, "true: a model takes images of one size")
    if flag("do_pad"):
        raise bad_value(name, "do_pad", True, "false: padding is not done here")
    resample = Image.Resampling(check_integer(name, "resample", values["resample"], 0, 5))
    if kind == "Siglip2":
        return _patches(name, values, resample, *_normalization(name, values, flag))
    resize, side = _resize(name, values["size"], squash=kind == "EfficientNet")
    size = side
    if flag("do_center_crop"):
        _, size = _resize(name, values["crop_size"], squash=True, key="crop_size")
    elif resize == "shortest":
        raise bad_value(name, "do_center_crop", False, "true where size is the shorter side's")
    if size > side:
        raise bad_value(name, "crop_size", size, f"at most size={side}: padding is not done here")
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


def _patches(
    name: str,
    values: Mapping[str, Any],
    resample: Image.Resampling,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Preprocess:
    """Returns the preprocessing of a `Siglip2ImageProcessor`."""
    budget = PatchBudget(
        check_integer(name, "patch_size", values["patch_size"]),
        check_integer(name, "max_num_patches", values["max_num_patches"], 1, MOST_PATCHES),
    )
    return Preprocess(
        budget.side,
        PATCHES,
        interpolation=resample.name.lower(),
        mean=mean,
        std=std,
        budget=budget,
    )


def to_hugging_face(preprocess: Preprocess, kind: str) -> JsonObject:
    """Returns the `preprocessor_config.json` for the same preprocessing in transformers.

    Only `half` is lost: transformers always rounds margins down.

    Args:
      preprocess: the preprocessing that a model was trained with.
      kind: the kind of the model: `clip`, `metaclip_2`, `siglip`, `siglip2` or `align`.

    Raises:
      UserError: the processor of that kind cannot do it.
    """
    check_choice("to_hugging_face", "kind", kind, _KINDS)
    side = preprocess.resize_size or preprocess.size
    crop = preprocess.size != side
    shortest, squash = (preprocess.resize == how for how in ("shortest", "squash"))
    budget = preprocess.budget
    possible = {
        "siglip": squash and not crop,
        "siglip2": budget is not None,
        "align": squash,
    }
    if not possible.get(kind, shortest or squash):
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
    if kind in ("siglip", "siglip2"):
        del config["do_center_crop"], config["crop_size"]
    if budget is not None:
        del config["size"]
        config |= {"patch_size": budget.patch_size, "max_num_patches": budget.patches}
    if kind == "align":
        config |= {"rescale_offset": False, "include_top": False}
    return config


def _processor(config: Mapping[str, Any], name: str) -> str:
    """Returns the kind of processor, by any name that its class has had in transformers."""
    key = "image_processor_type"
    if config.get(key) is None and config.get("feature_extractor_type") is not None:
        key = "feature_extractor_type"
    value = config.get(key)
    for kind in _PROCESSORS:
        classes = (f"{kind}ImageProcessor", f"{kind}FeatureExtractor")
        if isinstance(value, str) and value.removesuffix("Fast").removesuffix("Pil") in classes:
            return kind
    raise bad_value(
        name, key, value, "CLIP's, Siglip's, Siglip2's or EfficientNet's ImageProcessor"
    )


def _resize(name: str, value: Any, squash: bool, key: str = "size") -> tuple[str, int]:
    """Returns how to resize and to which side, from a size in any form of transformers."""
    if isinstance(value, Mapping):
        sides = {k: v for k, v in value.items() if v is not None}
        if set(sides) == {"shortest_edge"} and key == "size":
            return "shortest", check_integer(name, f"{key}.shortest_edge", sides["shortest_edge"])
        value = [sides.get("height"), sides.get("width")] if len(sides) == 2 else None
        if value is None or None in value:
            allowed = "a height and a width" + (", or a shortest_edge" if key == "size" else "")
            raise bad_value(name, key, sides, allowed)
    if isinstance(value, list | tuple):
        if len(value) != 2 or type(value[0]) is not type(value[1]) or value[0] != value[1]:
            raise bad_value(name, key, value, "as wide as high: a model here takes squares")
        return "squash", check_integer(name, key, value[0])
    return "squash" if squash else "shortest", check_integer(name, key, value)


def _normalization(
    name: str, values: Mapping[str, Any], flag: Callable[[str], bool]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of colours in 0…1 that are equivalent to all steps of a processor."""
    factor = 1.0
    if flag("do_rescale"):
        factor = check_colors(name, "rescale_factor", values["rescale_factor"], LEAST)[0]
    offset = 1.0 if flag("do_rescale") and flag("rescale_offset") else 0.0
    mean = check_colors(name, "image_mean", values["image_mean"], -GREATEST)
    std = check_colors(name, "image_std", values["image_std"], LEAST)
    once, again, scale = flag("do_normalize"), flag("include_top"), 255 * factor
    return (
        tuple((offset + m * once) / scale for m in mean),
        tuple(s ** (once + again) / scale for s in std),
    )
