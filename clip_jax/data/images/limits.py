"""Limits against small files that would take gigabytes or minutes to decode.

A ValueError names the limit that an image exceeds. Within all limits an image takes seconds at
most, and, besides its file, up to 32 bytes a pixel while it is decoded.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2, TiffImageFile

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
# A scan of a JPEG has few bytes and goes through all pixels; encoders write about ten.
MAX_SCANNED = 100 * MAX_PIXELS
MAX_READS = 1 << 18  # of a file: an image of 256 MiB takes 100,000
MAX_STRIPS = 1 << 16  # of a TIFF
MAX_EXIF = 100  # segments of a JPEG
_TILE, _OFFSETS = (0x0142, 0x0143), (0x0111, 0x0144)  # a TIFF's tags
_TEXT_PPM = (b"P1", b"P2", b"P3")  # PPM whose pixels are decimal text
_MANY = "it is made of too many parts"


class File(io.BytesIO):
    """A file in memory with a limited number of reads, because Pillow parses headers in Python."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads like any file, and raises ValueError after too many reads."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(_MANY)
        return super().read(size)


def check_parts(data: bytes) -> None:
    """Rejects files that would keep Pillow busy for long before `File` or `check` can stop it.

    Raises:
      ValueError: the image is made of too many parts.
    """
    if data[:2] == b"\xff\xd8":
        is_excessive = data.count(b"Exif\0\0") > MAX_EXIF  # which Pillow joins one by one
    elif data[:4] in PREFIXES:
        file = io.BytesIO(data)
        tags = ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))
        file.seek(tags.next)
        tags.load(file)
        is_excessive = max(np.size(tags.get(tag, ())) for tag in _OFFSETS) > MAX_STRIPS
    else:
        is_excessive = data[:2] in _TEXT_PPM
    if is_excessive:
        raise ValueError(_MANY)


def check(image: Image.Image, data: bytes) -> None:
    """Checks the size of an image that is opened but not yet decoded.

    Raises:
      ValueError: the image has too many pixels, or too many scans.
    """
    wide, high = image.size
    if isinstance(image, TiffImageFile):  # a tile of a small image can have any size
        wide, high = (
            max(n, int(image.tag_v2.get(tag, 0)))
            for n, tag in zip((wide, high), _TILE, strict=True)
        )
    if wide * high > MAX_PIXELS:
        raise ValueError(f"{wide} × {high} pixels are too many")
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans * wide * high > MAX_SCANNED:
            raise ValueError(f"{scans:,} scans of {wide} × {high} pixels are too many")
