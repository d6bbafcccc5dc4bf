"""64-bit hashes: the same on every machine, in every process and at every time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64

_MASK = (1 << 64) - 1


def text_hash(text: str) -> int:
    """Returns the hash of a text; lone surrogates are accepted."""
    return bytes_hash(text.encode("utf-8", "surrogatepass"))


def bytes_hash(content: bytes) -> int:
    """Returns the hash of some bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def text_hashes(texts: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """Returns the hash of each text."""
    return np.fromiter(map(text_hash, texts), np.uint64, len(texts))


def mix(values: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """Scrambles each value by SplitMix64's finalizer, a bijection (Steele et al. 2014)."""
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def combine(*parts: UInt64[np.ndarray, "*n"] | np.uint64) -> UInt64[np.ndarray, "*n"]:
    """Returns one hash of several, which depends on their order."""
    with np.errstate(over="ignore"):  # of scalars; the sum is modulo 2**64
        total = np.asarray(parts[0], np.uint64)
        for part in parts[1:]:
            total = mix(np.atleast_1d(total)) + np.asarray(part, np.uint64)
        return mix(np.atleast_1d(total))
