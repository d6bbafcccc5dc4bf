"""Kills a run in a bucket at random moments, and compares it with one that nobody kills.

python benchmarks/bucket_kills.py --store gs --kills 20
python benchmarks/bucket_kills.py --store s3 --kills 20

The bucket is one of a server on this machine: an emulator of Google Cloud Storage, or moto's of
Amazon S3. Each run gets SIGKILL one to six times, in any phase: while it starts, compiles, trains,
evaluates, saves or ends. The run that is compared with is on disk. All losses, all scores and all
parameters must be equal to the bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import buckets

import kills
from clip_jax.io.buckets import as_path


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--store", choices=buckets.STORES, default="gs")
    p.add_argument("--kills", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, buckets.running(args.store) as bucket:
        count, runs = kills.kill(Path(folder), args.kills, 1, args.seed, as_path(bucket))
    seconds = time.monotonic() - began
    print(f"{args.store}: {count} kills in {runs} runs, {seconds:.0f} s: all equal to the bit")


if __name__ == "__main__":
    main()
