"""The runs of figure 2: objectives, data and folders; see `figure2`."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_jax.config import loading
from clip_jax.io import paths
from clip_jax.losses.objective import unused_parts
from clip_jax.training import flops, setup

EMOJI = "embedded:emoji/"
BATCH, POINTS = 128, 6  # pairs of a batch; points of a curve
WARMUP = 20  # steps
SETS = ("unseen_drawing", "unseen_concept")
LABELS, IMAGES = 400, 400  # of a test of the embedded pictures, at most
_WIDTH, _LAYERS, _HEADS = 128, 2, 4  # of every part that reads or writes text

Keys = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """An objective of the figure.

    Attributes:
      title: its name in the figure.
      readout: how labels are scored, in words.
      suite: the evaluator that does so.
      keys: the config keys that differ from those of all runs.
      curve: whether it is one of the curves, with several seeds; otherwise a point with one.
    """

    title: str
    readout: str
    suite: str
    keys: Keys
    curve: bool = True

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return 3 if self.curve else 1


_DECODER = {"width": _WIDTH, "layers": _LAYERS, "heads": _HEADS}
_LIKELIHOOD = "sum of the log-probabilities of the label's tokens, by the decoder"
_COSINE = "cosine of the features of image and label"
METHODS = {
    "captioning": Method(
        "Transformer language model",
        _LIKELIHOOD,
        "scoring",
        {"objective.name": "captioning", "model.heads": {"decoder": _DECODER}},
    ),
    "bag_of_words": Method(
        "Bag of words prediction",
        "mean log-probability of the label's distinct words",
        "scoring",
        {"objective.name": "bag_of_words"},
    ),
    "contrastive_words": Method(
        "Bag of words contrastive (CLIP)", _COSINE, "zero_shot", {"model.text.layers": 0}
    ),
    "contrastive": Method(
        "Transformer contrastive",
        _COSINE,
        "zero_shot",
        {"model.text.layers": _LAYERS, "model.text.heads": _HEADS},
    ),
    "virtex": Method(
        "VirTex",
        f"{_LIKELIHOOD} that writes forward",
        "scoring",
        {
            "objective.name": "captioning",
            "model.heads": {"decoder": {**_DECODER, "both_ways": True}},
        },
        curve=False,
    ),
    "icmlm": Method(
        "ICMLM",
        "mean log-probability of the label's distinct words, by its tag prediction",
        "scoring",
        {
            "objective.name": "masked_words",
            "objective.options": {"tag_weight": 1.0},
            "model.heads": {"masked_words": {**_DECODER, "text_layers": _LAYERS}},
        },
        curve=False,
    ),
    "convirt": Method(
        "ConVIRT",
        _COSINE,
        "zero_shot",
        {
            "model.text.layers": _LAYERS,
            "model.text.heads": _HEADS,
            "model.projection_width": 128,
            "model.temperature": 0.1,
            "loss.image_weight": 0.75,
            "optimizer.freeze": "logit_scale",
        },
        curve=False,
    ),
}


def steps_of(images: int) -> list[int]:
    """Returns the steps at which a run over so many images is evaluated, each twice the last."""
    last = images // BATCH
    return sorted({max(1, last >> i) for i in range(POINTS)})


def common_keys(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the config keys that all runs share."""
    steps = steps_of(args.images)
    embedded = args.data.startswith(EMOJI)
    return {
        "batch_size": BATCH,
        "steps": steps[-1],
        "tokenizer": "sentencepiece:embedded:emoji/emoji.model",
        "model.text.vocab_size": 2002,
        "model.text.width": _WIDTH,
        "model.vision.width": 128,
        "model.vision.heads": 4,
        "model.embed_dim": 128,
        "data.train": args.data,
        "data.captions": (args.caption,),
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": WARMUP,
        "log.every": 25,
        "checkpoint.every": 100_000,
        "evaluate.every": 100_000,
        "evaluate.at": tuple(steps),
        "evaluate.pictures": 0,
        "evaluate.sets": embedded_tests(args.out) if embedded else own_test(args),
    }


