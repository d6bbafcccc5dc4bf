"""The loader, from tars to batches, compared with open_clip's, with torch's and with bare decoding.

    pip install -e '.[parity]' webdataset==0.2.86 braceexpand pandas  # as open_clip pins it
    python benchmarks/input.py

Every side has one core for itself and its workers. All read the same synthetic images, JPEGs of 512
pixels a side and about 59 KB, with one caption each: clip_jax and open_clip from tars, torch from a
folder. The sides alternate and are stopped while another one runs. Before its turn is timed, a side
finishes the batches that it had begun. Ratios are of medians.

    python benchmarks/input.py --restart 10000    # seconds from a new process to the first batch
    python benchmarks/input.py --steady 1000000   # memory of a loader over that many small pairs
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import decode
import numpy as np
import peers

SIZE = 224
TARS = 8
AHEAD = 4  # batches that a side may begin before its turn
SIDES = {
    "ours": "clip_jax",
    "webdataset": "open_clip's webdataset loader",
    "folder": "torch's folder loader",
    "scaled": "decoding alone, scaled to 256 pixels or more",
    "full": "decoding alone, in full",
}
WORDS = ("red", "old", "small", "a photo of", "house", "river", "dog", "under", "two", "bright")


def write_tar(path: Path, pairs: Iterator[tuple[str, bytes, str]]) -> None:
    """Writes pairs of a name, a JPEG and a caption in the layout of img2dataset."""
    with tarfile.open(path, "w") as tar:
        for name, picture, caption in pairs:
            for end, data in (("jpg", picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{name}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def make(folder: Path, pictures: int) -> None:
    """Writes tars in `tars/`, and the same images in a folder of one class in `pictures/`."""
    rng = np.random.default_rng(0)
    (folder / "tars").mkdir()
    (folder / "pictures" / "all").mkdir(parents=True)
    pairs = []
    for i in range(pictures):
        picture = decode.photograph((512, 512), i, detail=0.92)
        (folder / "pictures" / "all" / f"{i:05}.jpg").write_bytes(picture)
        pairs.append((f"{i:05}", picture, " ".join(rng.choice(WORDS, rng.integers(4, 20)))))
    for tar in range(TARS):
        write_tar(folder / "tars" / f"{tar:05}.tar", iter(pairs[tar::TARS]))
    mean = statistics.mean(len(picture) for _, picture, _ in pairs)
    print(f"{pictures:,} JPEGs of 512 pixels a side, {mean / 1e3:.0f} KB each", flush=True)


def ours(folder: Path, batch: int) -> Iterator[Any]:
    """Batches of clip_jax: uint8 pixels and int32 tokens."""
    from clip_jax import tokenizers
    from clip_jax.data import pipeline
    from clip_jax.data.images import augmentation, decoding
    from clip_jax.data.rows import Prepare
    from clip_jax.data.sources import open_source

    augment = augmentation.Augment()
    prepare = Prepare(
        tokenizers.load("clip", 77), SIZE, ("{caption}",), augment,
        decoding.Decoder(at_least=augment.least_side(SIZE)),
    )  # fmt: skip
    source = open_source(str(folder / "tars" / f"{{00000..{TARS - 1:05}}}.tar"))
    dataset = pipeline.batches(source, prepare, batch_size=batch, seed=0)
    return pipeline.iterator(dataset, threads=1, workers=0, prefetch=2)


def webdataset(folder: Path, batch: int) -> Iterator[Any]:
    """Batches of open_clip's trainer: normalised float32 pixels and int64 tokens."""
    peers.import_torchvision()
    import open_clip
    from open_clip_train import data

    arguments = argparse.Namespace(
        train_data=str(folder / "tars" / f"{{00000..{TARS - 1:05}}}.tar"),
        train_num_samples=1 << 30, train_data_upsampling_factors=None, dataset_resampled=True,
        seed=0, workers=1, world_size=1, batch_size=batch,
    )  # fmt: skip
    loader = data.get_wds_dataset(
        arguments,
        open_clip.image_transform(SIZE, is_train=True),
        is_train=True,
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
    ).dataloader
    return iter(loader)


def folder(folder: Path, batch: int) -> Iterator[Any]:
    """Batches of torchvision's ImageFolder with open_clip's training transform; no text."""
    peers.import_torchvision()
    import open_clip
    import torch
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(
        ImageFolder(str(folder / "pictures"), open_clip.image_transform(SIZE, is_train=True)),
        batch_size=batch, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True,
    )  # fmt: skip
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _alone(folder: Path, batch: int, least: int) -> Iterator[Any]:
    import simplejpeg

    files = [path.read_bytes() for path in sorted((folder / "pictures" / "all").iterdir())]
    endless = itertools.cycle(files)
    while True:
        yield [
            simplejpeg.decode_jpeg(data, min_height=least, min_width=least)
            for data in itertools.islice(endless, batch)
        ]


def scaled(folder: Path, batch: int) -> Iterator[Any]:
    """libjpeg-turbo alone, at the smallest scale that leaves 256 pixels."""
    return _alone(folder, batch, 256)


def full(folder: Path, batch: int) -> Iterator[Any]:
    """libjpeg-turbo alone, at full size."""
    return _alone(folder, batch, 0)


