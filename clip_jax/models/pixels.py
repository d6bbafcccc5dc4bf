"""The input of image towers: checks of what a caller passes, and normalisation."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from clip_jax.errors import GuessedWarning, UserError
from clip_jax.models.model_config import VisionTower
from clip_jax.models.patches import unpack

_SLACK = 2  # ranges of normalised pixels that floats may be outside of that range


def normalized(
    image: Num[Array, "batch height width 3"], config: VisionTower
) -> Float[Array, "batch height width 3"]:
    """Normalises integers in 0…255 by the tower's mean and deviation; returns floats as they are.

    Raises:
      ValueError: the images are not of `config.input_shape`.
    """
    if image.shape[1:] != config.input_shape:
        raise ValueError(f"images are {image.shape[1:]}, this model takes {config.input_shape}")
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image
    mean, std = (255 * jnp.array(v) for v in (config.mean, config.std))
    return (image.astype(jnp.float32) - mean) / std


def checked_pixels(image: Any, config: VisionTower) -> Shaped[Array, "batch ..."]:
    """Checks the argument of `encode_image`, and returns it as an array for a tower.

    Args:
      image: [batch, size, size, 3] of NumPy, JAX or torch, or a list of such images: integers in
        0…255, or floats that are normalised already. For a tower with a `patch_budget`: packed
        patches, which are integers. Traced values are not checked.
      config: the image tower's config.

    Raises:
      UserError: the shape or type is wrong, or the values are no pixels.
    """
    if isinstance(image, jax.core.Tracer):
        return image
    if isinstance(image, list | tuple):
        image = _stacked(image, config)
    if not hasattr(image, "__array__"):
        raise _unusable(f"{type(image).__name__} holds no pixels", config)
    if not isinstance(image, jax.Array):
        try:
            image = np.asarray(image)
        except Exception as error:  # each library has its own
            raise _unusable(f"{type(image).__name__} is no array ({error})", config) from None
    _check_shape(image.shape, config)
    if config.patch_budget is not None and not isinstance(image, jax.Array):
        _check_places(image, config)
    if image.dtype == np.uint8 or not image.size or not _is_here(image):
        return jnp.asarray(image)
    floats = jnp.issubdtype(image.dtype, jnp.floating)
    if floats and config.patch_budget is not None:
        raise _unusable("patches are floats, which cannot say where they lie", config)
    if not floats and image.dtype.kind not in "ui":
        raise _unusable(f"pixels of {image.dtype} mean nothing here", config)
    low, high = float(image.min()), float(image.max())
    if not floats:
        if low < 0 or high > 255:
            raise _unusable(f"integers from {low:g} to {high:g} are no pixels in 0…255", config)
        return jnp.asarray(image.astype(np.uint8))
    _check_floats(low, high, config)
    return jnp.asarray(image)


def _stacked(images: list[Any] | tuple[Any, ...], config: VisionTower) -> Any:
    try:
        return np.stack([np.asarray(image) for image in images])
    except Exception:  # each library has its own
        raise _unusable("a list of what is not of one shape holds no pixels", config) from None


def _is_here(image: Any) -> bool:
    return not isinstance(image, jax.Array) or image.is_fully_addressable


def _check_shape(shape: tuple[int, ...], config: VisionTower) -> None:
    wanted = config.input_shape
    if len(shape) == 1 + len(wanted) and config.takes(shape[1:]):
        return
    hint, packed = "", config.patch_budget is not None
    if len(shape) == len(wanted) and shape[-1] == wanted[-1]:
        hint = " behind the number of images: give image[None]"
    elif packed:
        hint = ": patches with their places"
    elif len(shape) == 4 and shape[1] in (3, 4) and shape[3] not in (3, 4):
        hint = "; channels stand last: image.transpose(0, 2, 3, 1), tensor.permute(0, 2, 3, 1)"
    elif len(shape) == 4 and shape[3] == 4:
        hint = "; a fourth channel is not taken: preprocess lays transparent images on white"
    raise _unusable(f"images are {tuple(shape)}, this model takes {wanted}{hint}", config)


def _check_places(packed: np.ndarray, config: VisionTower) -> None:
    """Raises UserError for patches that can't be: a table of positions would have no number."""
    if packed.dtype != np.uint8:
        return
    _, places = unpack(packed)
    outside = (places.row >= places.rows) | (places.column >= places.columns)
    if wrong := int((outside & (places.rows > 0)).sum()):
        raise _unusable(f"{wrong} of the patches are outside of their grids", config)


def _check_floats(low: float, high: float, config: VisionTower) -> None:
    least = min(-m / s for m, s in zip(config.mean, config.std, strict=True))
    most = max((1 - m) / s for m, s in zip(config.mean, config.std, strict=True))
    room = _SLACK * (most - least)
    if not least - room <= low <= high <= most + room:
        raise _unusable(
            f"floats from {low:g} to {high:g} are not normalised (those are from {least:.3g} to "
            f"{most:.3g}): give pixels as image.astype('uint8')",
            config,
        )
    if least < 0 <= low and 0 < high <= 1:
        warnings.warn(
            f"floats from {low:g} to {high:g} are taken for normalised pixels: if they are shares "
            "of 255, give (255 * image).round().astype('uint8')",
            GuessedWarning,
            stacklevel=5,
        )


def _unusable(what: str, config: VisionTower) -> UserError:
    sizes = ", ".join(map(str, config.input_shape))
    return UserError(
        f"{what}; encode_image takes uint8 [batch, {sizes}], as np.stack([preprocess(p) "
        "for p in images]) makes them"
    )
