"""Shapes in the text of a compiled program, such as `bf16[8,128]{1,0}` and tuples of them."""

from __future__ import annotations

import math
import re

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape, or of a tuple of shapes; padding is not counted."""
    total = 0.0
    for dtype, dims in _SHAPE.findall(shape):
        bits = re.search(r"\d+", dtype)
        itemsize = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 4)
        total += itemsize * math.prod(integers(dims))
    return round(total)


def shape_dtype(shape: str) -> str:
    """Returns the dtype of a shape, or of the first of a tuple; empty if there is none."""
    found = _SHAPE.search(shape)
    return found[1] if found else ""


def shape_dims(shape: str) -> list[int]:
    """Returns the dimensions of a shape, or of the first of a tuple."""
    found = _SHAPE.search(shape)
    return integers(found[2]) if found else []


def tuple_elements(shape: str) -> list[str]:
    """Returns the elements of the outermost tuple in a shape; of an array itself."""
    if not shape.startswith("("):
        return [shape]
    elements, depth, start = [], 0, 1
    for i, character in enumerate(shape):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 or (depth == 1 and character == ","):
            elements.append(shape[start:i].strip())
            start = i + 1
        if depth == 0:
            break
    return elements


def integers(text: str) -> list[int]:
    """Returns the numbers of a list such as `2,3`."""
    return [int(n) for n in text.split(",") if n]
