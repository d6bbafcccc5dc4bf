"""A small pool from strangers: broken pairs, hostile captions, and a score of each pair."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from clip_jax.cli.curate import run
from clip_jax.curation.scores.annotations import AnnotationWriter
from clip_jax.data.sources import open_source
from support import encoded, picture, write_tar

WORDS = ("cat", "dog", "red house", "sky", "tree", "a", "the", "zebra")
HOSTILE = (
    "<script>alert(1)</script> cat",
    '"><img src=x onerror=alert(1)> cat',
    "</style><b>cat</b>",
    "cat \u202eabc\u202c مرحبا",
    "cat " + "x" * 5_000,
    "a\x1b[31mcat\x07, cat!",
)
FILES, PAIRS = 3, 60
FLAGS = ("--min-side", "9", "--max-words", "9", "--duplicates", "image", "--least", "score=0.2")


def make_pool(folder: Path) -> str:
    """Writes the tars; returns their pattern. Every 20th image is broken, every 15th a repeat."""
    rng = random.Random(0)
    for file in range(FILES):
        members = []
        for i in range(PAIRS):
            key, seed = f"{file}{i:04}", file * PAIRS + i
            image = encoded(picture(seed - seed % 15 if seed % 15 == 1 else seed, (12, 8 + i % 7)))
            if i % 20 == 7:
                image = b"no image"
            caption = " ".join(rng.choices(WORDS, (40, 20, 10, 10, 5, 30, 30, 1), k=3))
            if i < len(HOSTILE):
                caption = HOSTILE[i]
            members.append((f"{key}.png", image))
            members.append((f"{key}.json", json.dumps({"caption": caption, "n": i}).encode()))
            members.append((f"{key}.txt", caption.encode()))
        write_tar(folder / f"{file:05}.tar", members)
    return str(folder / "{00000..00002}.tar")


def annotate(folder: Path, pattern: str) -> str:
    """Writes scores from 0 to 1; returns their folder."""
    sources = {file: open_source(file) for file in sorted(map(str, folder.glob("*.tar")))}
    writer = AnnotationWriter(folder / "scores", pattern, {"score": "s"}, [*sources], {})
    for number, (file, source) in enumerate(sources.items()):
        values = np.random.default_rng(number).random(len(source)).astype(np.float32)
        values[3] = np.nan
        writer.write(file, source.fingerprint, {"score": values})
    writer.finish()
    return str(folder / "scores")


def curate(folder: Path, *flags: str) -> Path:
    """Curates the pool of a folder, which is made if need be; returns the folder of the results."""
    pytest.importorskip("apache_beam")
    pattern = str(folder / "{00000..00002}.tar")
    if not (folder / "scores").exists():
        annotate(folder, make_pool(folder))
    queries = folder / "queries.txt"
    queries.write_text("\n".join(["cat", "dog", "red house", "zebra", "<b>never</b>"]))
    out = folder / "out"
    words = [pattern, "--out", str(out), "--queries", str(queries), "--limit", "20"]
    words += ["--annotations", str(folder / "scores"), "--workers", "1", *FLAGS, *flags]
    assert run(words) == 0
    return out