class Side:
    """A loader in a process group of its own, on one core, stopped outside its turns."""

    def __init__(self, name: str, core: int, *arguments: str) -> None:
        command = [sys.executable, __file__, "--worker", name, "--core", str(core), *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def turn(self) -> float:
        """Pairs per second of one turn."""
        assert self.process.stdin and self.process.stdout
        os.killpg(self.process.pid, signal.SIGCONT)
        print("turn", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side died: see above")
        os.killpg(self.process.pid, signal.SIGSTOP)
        return float(line)

    def end(self) -> None:
        """Ends the process and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def work(batches: Callable[[Path, int], Iterator[Any]], args: argparse.Namespace) -> None:
    """Answers each line of standard input with the pairs per second of some batches."""
    if args.core >= 0:
        os.sched_setaffinity(0, {args.core})
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    loader = batches(Path(args.folder), args.batch)
    for _ in sys.stdin:
        for _ in range(AHEAD):
            next(loader)
        began = time.perf_counter()
        for _ in range(args.batches):
            next(loader)
        seconds = time.perf_counter() - began
        print(args.batches * args.batch / seconds, flush=True)


def compare(args: argparse.Namespace) -> None:
    """Prints the pairs per second of every side, and their ratios to clip_jax."""
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.pictures)
        sides = {}
        rates: dict[str, list[float]] = {name: [] for name in args.sides}
        try:
            for name in args.sides:
                sides[name] = Side(
                    name, core, "--folder", folder, "--batch", str(args.batch), "--batches",
                    str(args.batches),
                )  # fmt: skip
                sides[name].turn()  # imports, opens, warms up
            for turn in range(args.turns):
                for name, side in sides.items():
                    rates[name].append(side.turn())
                rates_text = ", ".join(f"{name} {speeds[-1]:.0f}" for name, speeds in rates.items())
                print(f"turn {turn + 1}: {rates_text}", flush=True)
        finally:
            for side in sides.values():
                side.end()
    medians = {name: statistics.median(speeds) for name, speeds in rates.items()}
    print(f"\npairs a second on one core, median of {args.turns} turns (clip_jax is so many times)")
    for name, rate in medians.items():
        print(f"{SIDES[name]:46} {rate:7.0f}  {medians['ours'] / rate:5.2f}")


def restart(tars: int) -> None:
    """Seconds from a new process to its first batch, with many tars that were indexed before."""
    picture = decode.photograph((64, 64), 0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        (Path(folder) / "tars").mkdir()
        for i in range(tars):
            pairs = ((f"{i:05}{j}", picture, f"picture {j}") for j in range(10))
            write_tar(Path(folder) / "tars" / f"{i:05}.tar", pairs)
        pattern = f"{folder}/tars/{{00000..{tars - 1:05}}}.tar"
        for state in ("cold", "warm", "warm"):
            began = time.perf_counter()
            code = "import input; input.first_batch()"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent,
                           env={**os.environ, "PATTERN": pattern})  # fmt: skip
            print(f"{tars:,} tars, {state} index: {time.perf_counter() - began:.1f} s to a batch")


def first_batch() -> None:
    """Makes one batch of 64 pairs from the tars that PATTERN names, as training does."""
    from clip_jax import tokenizers
    from clip_jax.data import pipeline
    from clip_jax.data.rows import Prepare
    from clip_jax.data.sources import open_source

    prepare = Prepare(tokenizers.load("clip", 77), 32, ("{caption}",), decode.AUGMENT)
    dataset = pipeline.batches(open_source(os.environ["PATTERN"]), prepare, batch_size=64, seed=0)
    next(pipeline.iterator(dataset, threads=2, workers=0, prefetch=2))


def memory(process: int) -> int:
    """The bytes of memory that a process does not share."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(n) << 10 for n in re.findall(r"Private_\w+:\s+(\d+) kB", rollup))


def children() -> list[int]:
    """The child processes of this process, started by any of its threads."""
    lists = Path("/proc/self/task").glob("*/children")
    return sorted(int(process) for listing in lists for process in listing.read_text().split())


def steady(samples: int, workers: int) -> None:
    """Prints the memory of the loader's processes while they produce that many pairs."""
    from clip_jax import tokenizers
    from clip_jax.data import pipeline
    from clip_jax.data.rows import Prepare
    from clip_jax.data.sources import open_source

    picture, batch = decode.photograph((48, 48), 0), 1_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.tar"
        write_tar(path, ((f"{i:06}", picture, f"picture number {i}") for i in range(100_000)))
        prepare = Prepare(tokenizers.load("clip", 77), 32, ("{caption}",), decode.AUGMENT)
        dataset = pipeline.batches(open_source(str(path)), prepare, batch_size=batch, seed=0)
        loader = pipeline.iterator(dataset, threads=1, workers=workers, prefetch=2)
        for step in range(samples // batch + 1):
            next(loader)
            if step % max(1, samples // batch // 10) == 0:
                private_bytes = [memory(process) for process in (os.getpid(), *children())]
                sizes_text = ", ".join(f"{size / 2**20:.0f}" for size in private_bytes)
                print(f"{step * batch:>10,} pairs: {sizes_text} MiB", flush=True)
        loader.close()
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


def main() -> None:
    """Compares the sides, or does what a flag asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=12, help="timed in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--restart", type=int, default=0, metavar="TARS")
    parser.add_argument("--steady", type=int, default=0, metavar="PAIRS")
    parser.add_argument("--workers", type=int, default=1, help="of --steady")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(globals()[args.worker], args)
    elif args.restart:
        restart(args.restart)
    elif args.steady:
        steady(args.steady, args.workers)
    else:
        compare(args)


if __name__ == "__main__":
    main()
