"""What scores and features of a model tell about pairs that are wrong or there twice.

    python benchmarks/filtering.py runs/quickstart
    python benchmarks/filtering.py --rows 500000

The first writes a tar of drawings that the run was not trained on: a half has the names of others,
a tenth is there again, smaller and recompressed. `curate score` and `curate semantic` run on it.
The second times `curate semantic` on random features.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.cli.curate import run as curate
from clip_jax.curation.scores import feature_tables
from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter
from clip_jax.data.sources import open_source

DATA = "embedded:emoji/unseen_drawing-*.tar"
SHARES = (0.5, 0.3, 0.2, 0.15)
COSINES = (0.9, 0.95, 0.97, 0.99)
WIDTH, FILES = 512, 8  # of random features


def copied(content: bytes) -> bytes:
    """An image, three quarters as large, as a JPEG of quality 50."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    small = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=50)
    return file.getvalue()


def write_mixture(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes a tar; returns which pairs have their own name, and the number of their copy or -1."""
    source, rng = open_source(DATA), np.random.default_rng(0)
    pairs = [source[i] for i in range(len(source))]
    count = len(pairs)
    swapped = rng.permutation(count)[: count // 2]
    names = [pair.text["name"] for pair in pairs]
    for i, other in zip(swapped, np.roll(swapped, 1), strict=True):
        names[i] = pairs[other].text["name"]
    repeated = rng.permutation(count)[: count // 10]
    contents = [pair.image for pair in pairs] + [copied(pairs[i].image) for i in repeated]
    names += [names[i] for i in repeated]
    right = np.array([name == pair.text["name"] for name, pair in zip(names, pairs, strict=False)])
    with tarfile.open(path, "w") as tar:
        for i, (content, name) in enumerate(zip(contents, names, strict=True)):
            fields = json.dumps({"name": name}).encode()
            end = "webp" if i < count else "jpg"
            for member, part in ((f"{i:06}.{end}", content), (f"{i:06}.json", fields)):
                info = tarfile.TarInfo(member)
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))
    copies = np.full(count, -1)
    copies[repeated] = count + np.arange(len(repeated))
    return right, copies


def compare(run: str, folder: Path) -> None:
    """Prints how well right and wrong names, and copies, are told apart."""
    right, copies = write_mixture(folder / "mixed.tar")
    began = time.perf_counter()
    flags = ["--captions", "{name}", "--features"]
    curate(["score", run, str(folder / "mixed.tar"), "--out", str(folder / "scores"), *flags])
    print(f"scored in {time.perf_counter() - began:.0f} s, including compilation")
    scores = Annotations.open(folder / "scores").of_file(0)["clip_score"][: len(right)]
    ranks = np.argsort(np.argsort(scores))
    wrong = len(right) - right.sum()
    area = (ranks[right].sum() - right.sum() * (right.sum() - 1) / 2) / (right.sum() * wrong)
    print(f"right {scores[right].mean():.3f}, wrong {scores[~right].mean():.3f}; area {area:.3f}")
    order = np.argsort(-scores)
    for share in SHARES:
        top = order[: round(share * len(order))]
        print(f"top {share:.0%}: {right[top].mean():.1%} have their own name")
    curate(["semantic", str(folder / "scores"), "--out", str(folder / "semantic")])
    found = Annotations.open(folder / "semantic").of_file(0)
    cluster, similarity = found["cluster"], found["semantic_similarity"]
    originals = np.flatnonzero(copies >= 0)
    together = cluster[originals] == cluster[copies[originals]]
    print(f"{together.mean():.1%} of copies are in the cluster of their original")
    alone = np.setdiff1d(np.arange(len(right)), originals)
    for cosine in COSINES:
        one = (similarity[originals] > cosine) | (similarity[copies[originals]] > cosine)
        others = np.mean(similarity[alone] > cosine)
        print(f"above {cosine}: {one.mean():.1%} of copied pairs lose one, {others:.1%} of others")


def measure(rows: int, folder: Path) -> None:
    """Times `curate semantic` on random features of several files."""
    files = [f"{i}.tar" for i in range(FILES)]
    writer = AnnotationWriter(folder / "scores", "*.tar", {"clip_score": ""}, files, {})
    rng, count = np.random.default_rng(0), rows // FILES
    for file in files:
        path = feature_tables.path_of(writer.folder, writer.table(file))
        with feature_tables.writing(path, WIDTH, {}) as write:
            for start in range(0, count, 10_000):
                write(rng.normal(size=(min(10_000, count - start), WIDTH)))
        writer.write(file, "", {"clip_score": np.zeros(count, np.float32)})
    writer.finish()
    began, before = time.perf_counter(), peak()
    curate(["semantic", writer.folder, "--out", str(folder / "out"), "--passes", "2"])
    seconds = time.perf_counter() - began
    print(f"{rows:,} rows: {seconds:.0f} s, peak {before:.2f} → {peak():.2f} GiB")


def peak() -> float:
    """The largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Runs what the flags name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="a run of configs/quickstart.py")
    parser.add_argument("--rows", type=int, default=0, help="random features")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.run:
            compare(args.run, Path(folder))
        if args.rows:
            measure(args.rows, Path(folder))


if __name__ == "__main__":
    main()
