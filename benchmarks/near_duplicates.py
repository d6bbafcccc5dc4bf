"""How often perceptual hashes of copies are near, and those of different drawings.

    python benchmarks/near_duplicates.py

Prints for several changes to all embedded training drawings the share of copies within each radius,
then the share of pairs of different concepts and of drawings with a neighbour of another concept.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from clip_jax.curation.duplicates.perceptual import near_groups, perceptual_hash
from clip_jax.data.images.decoding import decode
from clip_jax.data.sources import open_source

RADII = (0, 2, 3, 4, 6, 8)
PAIRS = 1_000_000  # random hashes whose groups are timed


def compressed(image: Image.Image, kind: str, quality: int) -> Image.Image:
    """An image after lossy compression."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """An image without a share of its width and height, at its former size."""
    width, height = image.size
    edge = max(1, int(width * share / 2))
    inner = image.crop((edge, edge, width - edge, height - edge))
    return inner.resize((width, height), Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized to 48": lambda x: x.resize((48, 48), Image.Resampling.BICUBIC),
    "resized to 32": lambda x: x.resize((32, 32), Image.Resampling.LANCZOS),
    "resized to 200": lambda x: x.resize((200, 200), Image.Resampling.BICUBIC),
    "stretched to 96×64": lambda x: x.resize((96, 64), Image.Resampling.BICUBIC),
    "JPEG, quality 75": lambda x: compressed(x, "JPEG", 75),
    "JPEG, quality 50": lambda x: compressed(x, "JPEG", 50),
    "WebP, quality 50": lambda x: compressed(x, "WEBP", 50),
    "48, JPEG, quality 50": lambda x: compressed(x.resize((48, 48)), "JPEG", 50),
    "0.7 of the brightness": lambda x: Image.eval(x, lambda level: level * 7 // 10),
    "cropped by 5 %": lambda x: cropped(x, 0.05),
    "cropped by 10 %": lambda x: cropped(x, 0.1),
}


def main() -> None:
    """Prints all tables."""
    source = open_source("embedded:emoji/train-*.tar")
    pairs = [source[i] for i in range(len(source))]
    images = [decode(pair.image, pair.name).convert("RGB") for pair in pairs]
    began = time.perf_counter()
    hashes = np.array([perceptual_hash(image) for image in images])
    print(f"{len(images) / (time.perf_counter() - began):,.0f} hashes/s of decoded images")
    print("| copies within", *RADII, "bits |", sep=" | ")
    for name, change in CHANGES.items():
        copies = np.array([perceptual_hash(change(image)) for image in images])
        distances = np.bitwise_count(hashes ^ copies)
        print(f"| {name}", *(f"{np.mean(distances <= r):.1%}" for r in RADII), sep=" | ")
    concepts = np.unique([pair.text["hexcode"] for pair in pairs], return_inverse=True)[1]
    counts, neighbours = np.zeros(65, int), np.full(len(hashes), 64)
    for i, own in enumerate(hashes):
        distances = np.bitwise_count(own ^ hashes)[concepts != concepts[i]]
        counts += np.bincount(distances, minlength=65)
        neighbours[i] = distances.min()
    shares = np.cumsum(counts) / counts.sum()
    print("| pairs of different concepts", *(f"{shares[r]:.1e}" for r in RADII), sep=" | ")
    print("| with such a neighbour", *(f"{np.mean(neighbours <= r):.1%}" for r in RADII), sep=" | ")
    hashes = np.random.default_rng(0).integers(0, 2**64, PAIRS, np.uint64)
    for radius in (2, 3, 4):
        began = time.perf_counter()
        near_groups(hashes, np.arange(PAIRS), radius)
        print(f"radius {radius}: {PAIRS:,} random hashes in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
