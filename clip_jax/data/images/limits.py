"""Pictures of few bytes that would take gigabytes or minutes: told before they are read.

Where a bound is passed, ValueError says which. With all of them kept, a picture takes seconds at
most, and, beside its file, up to 32 bytes a pixel while it is read.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2, TiffImageFile

MAX_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs
# A scan of a JPEG goes through all of its pixels, for a few bytes; encoders write some ten.
MAX_SCANNED = 100 * MAX_PIXELS
MAX_READS = 1 << 18  # of a file: a picture of 256 MiB takes 100,000
MAX_STRIPS = 1 << 16  # of a TIFF
MAX_EXIF = 100  # segments of a JPEG
_TILE, _OFFSETS = (0x0142, 0x0143), (0x0111, 0x0144)  # a TIFF's tags
_LETTERS = (b"P1", b"P2", b"P3")  # PPM whose pixels are written out
_MANY = "it is made of too many parts"


class File(io.BytesIO):
    """A file that is read in so many parts at most: Pillow goes through headers in Python."""

    _left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(_MANY)
        return super().read(size)


def check_parts(data: bytes) -> None:
    """Looks for what takes Pillow long before `File` or `check` could stop it."""
    if data[:2] == b"\xff\xd8":
        many = data.count(b"Exif\0\0") > MAX_EXIF  # which it puts together, one by one
    elif data[:4] in PREFIXES:
        file = io.BytesIO(data)
        tags = ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))
        file.seek(tags.next)
        tags.load(file)
        many = max(np.size(tags.get(tag, ())) for tag in _OFFSETS) > MAX_STRIPS
    else:
        many = data[:2] in _LETTERS
    if many:
        raise ValueError(_MANY)


def check(image: Image.Image, data: bytes) -> None:
    """Looks at the header of a picture that is opened and not yet read."""
    wide, high = image.size
    if isinstance(image, TiffImageFile):  # a tile of a small picture may be any size
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
