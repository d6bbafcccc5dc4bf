"""Plain JPEGs, those of which the header says all that there is to say, read quickly."""

from __future__ import annotations

import struct

import numpy as np
import simplejpeg

_SEGMENTS = 64  # before the picture; a plain JPEG has some ten
# Tables, restarts, comments, and what applications add: not EXIF (E1), not Adobe's (EE).
_HARMLESS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {0xE1, 0xEE}


def shrink(size: tuple[int, int], at_least: int) -> int:
    """By how much, of 1, 2, 4 and 8, a picture's shorter side leaves `at_least` pixels."""
    return max(n for n in (1, 2, 4, 8) if n == 1 or min(size) >= n * at_least)


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height of a plain JPEG: baseline, 8 bits, grey or YCbCr, one scan, upright.

    None where it is something else, or perhaps: EXIF may turn it, Adobe's marker changes what its
    colours mean, and scans may be many.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, found, components = 2, None, 0
    for _ in range(_SEGMENTS):
        if len(data) < at + 12 or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            whole = found is not None and data[at + 4] == components
            return found if whole else None
        if marker in (0xC0, 0xC1):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if found or bits != 8 or components not in (1, 3) or not height or not width:
                return None
            found = width, height
        elif marker not in _HARMLESS:
            return None
        at += 2 + length
    return None


def read(data: bytes, at_least: int, most: int) -> np.ndarray | None:
    """A plain JPEG as `images.decode` reads it, in nine tenths of the time.

    Args:
      data: the bytes of a file.
      at_least: as of `images.decode`; 0: the whole.
      most: pixels of the whole picture.

    Returns:
      uint8 [height, width, 3]; None where it is no plain JPEG, or damaged, or too large.
    """
    size = size_of(data)
    if size is None or size[0] * size[1] > most:
        return None
    by = shrink(size, at_least) if at_least else 1
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_width=-(-size[0] // by), min_height=-(-size[1] // by)
        )
    except ValueError:  # Pillow says whether it is damaged
        return None
