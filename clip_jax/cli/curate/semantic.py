"""`python -m clip_jax curate semantic`: semantic duplicates by image features.

python -m clip_jax curate semantic scores --similarity 0.95 --out duplicates
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_jax.cli.common import CommandParser, integer_from
from clip_jax.errors import UserError, counted
from clip_jax.io import remote

if TYPE_CHECKING:
    from clip_jax.curation.duplicates.clustering import Centres, KMeans
    from clip_jax.curation.duplicates.semantic import StoredRows
    from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter

_KEEP = ("farthest", "nearest", "first", "random")  # `semantic.KEEP`, whose module imports JAX
_DUPLICATE, _SIMILARITY, _CLUSTER = "semantic_duplicate", "semantic_similarity", "cluster"
_THRESHOLDS = (0.99, 0.97, 0.95, 0.9, 0.8)  # whose yields are printed
_STATE, _WORK = "centres.npz", "work"


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    p = CommandParser(
        prog="python -m clip_jax curate semantic",
        description="Finds pairs whose images have nearly the same features (SemDeDup, Abbas et "
        "al. 2023): k-means by cosine, then all pairs within each cluster. Writes a folder that "
        "`curate DATA --annotations FOLDER --most semantic_duplicate=0` filters by; "
        "semantic_similarity, to the most similar pair that is kept or compared before, allows "
        "for other thresholds. It runs on all devices of one host.",
        epilog="example: python -m clip_jax curate semantic scores --similarity 0.95 "
        "--out duplicates",
        allow_abbrev=False,
    )
    p.add_argument("folder", metavar="FOLDER", help="what `curate score --features` wrote")
    p.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write to")
    p.add_argument(
        "--clusters",
        type=integer_from(1),
        metavar="K",
        help="the number of clusters, of which only pairs of one are compared; SemDeDup: 50,000 "
        "for 440 M pairs (default: the square root of the number of pairs)",
    )
    p.add_argument(
        "--similarity",
        type=float,
        default=0.95,
        metavar="COSINE",
        help="pairs with more are duplicates (default: %(default)s)",
    )
    p.add_argument(
        "--keep",
        choices=_KEEP,
        default="farthest",
        help="which of several duplicates is kept: the one farthest from the centre of the "
        "cluster, as SemDeDup does, the nearest to it, the first of the data, or one at random "
        "(default: %(default)s)",
    )
    p.add_argument(
        "--passes",
        type=integer_from(1),
        default=10,
        metavar="N",
        help="passes of k-means over the features (default: %(default)s)",
    )
    p.add_argument(
        "--seed",
        type=integer_from(0),
        default=0,
        metavar="N",
        help="of the first centres and of --keep random (default: %(default)s)",
    )
    return p


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    if not -1 <= args.similarity < 1:
        raise UserError(f"--similarity {args.similarity:g} must be a cosine below 1, such as 0.95")
    from clip_jax.curation import storage
    from clip_jax.curation.duplicates.semantic import StoredRows
    from clip_jax.curation.scores.annotations import Annotations, AnnotationWriter

    annotations = Annotations.open(args.folder)
    rows = StoredRows.open(annotations)
    if not len(rows):
        raise UserError(f"{args.folder} has features of no pair")
    clusters = min(args.clusters or max(1, math.isqrt(len(rows))), len(rows))
    settings = {
        "features": _digest(annotations),
        "clusters": clusters,
        "similarity": args.similarity,
        "keep": args.keep,
        "passes": args.passes,
        "seed": args.seed,
    }
    columns = {
        _DUPLICATE: f"1: its image has a cosine above {args.similarity:g} with one that is kept or "
        f"compared before ({args.keep} first), 0: it is none",
        _SIMILARITY: "the largest cosine with an image of the cluster that is compared before; -1: "
        "it is the first",
        _CLUSTER: f"the number of the cluster, of {clusters:,}",
    }
    files = [entry.file for entry in annotations.files]
    writer = AnnotationWriter(args.out, annotations.data, columns, files, settings)
    with storage.alone(writer.folder):
        done = [writer.is_done(x.file, x.pairs, x.fingerprint) for x in annotations.files]
        if not all(done):
            found = _find(args, rows, clusters, writer.folder)
            _write(annotations, writer, *found, args.similarity)
        writer.finish()
    _print(Annotations.open(writer.folder))
    return 0


def _digest(annotations: Annotations) -> str:
    """Returns a hash of what the features are of and by which model."""
    files = [(x.file, x.pairs, x.fingerprint) for x in annotations.files]
    facts = json.dumps([dict(annotations.columns), files])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _bar(name: str, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit=" pairs", dynamic_ncols=True, disable=None)


def _find(
    args: argparse.Namespace, rows: StoredRows, clusters: int, folder: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cluster of each pair, -1 for none, and its similarity to an earlier pair."""
    from clip_jax.curation import storage
    from clip_jax.curation.duplicates import semantic
    from clip_jax.curation.duplicates.clustering import KMeans
    from clip_jax.distributed.compilation_cache import use_compilation_cache

    use_compilation_cache()
    kmeans = KMeans(clusters)
    centres = _centres(args, rows, clusters, kmeans, storage.join(folder, _STATE))
    cluster, similarity = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    done = 0
    with _bar("assigning", len(rows)) as bar:
        for numbers, values in kmeans.assign(centres, rows, bar.update):
            cluster[done : done + len(numbers)] = numbers
            similarity[done : done + len(numbers)] = values
            done += len(numbers)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch if remote.is_remote(folder) else folder)
        buckets = semantic.Buckets(local / _WORK, rows, cluster, clusters)
        with _bar("sorting", len(rows)) as bar:
            buckets.fill(bar.update)
        with _bar("comparing", int(np.count_nonzero(cluster >= 0))) as bar:
            nearest = semantic.similarities(
                buckets, cluster, similarity, args.keep, args.seed, bar.update
            )
        buckets.remove()
    return cluster, nearest


