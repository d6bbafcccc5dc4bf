"""A picture in whatever form a program holds one, or one line that says what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.data.example import MAX_MEMBER
from clip_jax.data.images.decoding import decode, eight_bits, read, to_rgb
from clip_jax.errors import UserError

_CHANNELS = (1, 3, 4)
_TAKEN = "a file's name, a URL, a PIL picture, an array [height, width, 3], bytes or an open file"


def picture(given: Any) -> Image.Image:
    """An upright RGB picture.

    Args:
      given: a PIL picture, the name of a file or a URL, its bytes, a file opened in binary mode, or
        an array of NumPy, JAX or torch as `from_array` takes it.

    Raises:
      UserError: it is no picture.
    """
    if isinstance(given, Image.Image):
        if 0 in given.size:
            raise UserError(f"a PIL picture of {given.width} × {given.height} pixels shows nothing")
        try:
            return to_rgb(given)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow reads files late
            raise UserError(f"a PIL picture cannot be read ({error})") from None
    if isinstance(given, str | os.PathLike):
        return read(Path(given) if isinstance(given, os.PathLike) else given)
    if isinstance(given, bytes | bytearray | memoryview):
        return decode(bytes(given), "a picture given as bytes")
    if callable(getattr(given, "read", None)):
        return _from_file(given)
    if is_array(given):
        return to_rgb(Image.fromarray(from_array(as_numpy(given))))
    raise UserError(f"{type(given).__name__} is no picture: give {_TAKEN}")


def is_array(given: Any) -> bool:
    """Whether it is an array of NumPy, JAX, torch or another library."""
    return hasattr(given, "__array__") and not isinstance(given, Image.Image)


def as_numpy(given: Any) -> np.ndarray:
    """The same numbers as an array of NumPy.

    Raises:
      UserError: it cannot be had, such as a tensor on a GPU or one that asks for gradients.
    """
    try:
        return np.asarray(given)
    except Exception as error:  # of each library its own
        raise UserError(
            f"{type(given).__name__} cannot be read as an array ({error}); of torch give "
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
    """An array that shows a picture as uint8 [height, width] or [height, width, 3 or 4].

    Args:
      values: [height, width], or with 1, 3 (RGB) or 4 (RGBA) channels last. bool; integers from 0
        (`images.eight_bits` says what becomes of those over 255); or floats in 0…1 or 0…255.

    Raises:
      UserError: another shape or type, or numbers that are no pixels.
    """
    shape = values.shape
    if values.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        raise UserError(
            f"an array of shape {shape} has its channels first: give them last, "
            "array.transpose(1, 2, 0) or tensor.permute(1, 2, 0)"
        )
    if values.ndim == 4:
        raise UserError(f"an array of shape {shape} is a batch: give its pictures one by one")
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and shape[2] > 4):
        raise UserError(f"an array of shape {shape} is no picture: give [height, width, 3]")
    if values.ndim == 3 and shape[2] not in _CHANNELS:
        raise UserError(f"an array of shape {shape} has {shape[2]} channels: give 1, 3 or 4")
    if values.ndim == 3 and shape[2] == 1:
        values = values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "uif" and values.dtype.name != "bfloat16":
        raise UserError(f"an array of {values.dtype} is no picture: give uint8 in 0…255")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "ui":
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError("an array with values that are no numbers (nan, inf) is no picture")
    low, high = values.min(), values.max()
    if low < 0 or (values.dtype.kind == "f" and high > 255):
        raise UserError(
            f"an array with values from {low:g} to {high:g} is no picture: give uint8 in 0…255, or "
            "floats in 0…1 or 0…255; what is normalised already goes to encode_image"
        )
    return eight_bits(values)
