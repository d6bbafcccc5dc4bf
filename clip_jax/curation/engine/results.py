"""The folder that a curation writes.

OUT/selection.json, selection/   which pairs are used, see `data.selection`
OUT/curation.json                counts by reason, the settings, random pairs
OUT/queries.npz                  the number of pairs of each query, before and after
OUT/decisions/                   why each pair is kept or left out, by chunk
OUT/facts/                       what was found out about each pair; another run reuses it
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from clip_jax.curation import facts, storage
from clip_jax.curation.engine.job import Job
from clip_jax.curation.engine.openings import Openings
from clip_jax.curation.engine.outcome import (
    ASPECTS,
    MISSING,
    SIDES,
    WORDS,
    Summary,
    bin_values,
    dense,
    limits_of_curve,
)
from clip_jax.curation.pool import Chunk
from clip_jax.data import selection
from clip_jax.data.sources import KnowsFiles
from clip_jax.errors import UserError, counted
from clip_jax.io import remote
from clip_jax.io.files import JsonObject

VERSION = 1
REPORT, QUERIES = "curation.json", "queries.npz"
_NAMED = 20  # files that cannot be opened
QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_BARS = 40  # of the histogram of a column

BrokenFile = tuple[int, str, str]  # its number, its name, and the fault


def write_file(
    job: Job, chunks: Iterable[tuple[Chunk, UInt8[np.ndarray, " bytes"]]]
) -> tuple[int, JsonObject]:
    """Writes the selection of a file.

    Args:
      job: the curation.
      chunks: the chunks of the file, in any order, and which of their pairs are kept, one bit each.

    Returns:
      The number of the file, and its entry in `selection.json`.
    """
    parts = sorted(chunks, key=lambda part: part[0].start)
    chunk = parts[0][0]
    kept = np.concatenate([np.unpackbits(bits, count=len(part)) for part, bits in parts])
    content = np.packbits(kept).tobytes()
    name = f"selection/{chunk.file:05}.bits"
    remote.write(storage.join(job.out, name), content)
    return chunk.file, {
        "file": chunk.spec,
        "pairs": len(kept),
        "kept": int(kept.sum()),
        "fingerprint": chunk.fingerprint,
        "size": _size(job, chunk),
        "bits": name,
        "digest": hashlib.sha256(content).hexdigest(),
    }


def _size(job: Job, chunk: Chunk) -> int:
    """Returns the bytes of a file; -1 for a source that is no single file."""
    source = job.pool.open(chunk.spec)
    paths = [path for path, _ in source.files()] if isinstance(source, KnowsFiles) else []
    return remote.state(paths[0]).size if len(paths) == 1 else -1


def write(
    job: Job,
    files: Sequence[str],
    summary: Summary | None,
    counts: Int64[np.ndarray, " queries"],
    limits: Int64[np.ndarray, " languages"],
    entries: Sequence[tuple[int, JsonObject]],
    broken: Sequence[BrokenFile],
    openings: Openings,
) -> None:
    """Writes the results of a whole curation; `selection.json` comes last.

    Raises:
      UserError: too many files cannot be opened, or there is no pair.
    """
    broken = sorted(broken)
    most = job.pool.options.max_bad_fraction * len(files)
    if broken and (len(broken) > most or not entries):
        raise UserError(
            f"{broken[0][2]}; {len(broken):,} of {counted(len(files), 'file')} cannot be opened, "
            f"more than --max-bad-fraction={job.pool.options.max_bad_fraction:g}"
        )
    if summary is None:
        raise UserError(f"{job.pool.data} holds no pair")
    kept = dense(summary.kept, len(counts))
    storage.write_arrays(storage.join(job.out, QUERIES), {"counts": counts, "kept": kept})
    storage.write_json(
        storage.join(job.out, REPORT),
        _report(job, files, summary, counts, limits, broken, openings),
    )
    by_number = dict(entries)
    empty = {"pairs": 0, "kept": 0, "fingerprint": "", "bits": "", "digest": ""}
    listed = [by_number.get(n, {"file": file, **empty}) for n, file in enumerate(files)]
    manifest = {"version": selection.VERSION, "data": job.pool.data, "files": listed}
    storage.write_json(storage.join(job.out, selection.MANIFEST), manifest)


def _report(
    job: Job,
    files: Sequence[str],
    summary: Summary,
    counts: Int64[np.ndarray, " queries"],
    limits: Int64[np.ndarray, " languages"],
    broken: Sequence[BrokenFile],
    openings: Openings,
) -> JsonObject:
    rules, numbers = job.rules, summary.reasons.tolist()
    languages = [name for name, _ in job.extraction.queries]
    return {
        "version": VERSION,
        "data": job.pool.data,
        "source": {
            "kind": job.pool.kind,
            "image": job.pool.options.image,
            "root": job.pool.options.root,
            "addresses": job.pool.options.addresses,
        },
        "captions": list(job.extraction.captions),
        "seed": job.seed,
        "chunk": job.chunk,
        "facts": job.digest,
        "decisions": f"{job.key:016x}",
        "queries": dict(job.extraction.queries),
        "query_digests": [facts.query_table(path).digest for _, path in job.extraction.queries],
        "rules": _settings(job),
        "reasons": {reason: rules.meaning(reason) for reason in rules.reasons},
        "pairs": sum(numbers),
        "kept": numbers[0],
        "left_out": [
            {"reason": reason, "pairs": count, "meaning": rules.meaning(reason)}
            for reason, count in zip(rules.reasons, numbers[1:], strict=True)
            if count
        ],
        "limits": dict(zip(languages, limits.tolist(), strict=False)),
        "matches": {"before": int(counts.sum()), "after": int(summary.kept[1].sum())},
        "curve": _pairs(limits_of_curve(counts), summary.curve) if languages else [],
        "yields": {
            "least side": _pairs(SIDES, summary.sides) if job.extraction.images else [],
            "aspect below": _pairs(ASPECTS, summary.aspects) if job.extraction.images else [],
            "most words": _pairs(WORDS, summary.words),
        },
        "columns": [
            {"column": name, "least": _finite(low), "most": _finite(high)}
            | _distribution(*summary.columns[name])
            for name, low, high in job.columns.limits
        ],
        "samples": {
            "kept" if code == 0 else rules.reasons[code - 1]: [
                {"file": files[file], "pair": pair} for _, file, pair in samples
            ]
            for code, samples in sorted(summary.samples.items())
        },
        "broken_files": [{"file": file, "fault": fault} for _, file, fault in broken[:_NAMED]],
        "broken_files_count": len(broken),
        "opening": openings.to_dict(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _distribution(bins: np.ndarray, counts: np.ndarray) -> JsonObject:
    """Returns quantiles and a histogram of a column from its counts by bin."""
    is_value = bins < MISSING
    missing, counts = int(counts[~is_value].sum()), counts[is_value]
    most = float(np.finfo(np.float32).max)
    values = np.clip(bin_values(bins[is_value]).astype(np.float64), -most, most)
    if not len(values):
        return {"values": 0, "missing": missing, "quantiles": [], "histogram": []}
    reached = np.cumsum(counts)
    places = np.searchsorted(reached, np.ceil(np.array(QUANTILES) * reached[-1]))
    shown = np.clip(values, *values[places[[0, -1]]])  # a stray value must not hide the others
    edges = np.linspace(shown[0], shown[-1], _BARS + 1)
    heights, _ = np.histogram(shown, edges, weights=counts)
    return {
        "values": int(reached[-1]),
        "missing": missing,
        "quantiles": [[q, float(values[i])] for q, i in zip(QUANTILES, places, strict=True)],
        "histogram": [[float(e), int(h)] for e, h in zip(edges, [*heights, 0], strict=True)],
    }


def _pairs(values: Sequence[float] | np.ndarray, counts: np.ndarray) -> list[list[float]]:
    return [list(pair) for pair in zip(np.asarray(values).tolist(), counts.tolist(), strict=True)]


def _settings(job: Job) -> JsonObject:
    """Returns the rules that are not off, for the report."""
    settings = {
        field.name: value
        for field in dataclasses.fields(job.rules)
        if (value := getattr(job.rules, field.name)) != field.default
    }
    if job.extraction.queries:
        settings.setdefault("limit", job.rules.limit)
    return settings | ({"test_sets": job.extraction.test_sets} if job.extraction.test_sets else {})
