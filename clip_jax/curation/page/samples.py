"""Pairs to show: their captions and small images, read from the pool."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from clip_jax.curation.pool import Pool
from clip_jax.data import captions
from clip_jax.data.example import PairError, only_pair_errors
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import Source, read_pair, read_text
from clip_jax.errors import UserError
from clip_jax.evaluation.report.album import Album, thumbnail
from clip_jax.io import remote

SIDE = 160  # pixels of the longer side of a thumbnail
_READERS = 8  # files that are read at the same time
_LARGEST = 16 << 10  # bytes of a thumbnail


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a pair is in the pool: its file, and its number there."""

    file: str
    pair: int


@dataclasses.dataclass(frozen=True)
class ShownPair:
    """A pair as people see it.

    Attributes:
      place: where it is.
      caption: its caption; empty for a pair without one.
      image: its image as a small WebP; empty for a pair without one.
      fault: why its caption or its image is missing; empty if neither is.
    """

    place: Place
    caption: str
    image: bytes
    fault: str

    @property
    def name(self) -> str:
        """The file and the number of the pair, without the folders of the file."""
        return f"{remote.redact(self.place.file).rpartition('/')[2]}:{self.place.pair}"


def read_pairs(
    pool: Pool, templates: Sequence[str], places: Iterable[Place], *, with_images: bool = True
) -> dict[Place, ShownPair]:
    """Reads pairs to show, file by file; what cannot be read is said in the pair's `fault`.

    Images that are web addresses are not downloaded: such pairs have captions only.

    Args:
      pool: the pool.
      templates: of the captions.
      places: where the pairs are.
      with_images: whether to read images.
    """
    by_file: dict[str, list[Place]] = {}
    for place in sorted(set(places), key=lambda place: (place.file, place.pair)):
        by_file.setdefault(place.file, []).append(place)

    def read(file: str) -> list[ShownPair]:
        try:
            source, has_images = _open(pool, file, with_images)
        except UserError as error:
            return [ShownPair(place, "", b"", str(error)) for place in by_file[file]]
        return [_read(source, templates, place, has_images) for place in by_file[file]]

    with ThreadPoolExecutor(_READERS) as executor:
        return {pair.place: pair for pairs in executor.map(read, by_file) for pair in pairs}


def _open(pool: Pool, file: str, with_images: bool) -> tuple[Source, bool]:
    """Opens a file; returns whether its images can be read, too."""
    if not (with_images and pool.options.addresses):
        return pool.open(file), with_images
    try:
        return pool.with_images().open(file), True
    except UserError:
        return pool.open(file), False


def _read(source: Source, templates: Sequence[str], place: Place, with_image: bool) -> ShownPair:
    caption, image, name, faults = "", b"", "", []
    try:
        fields, name = read_text(source, place.pair)
        caption = captions.filled(templates, fields, name)[0]
    except PairError as error:
        faults.append(str(error))
    try:
        if with_image:
            content, _, name = read_pair(source, place.pair)
            image = _small(content, name)
    except PairError as error:
        faults.append(str(error))
    lines = dict.fromkeys(fault.removeprefix(name).lstrip(": ") for fault in faults)
    return ShownPair(place, caption, image, "; ".join(lines))


def _small(content: bytes, name: str) -> bytes:
    with only_pair_errors("picture", name):
        image = decode(content, name)
        small = thumbnail(image, SIDE)
        return small if len(small) <= _LARGEST else thumbnail(image, SIDE // 2)


def album_of(pairs: Iterable[ShownPair]) -> Album:
    """Returns the album of the images of pairs; an image is named by `image_name`."""
    return Album({image_name(pair): pair.image for pair in pairs if pair.image})


def image_name(pair: ShownPair) -> str:
    """Returns the name of a pair's image in its album."""
    return hashlib.sha256(pair.image).hexdigest() if pair.image else ""
