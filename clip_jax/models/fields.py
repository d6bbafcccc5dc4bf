"""Types and bounds of the values of an architecture, from a config or a run's folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.patches import MOST_PATCHES

MAX_SIZE = 8192  # pixels a side
MAX_INTEGER = 1 << 24
_MAX_ITEMS = 256
_MAX_LABELS = 1 << 16

# Least and greatest values, where they are not 1 and MAX_INTEGER for integers, and ±10^6 for
# other numbers.
BOUNDS: dict[str, tuple[float, float]] = {
    "image_size": (1, MAX_SIZE),
    "max_num_patches": (1, MOST_PATCHES),
    "stem": (0, MAX_INTEGER),
    "registers": (0, MAX_INTEGER),
    "rotary": (0, MAX_INTEGER),
    "attention_stages": (0, MAX_INTEGER),
    "squeeze_stages": (0, MAX_INTEGER),
    "layers": (0, MAX_INTEGER),
    "text_layers": (0, MAX_INTEGER),
    "mask_id": (-1, MAX_INTEGER),
    "projection_width": (0, MAX_INTEGER),
    "pad_id": (0, MAX_INTEGER),
    "symmetric": (0, MAX_INTEGER),
    "mlp_ratio": (1e-6, 1000),
    "pool_mlp_ratio": (1e-6, 1000),
    "eps": (0, 1),
    "momentum": (0, 1),
    "squeeze": (0, 1),
    "head": (0, MAX_INTEGER),
    "depth": (1e-6, 100),
    "patch_dropout": (0, 1),
    "temperature": (0, 1e6),
    "std": (1e-6, 1e6),
}
_OF_EFFICIENTNET = {"width": (1e-6, 100)}  # a multiplier; in other towers it is in channels


def checked(kind: type, values: Mapping[str, Any], where: str) -> JsonObject:
    """Checks values for the fields of a dataclass: their names, types and bounds.

    Args:
      kind: the dataclass.
      values: the values by the names of their fields; any field may be missing.
      where: the prefix of a name in messages, such as `model.vision.`.

    Returns:
      The values, with floats where fields are floats.

    Raises:
      UserError: an unknown name, a wrong type, or a number out of bounds.
    """
    types = {field.name: _type_name(field.type) for field in dataclasses.fields(kind)}
    if strange := sorted(str(name) for name in values.keys() - types.keys()):
        named = f"{where}{strange[0]:.60}"
        raise UserError(
            f"{named} is nothing that a {getattr(kind, 'kind', 'model')} has; "
            f"known: {', '.join(sorted(types))}"
        )
    for name, value in values.items():
        if requirement := _wrong(name, types[name], value):
            raise UserError(f"{where}{name}={value!r:.80} must be {requirement}")
    return {name: _as_float(value, types[name]) for name, value in values.items()}


def _type_name(annotation: Any) -> str:
    """Returns the annotation of a field as text, whether annotations are postponed or not."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _as_float(value: Any, kind: str) -> Any:
    """Integers become floats in fields of floats: JSON and people write 1 for 1.0."""
    if "float" not in kind:
        return value
    return (
        tuple(map(float, value))
        if isinstance(value, tuple)
        else None
        if value is None
        else float(value)
    )


def _wrong(name: str, kind: str, value: Any) -> str:
    """Returns what a value must be; empty if it is valid."""
    if kind.endswith(" | None"):
        return "" if value is None else _wrong(name, kind.removesuffix(" | None"), value)
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        most_items = _MAX_LABELS if name == "labels" else _MAX_ITEMS
        if not isinstance(value, (tuple, list)) or len(value) > most_items:
            return f"a list of at most {most_items:,}"
        if name in ("mean", "std") and len(value) != 3:
            return "three numbers: of red, green and blue"
        wrong = (_wrong(name, inner, item) for item in value)
        return next(
            (f"a list; each must be {requirement}" for requirement in wrong if requirement), ""
        )
    if kind == "bool":
        return "" if isinstance(value, bool) else "true or false"
    if kind == "str":
        return "" if isinstance(value, str) else "text"
    if kind not in ("int", "float"):
        return ""  # a tower, which is checked by itself
    bounds = {**BOUNDS, **(_OF_EFFICIENTNET if kind == "float" else {})}
    least, most = bounds.get(name, (1, MAX_INTEGER) if kind == "int" else (-1e6, 1e6))
    is_number = isinstance(value, int if kind == "int" else (int, float))
    if not is_number or isinstance(value, bool) or not least <= value <= most:
        return f"a {'whole ' if kind == 'int' else ''}number from {least:.10g} to {most:.10g}"
    return "" if math.isfinite(value) else "a finite number"
