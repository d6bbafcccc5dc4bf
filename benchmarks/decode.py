"""Images per second of one thread, from JPEG bytes to a training view: exactly and with `at_least`.

    python benchmarks/decode.py

The images are synthetic (noise of every scale over a gradient, quality 90), of three sizes.
`decoded` is bytes to RGB; `view` adds the random crop and the resize. The two ways alternate, and
the best of several runs counts. The difference, of 255, is between the views of the same crops.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clip_jax.data.images.augmentation import Augment, random_view
from clip_jax.data.images.decoding import Decoder

SIZES = ((640, 480), (1024, 768), (2048, 1536))
AUGMENT = Augment()


def photograph(size: tuple[int, int], seed: int, detail: float = 2.0) -> bytes:
    """A JPEG of `size` (width, height) with detail at every scale, weaker at finer scales."""
    rng = np.random.default_rng(seed)
    pixels = np.linspace(40.0, 215.0, size[1])[:, None, None] + np.zeros((1, size[0], 3))
    for cells in 2 ** np.arange(2, 10):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = coarse.resize(size, Image.Resampling.BICUBIC)
        pixels += (np.asarray(fine) - 127.5) * (detail / cells**0.5)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def timed(
    files: Sequence[bytes], at_least: int, size: int
) -> tuple[tuple[float, float], np.ndarray]:
    """Seconds to decode all files and to view them, and the views [files, size, size, 3]."""
    decode = Decoder(at_least=at_least)
    began = time.perf_counter()
    pictures = [decode(data, "a made picture") for data in files]
    decoded = time.perf_counter()
    views = [
        random_view(picture, size, AUGMENT, np.random.default_rng(seed))
        for seed, picture in enumerate(pictures)
    ]
    return (decoded - began, time.perf_counter() - began), np.stack(views)


def main() -> None:
    """Prints a row for each image size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="pixels a side of a view")
    parser.add_argument("--pictures", type=int, default=16, help="of each size")
    parser.add_argument("--runs", type=int, default=8, help="over all of them, each way")
    flags = parser.parse_args()

    least = AUGMENT.least_side(flags.size)
    print(f"views of {flags.size} pixels a side; pictures/s exact → at_least={least}")
    print(f"{'JPEG':>10} {'KiB':>5} {'decoded':>18} {'view':>18}   difference")
    for width, height in SIZES:
        files = [photograph((width, height), seed) for seed in range(flags.pictures)]
        runs = [
            [timed(files, at_least, flags.size) for at_least in (0, least)]
            for _ in range(flags.runs)
        ]
        cells = [f"{width}×{height}", f"{sum(map(len, files)) / len(files) / 1024:.0f}"]
        for part in range(2):
            exact, fast = (len(files) / min(run[way][0][part] for run in runs) for way in range(2))
            cells.append(f"{exact:.0f} → {fast:.0f} ({fast / exact:.1f}×)")
        apart = np.abs(runs[0][0][1].astype(int) - runs[0][1][1])
        cells.append(f"mean {apart.mean():.2f}, max {apart.max()}")
        print("{:>10} {:>5} {:>18} {:>18}   {}".format(*cells))


if __name__ == "__main__":
    main()
