"""Whole pipelines on damaged and hostile data: every pair is used or counted, nothing else happens.

python tests/pipelines.py --count 10000 --seed 1

Each case is a tar, a folder or a table of pairs with odd names, captions and bytes, of which some
are damaged. It goes through `inspect` and three training steps: each ends well or in one clear
line, and used + left out by reason = seen. Case I of a seed is the same everywhere; --keep gets the
data of those that break something.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from ml_collections import ConfigDict

import damage
import runs
from clip_jax import config as config_lib
from clip_jax.cli import inspect
from clip_jax.data import mixture
from clip_jax.data.example import REASONS
from clip_jax.errors import UserError
from clip_jax.training import setup
from clip_jax.training.run import prepare
from clip_jax.training.trainer import Trainer
from support import encoded, picture, write_tar

KINDS = ("tar", "folder", "jsonl", "csv", "tsv", "parquet")
STEPS = 3

_PICTURES = [
    *(encoded(picture(i, (9, 7)), kind) for i in range(4) for kind in ("png", "jpeg", "webp")),
    *(encoded(picture(9, (5, 5), mode)) for mode in ("L", "RGBA", "I;16", "P", "1")),
]
_CAPTIONS = [
    *("a cat", "", " ", "&#" + "1" * 4301 + ";", "\ud800", "\x00", "a\nb", 'a "quoted" one'),
    *("x" * 2000, "a,b;c\td", "é" * 10, "\U0001f600", "ﷺ" * 50, "\u202e\u0301", "{caption}", '"'),
]
_VALUES = [None, 3, 1.5, True, [], ["a", None, 3], {"a": {"b": "c"}}, [[[[]]]], "NaN", -(10**30)]
_NAMES = [
    *("{}", "photo_v1.{}", "a/{}", "a/b.c/{}", "é{}", ".{}", "{}.large", "._{}", "x {}", "{}(1)"),
    *("Ａ{}", "a\\{}", "{}.jpg", "train/{}"),
]
_ENDS = (".png", ".jpg", ".JPG", ".jpeg", ".webp", ".jfif", ".seg.png", ".gif", "")
_TEXTS = (".txt", ".json", ".TXT", ".cls", ".npy", ".xml")


def caption(rng: np.random.Generator) -> Any:
    """Text for a picture, or a value that is none."""
    if rng.random() < 0.15:
        return _VALUES[int(rng.integers(len(_VALUES)))]
    return _CAPTIONS[int(rng.integers(len(_CAPTIONS)))] if rng.random() < 0.6 else "a cat"


def image(rng: np.random.Generator) -> bytes:
    """Bytes of a picture; of one in five damaged ones."""
    one, other = (int(i) for i in rng.integers(len(_PICTURES), size=2))
    broken = rng.random() < 0.2
    return damage.mutated(_PICTURES[one], rng, _PICTURES[other]) if broken else _PICTURES[one]


def described(rng: np.random.Generator, end: str) -> bytes:
    """The content of a file beside a picture."""
    words = caption(rng)
    if end == ".json":
        key = "caption" if rng.random() < 0.9 else "title"
        raw = json.dumps({key: words, "more": caption(rng)}).encode()
    elif end == ".npy":
        file = io.BytesIO()
        np.save(file, np.arange(3))
        raw = file.getvalue()
    else:
        raw = str(words).encode(errors="surrogatepass")
    return damage.mutated(raw, rng) if rng.random() < 0.1 else raw


def members(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Files of pairs, in some order."""
    files: list[tuple[str, bytes]] = []
    for i in range(int(rng.integers(1, 9))):
        stem = _NAMES[int(rng.integers(len(_NAMES)))].format(i if rng.random() < 0.9 else 0)
        for _ in range(2 if rng.random() < 0.1 else 1):
            common = rng.random() < 0.7
            end = ".png" if common else _ENDS[int(rng.integers(len(_ENDS)))]
            files.append((stem + end, image(rng)))
        for _ in range(int(rng.choice([0, 1, 2], p=[0.1, 0.8, 0.1]))):
            end = _TEXTS[int(rng.choice(len(_TEXTS), p=[0.4, 0.4, 0.05, 0.05, 0.05, 0.05]))]
            files.append((stem + end, described(rng, end)))
    if rng.random() < 0.3:
        files = [files[i] for i in rng.permutation(len(files))]
    return files


def rows(rng: np.random.Generator, kind: str) -> list[dict[str, Any]]:
    """Rows of a table, whose pictures are paths or bytes."""
    table = []
    for i in range(int(rng.integers(1, 9))):
        path: Any = f"{i}.png" if rng.random() < 0.9 else [None, "", "../x.png", "no.png", 3][i % 5]
        row = {"filepath": path, "caption": caption(rng)}
        if rng.random() < 0.2:
            row[f"late {i % 2}"] = caption(rng)
        table.append(row)
    return table


