"""Near-duplicates by a perceptual hash: 64 bits of an image that resizing and recompression keep.

The hash is made of the signs of low frequencies of the brightness (pHash; Zauner 2010,
"Implementation and Benchmarking of Perceptual Image Hash Functions"); it does not see colour.
Images whose hashes differ in few bits are near-duplicates. `bands` cuts hashes into parts of which
two near ones share one, so that only images that share a part are compared: in memory by
`near_groups`, or by an engine that partitions by part and calls `near_within`.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt64
from PIL import Image

from clip_jax.data.images.decoding import to_rgb

MAX_RADIUS = 31  # bits
_SIDE, _WAVES = 32, 8
_FLAT = 0.5  # grey levels: no wave of an image without content is stronger
# The strength of a wave, as a share of that of all, which counts as none. The drawings of symmetric
# things have many such waves, whose signs would be noise.
_NOISE = 0.03
_SMALL = 32  # hashes of a group, up to which groups are compared together
_BLOCK = 2048  # hashes that are compared with all earlier ones at a time

Hashes = UInt64[np.ndarray, " n"]
Order = Integer[np.ndarray, " n"]


@functools.cache
def _waves() -> Float[np.ndarray, "waves side"]:
    """Returns the cosine waves of the lowest frequencies, without the constant, at unit mean."""
    frequencies, places = np.arange(1, _WAVES + 1), np.arange(_SIDE)
    waves: np.ndarray = np.cos(np.pi * np.outer(frequencies, 2 * places + 1) / (2 * _SIDE))
    return waves * 2 / _SIDE


def perceptual_hash(image: Image.Image | np.ndarray) -> np.uint64:
    """Returns the perceptual hash of an image.

    Images of one brightness, or nearly so, have the hash 0.

    Args:
      image: a `PIL.Image`, or uint8 [height, width, 3].
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    grey = to_rgb(image).convert("L")
    small = grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    waves = _waves()
    amplitudes = (waves @ np.asarray(small, np.float64) @ waves.T).ravel()
    least = _NOISE * np.sqrt(np.mean(amplitudes**2))
    bits = amplitudes > least if np.abs(amplitudes).max() > _FLAT else np.zeros(64, bool)
    return np.packbits(bits).view(">u8").astype(np.uint64)[0]


def bands(hashes: Hashes, radius: int) -> UInt64[np.ndarray, "n bands"]:
    """Cuts each hash into `radius + 1` parts: two hashes within the radius share at least one.

    Parts at the same place are compared: an engine groups by the place and the part.

    Args:
      hashes: the hashes.
      radius: the number of bits that near hashes may differ in, from 0 to `MAX_RADIUS`.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"the radius is from 0 to {MAX_RADIUS} bits, not {radius}")
    ends = np.linspace(0, 64, radius + 2).round().astype(np.uint64)
    lengths = np.diff(ends)
    masks = np.uint64(2**64 - 1) >> (np.uint64(64) - lengths)
    return (hashes[:, None] >> ends[:-1]) & masks


def near_earlier(hashes: Hashes, order: Order, radius: int) -> Bool[np.ndarray, " n"]:
    """Returns for each hash whether an earlier one differs in at most `radius` bits.

    Each hash is compared with each distinct earlier one, so that many equal ones cost little.

    Args:
      hashes: the hashes.
      order: the place of each in the order that decides which is earlier, all different.
      radius: the number of bits.
    """
    sequence = np.argsort(order)
    distinct, first = np.unique(hashes[sequence], return_index=True)
    dropped = np.ones(len(hashes), bool)
    dropped[sequence[first]] = False
    in_order = np.argsort(first)
    distinct, numbers = distinct[in_order], sequence[first[in_order]]
    for start in range(0, len(distinct), _BLOCK):
        block = distinct[start : start + _BLOCK]
        differing = np.bitwise_count(block[:, None] ^ distinct[None, : start + len(block)])
        near = differing <= radius
        near[:, start:] &= np.tri(len(block), k=-1, dtype=bool)
        dropped[numbers[start : start + len(block)]] = near.any(axis=1)
    return dropped


def near_within(
    parts: UInt64[np.ndarray, " n"], hashes: Hashes, order: Order, radius: int
) -> Bool[np.ndarray, " n"]:
    """Returns for each hash whether an earlier one with the same part is within the radius.

    Args:
      parts: what must be equal, such as a band.
      hashes: the hashes.
      order: as for `near_earlier`.
      radius: the number of bits.
    """
    dropped = np.zeros(len(hashes), bool)
    sequence = np.argsort(parts, kind="stable")
    parts = parts[sequence]
    starts = np.flatnonzero(np.diff(parts, prepend=~parts[:1]))
    lengths = np.diff(starts, append=len(parts))
    for start, length in zip(starts[lengths > _SMALL], lengths[lengths > _SMALL], strict=True):
        group = sequence[start : start + length]
        dropped[group] |= near_earlier(hashes[group], order[group], radius)
    few = sequence[np.repeat(lengths <= _SMALL, lengths)]
    parts = parts[np.repeat(lengths <= _SMALL, lengths)]
    for distance in range(1, _SMALL):  # all pairs of all small groups at once
        same = parts[distance:] == parts[:-distance]
        one, other = few[:-distance][same], few[distance:][same]
        near = np.bitwise_count(hashes[one] ^ hashes[other]) <= radius
        dropped[np.where(order[one] > order[other], one, other)[near]] = True
    return dropped


def near_groups(hashes: Hashes, order: Order, radius: int) -> Bool[np.ndarray, " n"]:
    """Returns for each hash whether an earlier one differs in at most `radius` bits, by `bands`.

    Args:
      hashes: the hashes.
      order: as for `near_earlier`.
      radius: the number of bits, from 0 to `MAX_RADIUS`.
    """
    dropped = np.zeros(len(hashes), bool)
    for parts in bands(hashes, radius).T:
        dropped |= near_within(parts, hashes, order, radius)
    return dropped
