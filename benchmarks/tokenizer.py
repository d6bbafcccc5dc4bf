"""Captions per second of CLIP's tokenizer, compared with open_clip's and Hugging Face's in Rust.

    pip install -e '.[parity]'
    python benchmarks/tokenizer.py

The captions are those of the embedded emoji and random combinations of their words. All are
different, and ftfy, which transformers does not use, changes none of them. All ids are compared.
The sides alternate in one process with one thread; the first pass is that of a fresh tokenizer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np
import peers

from clip_jax import tokenizers
from clip_jax.data.captions import fill
from clip_jax.data.sources import open_source
from clip_jax.tokenizers import cleaning
from clip_jax.tokenizers.bpe import write_hugging_face

Encode = Callable[[Sequence[str]], Any]


def captions(count: int) -> list[str]:
    """Distinct texts of 3 to 60 words."""
    rng = np.random.default_rng(0)
    source = open_source("embedded:emoji/train-*.tar")
    texts = []
    for i in range(len(source)):
        pair = source[i]
        texts.append(fill("an emoji of {name}, {keywords}", pair.text, pair.name))
    texts = [text for text in texts if cleaning.clean(text) == text]
    words = sorted({word for text in texts for word in text.split()})
    distinct = dict.fromkeys(texts)
    while len(distinct) < count:
        chosen = rng.choice(words, int(rng.integers(3, 30)))
        distinct[
            " ".join(chosen).capitalize() + rng.choice([".", "!", "", "…", f" #{len(distinct)}"])
        ] = None
    return list(distinct)[:count]


def ours() -> Encode:
    """The tokenizer of clip_jax."""
    tokenize = tokenizers.load("clip", 77)
    return lambda texts: tokenize(texts, truncate=True)


def open_clip() -> Encode:
    """The SimpleTokenizer of open_clip."""
    peers.import_torchvision()
    from open_clip.tokenizer import SimpleTokenizer

    tokenize = SimpleTokenizer(context_length=77)
    return lambda texts: tokenize(list(texts)).numpy()


def rust() -> Encode:
    """The tokenizer of Hugging Face as transformers sets it up, with batches as an array of ids."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_hugging_face(Path(folder))
        tokenizer = CLIPTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(pad_id=0, length=77)
    return lambda texts: np.array(
        [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    )


SIDES: dict[str, Callable[[], Encode]] = {
    "clip_jax": ours,
    "Hugging Face, Rust": rust,
    "open_clip": open_clip,
}


def main() -> None:
    """Prints captions per second of every side, and the number of captions whose ids differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=256, help="captions in a call")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    texts = captions(args.captions)
    batches = [texts[i : i + args.batch] for i in range(0, len(texts), args.batch)]
    sides = {name: make() for name, make in SIDES.items()}
    for encode in sides.values():
        encode(["a first text"])  # reads the vocabulary
    rates: dict[str, list[float]] = {name: [] for name in sides}
    ids = {}
    for _ in range(args.turns + 1):
        for name, encode in sides.items():
            began = time.perf_counter()
            rows = [encode(batch) for batch in batches]
            rates[name].append(len(texts) / (time.perf_counter() - began))
            ids[name] = np.concatenate(rows)
    tokens = (ids["clip_jax"] > 0).sum() / len(texts)
    print(f"{len(texts):,} different captions of {tokens:.1f} tokens")
    print(f"captions a second in one thread: first pass, median of {args.turns} more")
    for name, (first, *more) in rates.items():
        differ = int((ids[name] != ids["clip_jax"]).any(1).sum())
        print(f"{name:20} {first:9,.0f} {statistics.median(more):9,.0f}  other ids in {differ}")


if __name__ == "__main__":
    main()