def table(rng: np.random.Generator, kind: str) -> bytes:
    """The bytes of a table."""
    content = rows(rng, kind)
    if kind == "jsonl":
        return "\n".join(map(json.dumps, content)).encode()
    texts = [{k: None if v is None else str(v) for k, v in row.items()} for row in content]
    if kind == "parquet":
        safe = [{k: v and v.encode(errors="replace").decode() for k, v in r.items()} for r in texts]
        file = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(safe), file, row_group_size=3)
        return file.getvalue()
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in texts for name in row))
    delimiter = "\t" if kind == "tsv" else ",;\t"[int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
    writer = csv.DictWriter(out, names, restval="", delimiter=delimiter)
    writer.writeheader()
    writer.writerows(texts)
    encoding = ("utf-8", "utf-16", "cp1252")[int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
    handling = "surrogatepass" if encoding != "cp1252" else "replace"
    return out.getvalue().encode(encoding, errors=handling)


def write(folder: Path, rng: np.random.Generator) -> str:
    """Writes a case; gives what `config.data.train` is."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    damaged = rng.random() < 0.5
    if kind == "folder":
        for name, content in members(rng):
            path = folder / "data" / name
            if not path.parent.is_file() and not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        (folder / "data").mkdir(exist_ok=True)
        return str(folder / "data")
    path = folder / f"data.{kind}"
    if kind == "tar":
        write_tar(path, members(rng))
    else:
        for i in range(8):
            (folder / f"{i}.png").write_bytes(image(rng))
        path.write_bytes(table(rng, kind))
    if damaged:
        path.write_bytes(damage.mutated(path.read_bytes(), rng))
    return str(path)


class Pipelines:
    """`inspect` and training of a tiny model, whose step is compiled once for all cases."""

    def __init__(self, folder: Path, verbose: bool = False) -> None:
        self.verbose = verbose
        config = runs.small_run(folder, 8)
        more = ("evaluate.sets={}", "evaluate.standard=()", "data.threads=1", "data.prefetch=1")
        more += ("data.max_bad_fraction=1.0",)
        self.config, _ = config_lib.load(str(config), [f"workdir={folder / 'run'}", *more])
        run = prepare(self.config)
        self.trainer = Trainer(run)
        self.state = self.trainer.fresh()
        self.compiled: dict[int, Any] = {}

    def __call__(self, spec: str) -> str:
        """What comes of a data set: `trained` or `refused`; fails on anything else."""
        config = ConfigDict(self.config.to_dict())
        config.data.train = spec
        try:
            self._account(inspect.inspect(*setup.checked(config, 1), 0, 0.0, 0.4, ""))
            lines: list[str] = []
            data = mixture.open_mixture(config.data.to_dict(), lines.append)
            assert all("\n" not in line for line in lines), lines
            self._train(data)
        except UserError as error:
            line = str(error)
            assert "\n" not in line and len(line) < 1500, line
            line.encode()  # what is printed
            if self.verbose:
                print(spec, line)
            return "refused"
        return "trained"

    def _account(self, summary: dict[str, Any]) -> None:
        """Everything that was seen is used or left out for a reason, once."""
        json.dumps(summary).encode()
        (source,) = summary["sources"]
        opening = source["opening"]
        left = sum(item["count"] for item in opening["left_out"].values())
        assert opening["seen"] == opening["used"] + left, opening
        if opening["unit"] == "rows":
            assert opening["used"] == summary["pairs"], opening
        good = sum(summary["formats"].values())
        assert summary["looked_at"] == summary["pairs"] == good + sum(summary["broken"].values()), (
            summary
        )
        inspect.format_summary(summary, 16, 8).encode()

    def _train(self, data: mixture.Mixture) -> None:
        self.trainer.run = dataclasses.replace(self.trainer.run, data=data)
        batches = self.trainer.data()
        try:
            for _ in range(STEPS):
                rows = next(batches)
                assert len(rows["image"]) == self.config.batch_size
                assert batches.bad.shape == (len(REASONS),)
                assert bool(batches.bad.any()) <= bool(batches.complaint)
                assert "\n" not in batches.complaint
                batch = self.trainer.place(rows)
                width = batch["tokens"].shape[1]
                if width not in self.compiled:
                    self.compiled[width] = self.trainer.compile(width)
                self.state, out = self.compiled[width](self.state, batch)
                assert np.isfinite(jax.device_get(out["loss"]))
        finally:
            batches.close()


def main() -> int:
    """The command; returns how many cases broke something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print why data is refused")
    parser.add_argument("--keep", type=Path, help="a folder for the data of what breaks")
    args = parser.parse_args()
    results, broken, start = Counter[str](), 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as base:
        ready = Pipelines(Path(base), args.verbose)
        for number in range(args.first, args.first + args.count):
            folder = Path(base, "case")
            folder.mkdir()
            with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
                spec = write(folder, np.random.default_rng((args.seed, number)))
                try:
                    results[f"{Path(spec).suffix or 'folder'} {ready(spec)}"] += 1
                except Exception:
                    broken += 1
                    print(f"case {number} of seed {args.seed}: {traceback.format_exc()[-1500:]}")
                    if args.keep:
                        shutil.copytree(folder, args.keep / f"{args.seed}-{number}")
            shutil.rmtree(folder)
    seconds = time.perf_counter() - start
    print(f"{args.count:,} pipelines in {seconds:.0f} s: {dict(results)}, {broken} broke something")
    return broken


if __name__ == "__main__":
    sys.exit(min(main(), 1))
