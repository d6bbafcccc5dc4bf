"""Blind damage, many times: a picture or a pair is used or refused, and nothing else may happen.

python tests/fuzz.py pictures --count 50000 --seed 1 --keep tests/data/cases

Case I of a seed is the same everywhere. What breaks is written to the folder --keep; the number of
the case that is at work stands in KIND.at there, also where it ended the process.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import hashlib
import io
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import damage
from clip_jax.data.example import REASONS, PairError
from clip_jax.data.images import decoding
from clip_jax.data.sources.tars import TarSource
from clip_jax.errors import UserError
from support import encoded, picture, says, write_tar

MEMORY = 3 << 30  # bytes that the process may take


def pictures() -> list[bytes]:
    """Small pictures of every kind that a loader meets, and some that it does not."""
    small, grey = picture(1, (33, 21)), picture(2, (17, 40), "L")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    clear = picture(4, (20, 20), "RGBA")

    def paired(kind: str) -> bytes:
        return encoded(small.copy(), kind, save_all=True, append_images=[picture(3, (33, 21))])

    files = [
        *(
            encoded(small, "jpeg", exif=exif, quality=q, subsampling=s)
            for q, s in ((60, 2), (95, 0))
        ),
        encoded(small, "jpeg", progressive=True, optimize=True, restart_marker_blocks=1),
        *(encoded(image, "jpeg") for image in (grey, small.convert("CMYK"))),
        paired("mpo"),
        *(encoded(image, exif=exif) for image in (small, grey, clear, small.convert("P"))),
        *(encoded(clear, "webp", lossless=lossless) for lossless in (False, True)),
        *(paired(kind) for kind in ("webp", "gif", "png", "tiff")),
        *(encoded(small, "tiff", compression=f"tiff_{how}") for how in ("lzw", "jpeg", "deflate")),
        encoded(grey.convert("1"), "tiff", compression="group4"),
        *(encoded(image, "jpeg2000") for image in (small, clear)),
        encoded(small, "avif", speed=10),
        *(encoded(small, kind) for kind in ("bmp", "ppm")),
        damage.many_scans((40, 40), 4),
    ]
    return files


def decodes(data: bytes) -> str:
    """What `images.decode` makes of bytes: `picture` or `refused`; fails on anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=decoding.FORMATS) as image:
            sizes = (image.size, image.size[::-1])
    except Exception:  # of every kind
        sizes = ()
    results = []
    for least in (0, 12):
        pixels = to_pixels(functools.partial(decoding.decode, at_least=least), data)
        trained = to_pixels(decoding.Decoder(at_least=least), data)
        assert (pixels is None) == (trained is None), (pixels is None, least)
        results.append("refused" if pixels is None else "picture")
        if pixels is None or trained is None:
            continue
        height, width, channels = pixels.shape
        assert (channels, pixels.dtype) == (3, np.uint8), (pixels.shape, pixels.dtype)
        assert least or (width, height) in sizes, (pixels.shape, sizes)
        assert np.array_equal(pixels, trained), "training reads it otherwise"
    return " and ".join(dict.fromkeys(results))


def to_pixels(
    decoder: Callable[[bytes, str], Image.Image | np.ndarray], data: bytes
) -> np.ndarray | None:
    """The pixels of bytes; None where they are refused."""
    try:
        return np.asarray(decoder(data, "x.jpg"))
    except PairError as error:
        assert says(error, "x.jpg") and error.reason == "picture", error
        return None


def tars() -> list[bytes]:
    """A plain tar of pairs, and one of oddities that are well formed."""
    members = []
    for i in range(3):
        members.append((f"{i}.png", encoded(picture(i, (3, 3)))))
        members.append((f"{i}.json", b'{"caption": "picture %d"}' % i))
    with tempfile.TemporaryDirectory() as folder:
        raw = write_tar(Path(folder, "x.tar"), members).read_bytes()[: 14 * damage.BLOCK]
    odd = damage.pax(path="a/é.png", size="5") + damage.member(b"a", b"12345")
    odd += damage.member(b"././@LongLink", b"a/" + b"n" * 200 + b".json\0", kind=b"L")
    odd += damage.member(b"n", b'{"caption": "n"}') + damage.header(b"b.png", 0, b"2", b"/etc")
    odd += damage.member(b"c.png", b"c") + damage.member(b"c.txt", b"\xef\xbb\xbfc")
    return [raw, odd + bytes(1024)]


def reads(data: bytes) -> str:
    """What `TarSource` makes of bytes: `pairs` or `refused`; fails on anything else."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, XDG_CACHE_HOME=folder),
    ):
        path = Path(folder, "x.tar")
        path.write_bytes(data)
        try:
            return _pairs(path, data)
        except UserError as error:
            assert says(error, path), error
            return "refused"


def _pairs(path: Path, data: bytes) -> str:
    source, good = TarSource(str(path)), 0
    for i in range(len(source)):
        try:
            pair = source[i]
        except PairError as error:
            assert says(error, path) and error.reason in REASONS, error
        else:
            good += 1
            assert pair.image in data and isinstance(pair.text, dict)
    return "pairs" if good else "no pair"


KINDS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], str]]] = {
    "pictures": (pictures, decodes),
    "tars": (tars, reads),
}


def case(kind: str, seeds: list[bytes], seed: int, number: int) -> bytes:
    """The bytes of a case."""
    rng = np.random.default_rng((seed, number))
    one, other = rng.integers(len(seeds), size=2)
    return damage.mutated(seeds[int(one)], rng, seeds[int(other)])


def main() -> int:
    """The command; returns how many cases broke something."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("."))
    args = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    make, check = KINDS[args.kind]
    seeds, results, broken = make(), Counter[str](), 0
    slowest = (0.0, -1)
    with open(args.keep / f"{args.kind}.at", "w", buffering=1) as at:
        for number in range(args.first, args.first + args.count):
            at.seek(0)
            at.write(f"{args.seed} {number}\n")
            data, start = case(args.kind, seeds, args.seed, number), time.perf_counter()
            try:
                results[check(data)] += 1
            except Exception as error:
                broken += 1
                digest = hashlib.sha256(data).hexdigest()[:8]
                (args.keep / f"{args.kind}-{digest}.bin").write_bytes(data)
                print(f"case {number} of seed {args.seed} ({digest}): {error!r:.300}", flush=True)
            slowest = max(slowest, (time.perf_counter() - start, number))
    Path(at.name).unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{args.count:,} {args.kind}: {dict(results)}, {broken} broke something")
    print(f"slowest: case {slowest[1]}, {slowest[0]:.2f} s; peak {peak} MiB")
    return broken


if __name__ == "__main__":
    sys.exit(min(main(), 1))