def _centres(
    args: argparse.Namespace, rows: StoredRows, clusters: int, kmeans: KMeans, path: str
) -> Centres:
    """Returns the centres after all passes; those of a stopped run are continued."""
    from clip_jax.curation import storage
    from clip_jax.curation.duplicates import clustering

    key = f"{_digest(rows.annotations)} {clusters} {args.seed}"
    state, done = storage.read_arrays(path), 0
    if state and str(state.get("key")) == key and int(state["done"]) <= args.passes:
        centres, done = state["centres"], int(state["done"])
    else:
        is_valid = [np.isfinite(part).all(axis=1) & part.any(axis=1) for part in rows]
        valid = np.flatnonzero(np.concatenate(is_valid))
        if not len(valid):
            raise UserError(f"{args.folder} has features of no pair: its images are all broken")
        if len(valid) < clusters:
            raise UserError(
                f"{counted(len(valid), 'image')} with features cannot make {clusters:,} clusters: "
                "lower --clusters"
            )
        centres = clustering.initial_centres(rows, valid, clusters, args.seed)
    for number in range(done + 1, args.passes + 1):
        with _bar(f"pass {number} of {args.passes}", len(rows)) as bar:
            centres, mean = kmeans.move(centres, rows, bar.update)
        print(f"pass {number}: mean cosine with the centre {mean:.4f}", file=sys.stderr)
        arrays = {"centres": centres, "done": np.array(number), "key": np.array(key)}
        storage.write_arrays(path, arrays)
    return centres


def _write(
    annotations: Annotations,
    writer: AnnotationWriter,
    cluster: np.ndarray,
    nearest: np.ndarray,
    threshold: float,
) -> None:
    """Writes the table of each file."""
    start = 0
    for entry in annotations.files:
        span = slice(start, start + entry.pairs)
        missing = cluster[span] < 0
        duplicate = np.where(missing, np.nan, nearest[span] > threshold)
        values = {
            _DUPLICATE: duplicate.astype(np.float32),
            _SIMILARITY: nearest[span],
            _CLUSTER: np.where(missing, np.nan, cluster[span]).astype(np.float32),
        }
        writer.write(entry.file, entry.fingerprint, values)
        start += entry.pairs


def _print(annotations: Annotations) -> None:
    """Prints the number of duplicates, and by how many other thresholds they would be."""
    counts, pairs, duplicates = np.zeros(len(_THRESHOLDS), np.int64), 0, 0
    for number in range(len(annotations.files)):
        values = annotations.of_file(number)
        similarity = values[_SIMILARITY][np.isfinite(values[_SIMILARITY])]
        pairs += len(similarity)
        duplicates += int(np.nansum(values[_DUPLICATE]))
        counts += [np.count_nonzero(similarity > x) for x in _THRESHOLDS]
    shares = ", ".join(
        f"above {x:g} {n / max(pairs, 1):.1%}" for x, n in zip(_THRESHOLDS, counts, strict=True)
    )
    print(f"{duplicates:,} of {counted(pairs, 'pair')} are semantic duplicates ({shares})")
