"""Images in any form that a program may pass: a path, bytes, an array, a PIL image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.example import MAX_MEMBER
from clip_jax.data.images.decoding import decode, eight_bits, read_image, to_rgb
from clip_jax.errors import UserError

_CHANNELS = (1, 3, 4)
_TAKEN = "a file's name, a URL, a PIL image, an array [height, width, 3], bytes or an open file"


def picture(value: Any) -> Image.Image:
    """Converts an image of any type to upright RGB.

    Args:
      value: a PIL image, a path or a URL, the bytes of a file, a file opened in binary mode, or an
        array of NumPy, JAX or torch as `from_array` takes it.

    Raises:
      UserError: the value is no image.
    """
    if isinstance(value, Image.Image):
        if 0 in value.size:
            raise UserError(f"a PIL image of {value.width} × {value.height} pixels shows nothing")
        try:
            return to_rgb(value)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow reads files late
            raise UserError(f"a PIL image cannot be read ({error})") from None
    if isinstance(value, str | os.PathLike):
        return read_image(Path(value) if isinstance(value, os.PathLike) else value)
    if isinstance(value, bytes | bytearray | memoryview):
        return decode(bytes(value), "an image given as bytes")
    if callable(getattr(value, "read", None)):
        return _from_file(value)
    if is_array(value):
        return to_rgb(Image.fromarray(from_array(as_numpy(value))))
    raise UserError(f"{type(value).__name__} is no image: give {_TAKEN}")


def is_array(value: Any) -> bool:
    """Returns whether a value is an array of NumPy, JAX, torch or another library."""
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def as_numpy(value: Any) -> np.ndarray:
    """Converts an array to NumPy.

    Raises:
      UserError: the array cannot be converted, such as a tensor on a GPU or one that needs
        gradients.
    """
    try:
        return np.asarray(value)
    except Exception as error:  # each library raises its own
        raise UserError(
            f"{type(value).__name__} cannot be read as an array ({error}); of torch give "
            "tensor.detach().cpu()"
        ) from None


def _from_file(file: Any) -> Image.Image:
    name = f"the open file {getattr(file, 'name', '')}".rstrip()
    try:
        data = file.read(MAX_MEMBER + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read ({error}): open it in binary mode") from None
    if not isinstance(data, bytes):
        raise UserError(f"{name} gives no bytes: open it in binary mode, 'rb'")
    if len(data) > MAX_MEMBER:
        raise UserError(f"{name} is over {MAX_MEMBER >> 20} MiB")
    return decode(data, name)


def from_array(values: np.ndarray) -> np.ndarray:
    """Converts an array to the pixels of an image.

    Args:
      values: [height, width], or with 1, 3 (RGB) or 4 (RGBA) channels last. bool; integers from 0
        (see `decoding.eight_bits` for those over 255); or floats in 0…1 or 0…255.

    Returns:
      uint8 [height, width] or [height, width, 3 or 4].

    Raises:
      UserError: the shape, type or values are not those of an image.
    """
    shape = values.shape
    if values.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        raise UserError(
            f"an array of shape {shape} has its channels first: give them last, "
            "array.transpose(1, 2, 0) or tensor.permute(1, 2, 0)"
        )
    if values.ndim == 4:
        raise UserError(f"an array of shape {shape} is a batch: give its images one by one")
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and shape[2] > 4):
        raise UserError(f"an array of shape {shape} is no image: give [height, width, 3]")
    if values.ndim == 3 and shape[2] not in _CHANNELS:
        raise UserError(f"an array of shape {shape} has {shape[2]} channels: give 1, 3 or 4")
    if values.ndim == 3 and shape[2] == 1:
        values = values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "uif" and values.dtype.name != "bfloat16":
        raise UserError(f"an array of {values.dtype} is no image: give uint8 in 0…255")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "ui":
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError("an array with values that are no numbers (nan, inf) is no image")
    low, high = values.min(), values.max()
    if low < 0 or (values.dtype.kind == "f" and high > 255):
        raise UserError(
            f"an array with values from {low:g} to {high:g} is no image: give uint8 in 0…255, or "
            "floats in 0…1 or 0…255; what is normalised already goes to encode_image"
        )
    return eight_bits(values)


def are_several(images: Any) -> bool:
    """Returns whether a value is several images (a list, a batch, a generator) and not one."""
    if is_array(images):
        values = as_numpy(images)
        names = values.ndim == 1 and values.dtype.kind in "OSU"  # such as a column of a table
        return names or values.ndim > 3
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | dict)
    return not single and not hasattr(images, "read") and hasattr(images, "__iter__")
