"""Curation of a synthetic pool: pairs a second, memory, and the same result for any workers.

    pip install wordfreq
    python benchmarks/curate.py --out runs/curation      # 10 M pairs, 500,000 queries
    python benchmarks/curate.py --out runs/curation --pairs 1000000 --workers 1,2,4 --kill
    python benchmarks/curate.py --out runs/curation --only matching

Captions are words drawn by their frequency in English (wordfreq's list), 3 to 20 a caption. The
queries are the most frequent words and the most frequent pairs of words of captions drawn so.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.curation.queries.matching import Matcher

FILE = 1_000_000  # pairs of a table
WORDS = 250_000  # queries of one word


def frequencies() -> tuple[list[str], np.ndarray]:
    """Returns English words and the share of each."""
    import wordfreq

    counts = wordfreq.get_frequency_dict("en", "large")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    shares = np.array([counts[word] for word in words])
    return words, shares / shares.sum()


def captions(count: int, seed: int) -> list[str]:
    """Returns random captions."""
    words, shares = frequencies()
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 21, count)
    drawn = np.searchsorted(np.cumsum(shares), rng.random(int(lengths.sum())) * 0.999999)
    ends = np.cumsum(lengths)
    return [
        " ".join(words[i] for i in drawn[end - length : end])
        for length, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def make(out: Path, pairs: int, queries: int) -> tuple[str, Path]:
    """Writes the pool and the queries, once; returns the spec of the pool and the list."""
    folder = out / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    files = -(-pairs // FILE)
    for i in range(files):
        path = folder / f"{i:03}.parquet"
        if not path.exists():
            count = min(FILE, pairs - i * FILE)
            urls = [f"https://example.com/{i}/{k}.jpg" for k in range(count)]
            table = pa.table({"url": urls, "caption": captions(count, i)})
            pq.write_table(table, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
    listed = out / f"queries-{queries}.txt"
    if not listed.exists():
        single = frequencies()[0][: min(WORDS, queries)]
        double: Counter[str] = Counter()
        for text in captions(1_000_000, 1 << 20):
            words = text.split()
            double.update(f"{a} {b}" for a, b in itertools.pairwise(words))
        both = [*single, *(pair for pair, _ in double.most_common(queries - len(single)))]
        listed.write_text("\n".join(both) + "\n")
    return f"{folder}/{{000..{files - 1:03}}}.parquet", listed


def memory_of_group(group: int) -> int:
    """Returns the memory of a process group: the bytes of each process, shared ones in parts."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[2]) != group:
                continue
            rollup = (status.parent / "smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0]) << 10
        except (OSError, IndexError, ValueError):  # it has ended
            continue
    return total


def own_memory() -> int:
    """Returns the bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def curate(data: str, queries: Path, out: Path, workers: int, kill_after: float = 0) -> None:
    """Runs the command; prints its time and memory."""
    command = [sys.executable, "-m", "clip_jax", "curate", data, "--out", str(out)]
    command += ["--no-images", f"--queries={queries}", f"--workers={workers}", "--json"]
    began, most = time.perf_counter(), 0
    with open(f"{out}.log", "w") as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True
        )
        if kill_after:
            time.sleep(kill_after)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            print(f"killed after {kill_after:.0f} s", flush=True)
            return
        ended = threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.wait(1.0):
                most = max(most, memory_of_group(child.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        printed, _ = child.communicate()
        ended.set()
        watcher.join()
    if child.returncode:
        sys.exit(f"error: the command failed, see {out}.log")
    seconds, report = time.perf_counter() - began, json.loads(printed)
    print(
        f"{workers} workers: {report['pairs']:,} pairs in {seconds:.0f} s, "
        f"{report['pairs'] / seconds:,.0f} pairs/s, {most / 2**30:.2f} GiB, "
        f"{report['kept']:,} kept, {report['matches']['before']:,} matches, digest {digest(out)}",
        flush=True,
    )


def digest(out: Path) -> str:
    """Returns a hash of the selection and of the decisions."""
    whole = hashlib.sha256()
    for path in sorted([*out.glob("selection/*"), *out.glob("decisions/*"), out / "queries.npz"]):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def matching(queries: Path, count: int) -> None:
    """Prints the rate of matching alone on one core, its memory, and that of a plain loop."""
    entries = queries.read_text().splitlines()
    before = own_memory()
    began = time.perf_counter()
    matcher = Matcher(entries)
    built = time.perf_counter() - began
    memory = (own_memory() - before) / 2**20
    texts = captions(count, 1 << 21)
    began = time.perf_counter()
    matches = len(matcher.find(texts)[1])
    rate = count / (time.perf_counter() - began)
    spaced, few = [f" {entry} " for entry in entries], texts[:20]
    began = time.perf_counter()
    for text in few:  # the rule as it is published: each query is looked for in each text
        sum(entry in f" {text} " for entry in spaced)
    plain = len(few) / (time.perf_counter() - began)
    print(
        f"matching: {len(entries):,} queries, built in {built:.1f} s and {memory:.0f} MiB; "
        f"{rate:,.0f} captions/s, {matches / count:.1f} matches a caption; a loop over the "
        f"queries: {plain:.0f} captions/s, ratio {rate / plain:,.0f}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, help="the folder of pool and results")
    p.add_argument("--pairs", type=int, default=10_000_000)
    p.add_argument("--queries", type=int, default=500_000)
    p.add_argument("--workers", default="2", help="numbers of processes, such as 1,2,4")
    p.add_argument("--kill", action="store_true", help="kill the last run, and start it again")
    p.add_argument("--only", choices=["matching"], help="only this part")
    args = p.parse_args(argv)
    if args.only:
        args.out.mkdir(parents=True, exist_ok=True)
        matching(make(args.out, 0, args.queries)[1], 200_000)
        return
    data, queries = make(args.out, args.pairs, args.queries)
    counts = [int(number) for number in args.workers.split(",")]
    for workers in counts:
        out = args.out / f"curated-{args.pairs}-{workers}"
        if args.kill and workers == counts[-1]:
            curate(data, queries, out, workers, kill_after=15)
        curate(data, queries, out, workers)


if __name__ == "__main__":
    main()