def own_test(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the test set that the flags name."""
    if not args.test:
        sys.exit("error: --data needs --test, a set with labels")
    keys = {"data": args.test, "labels": args.labels, "label": args.label}
    return {"test": {key: value for key, value in keys.items() if value}}


def embedded_tests(out: Path) -> dict[str, Any]:
    """Writes parts of the two tests of the emoji, and returns them as test sets.

    Scores of every label for every image by a decoder take long, so `LABELS` labels and `IMAGES`
    images of them are drawn, the same for all runs.
    """
    names = json.loads(Path(paths.resolve(f"{EMOJI}labels.json")).read_text())
    sets = {}
    for name in SETS:
        tar, listed = out / "data" / f"{name}.tar", out / "data" / f"{name}.json"
        sets[name] = {"data": str(tar), "labels": str(listed), "label": "name"}
        if tar.exists() and listed.exists():
            continue
        tar.parent.mkdir(parents=True, exist_ok=True)
        rng = random.Random(0)
        labels = sorted(rng.sample(sorted(names[name]), min(LABELS, len(names[name]))))
        listed.write_text(json.dumps(labels))
        images = [pair for pair in _pairs(name) if json.loads(pair[1])["name"] in set(labels)]
        with tarfile.open(tar, "w") as file:
            chosen = rng.sample(images, min(IMAGES, len(images)))
            for i, (key, text, ending, content) in enumerate(chosen):
                for end, data in (("json", text), (ending, content)):
                    member = tarfile.TarInfo(f"{i:04}-{key}.{end}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    return sets


def _pairs(name: str) -> Iterator[tuple[str, bytes, str, bytes]]:
    """Yields each image of a test: its concept's key, that concept's text, and the image."""
    for path in sorted(Path(paths.resolve(f"{EMOJI}labels.json")).parent.glob(f"{name}-*.tar")):
        with tarfile.open(path) as file:
            members = {m.name: file.extractfile(m).read() for m in file}  # type: ignore[union-attr]
        for member, content in sorted(members.items()):
            key, _, ending = member.partition(".")
            if not member.endswith(".json"):
                yield key, members[f"{key}.json"], ending.rpartition(".")[2], content


def flags_of(keys: Keys) -> list[str]:
    """Returns config keys as flags of the command line."""
    return [f"--config.{key}={value}" for key, value in keys.items()]


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Returns the folder of a run."""
    folder: Path = args.out / f"{args.images}-images" / f"{name}-{seed}"
    return folder


def run(args: argparse.Namespace, name: str, seed: int) -> None:
    """Trains and evaluates one run, unless it is done; an interrupted one goes on."""
    folder, method = folder_of(args, name, seed), METHODS[name]
    steps = steps_of(args.images)
    if accuracies(folder, method).get(steps[-1]):
        print(f"{name}, seed {seed}: done before", flush=True)
        return
    keys = {**common_keys(args), **method.keys, "evaluate.suite": (method.suite,), "seed": seed}
    command = [sys.executable, "-m", "clip_jax.main", "--config", "quickstart"]
    command += ["--workdir", str(folder), *flags_of(keys)]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(folder.with_suffix(".log"), "a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code:
        sys.exit(f"error: {name}, seed {seed} ended with {code}: see {folder.with_suffix('.log')}")
    seconds = time.monotonic() - began
    print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)


def accuracies(folder: Path, method: Method) -> dict[int, dict[str, float]]:
    """Returns the top-1 accuracy on each test set by step."""
    path = folder / "metrics.jsonl"
    found: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        values = json.loads(line)
        for key, value in values.items():
            evaluator, _, rest = key.partition("/")
            name, _, metric = rest.rpartition("/")
            if evaluator == method.suite and metric == "top1":
                found.setdefault(int(values["step"]), {})[name] = float(value)
    return found


def step_flops(args: argparse.Namespace, name: str) -> int:
    """Returns the analytic FLOPs of a step: forward and backward passes, with the loss."""
    keys = {**common_keys(args), **METHODS[name].keys}
    config, _ = loading.load("quickstart", [f"{k}={v}" for k, v in keys.items()])
    c, architecture, objective = setup.checked(config)
    groups = setup.check_groups(c, architecture)
    idle = unused_parts(objective)
    return flops.step(architecture, objective, c.batch_size, groups=groups, idle=idle)
