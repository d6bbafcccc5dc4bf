"""Fast decoding of plain JPEGs, whose header tells everything about them."""

from __future__ import annotations

import struct

import numpy as np
import simplejpeg

_MAX_SEGMENTS = 64  # before the image; a plain JPEG has about ten
# Tables, restarts, comments and application data, except EXIF (E1) and Adobe's (EE).
_HARMLESS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {0xE1, 0xEE}


def shrink(size: tuple[int, int], at_least: int) -> int:
    """Returns the largest of 1, 2, 4 and 8 by which an image can shrink.

    Args:
      size: width and height of the image.
      at_least: the pixels that the shorter side must keep.
    """
    return max(n for n in (1, 2, 4, 8) if n == 1 or min(size) >= n * at_least)


def size_of(data: bytes) -> tuple[int, int] | None:
    """Returns the width and height of a plain JPEG, or None if it may not be plain.

    A plain JPEG is baseline, 8 bits, grey or YCbCr, one scan and upright. Others can be turned by
    EXIF, change the meaning of their colours by Adobe's marker, or have many scans.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, size, components = 2, None, 0
    for _ in range(_MAX_SEGMENTS):
        if len(data) < at + 12 or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            has_one_scan = size is not None and data[at + 4] == components
            return size if has_one_scan else None
        if marker in (0xC0, 0xC1):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if size or bits != 8 or components not in (1, 3) or not height or not width:
                return None
            size = width, height
        elif marker not in _HARMLESS:
            return None
        at += 2 + length
    return None


def decode(data: bytes, at_least: int, most: int) -> np.ndarray | None:
    """Decodes a plain JPEG as `decoding.decode` does, in nine tenths of the time.

    Args:
      data: the bytes of a file.
      at_least: as for `decoding.decode`; 0 decodes the full size.
      most: the maximum number of pixels of the full image.

    Returns:
      uint8 [height, width, 3], or None if it is no plain JPEG, damaged, or too large.
    """
    size = size_of(data)
    if size is None or size[0] * size[1] > most:
        return None
    by = shrink(size, at_least) if at_least else 1
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_width=-(-size[0] // by), min_height=-(-size[1] // by)
        )
    except ValueError:  # Pillow decides whether it is damaged
        return None
