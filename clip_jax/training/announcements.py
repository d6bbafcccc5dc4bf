"""The lines that a run prints when it starts and when it ends."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import jax

from clip_jax.config.schema import Weights
from clip_jax.data import filters, mixture, pipeline
from clip_jax.distributed import multihost
from clip_jax.errors import counted
from clip_jax.evaluation import results as results_lib
from clip_jax.io.buckets import copy_command, is_bucket
from clip_jax.io.paths import EMBEDDED
from clip_jax.losses.registry import objective_names
from clip_jax.models import classifier
from clip_jax.models.clip import parameter_count
from clip_jax.models.head import DECODER, Head
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.scoring import scoring_head
from clip_jax.training import best_checkpoint, checkpointing, class_labels
from clip_jax.training.best_checkpoint import BestCheckpoint
from clip_jax.training.run import Run
from clip_jax.training.run_config import untrained_towers

if TYPE_CHECKING:
    from clip_jax.training.loop import Loop

_CLASSIFIER_STARTS = {
    "saved": "it starts as that of the weights",
    "zero_shot": "it starts as the zero-shot classifier",
    "zeros": "it starts at zero",
}
_FEW_OTHERS = 0.01  # pairs of the same image in a batch that are not worth a line


def _process_count() -> str:
    return f" of {jax.process_count()} processes" if multihost.is_multi_process() else ""


def announce(loop: Loop) -> None:
    """Prints what a run trains on and where it starts or resumes, before its first step."""
    run, trainer = loop.trainer.run, loop.trainer
    say = loop.progress.say
    devices = counted(jax.device_count(), f"{jax.devices()[0].platform} device")
    say(
        f"{counted(run.data.pairs, 'pair')}, {parameter_count(trainer.model):,} parameters, "
        f"batch {run.config.batch_size:,} on {devices}{_process_count()}, {run.config.dtype}; "
        f"run folder {run.workdir}"
    )
    if run.config.epochs:
        rows = counted(len(run.data), "pair")
        say(f"{run.config.epochs:g} epochs of {rows} are {counted(run.config.steps, 'step')}")
    if trainer.groups:
        say(trainer.groups.described(trainer.state_like.params))
    if labels := run.model.labels:
        names = ", ".join([*labels[:5], *("…" for _ in labels[5:6])])
        start = ""
        if not loop.first:
            source = run.weights.config if run.weights else None
            kind = class_labels.classifier_start(run.config, run.model, source)
            start = f"; {_CLASSIFIER_STARTS[kind]}"
        say(f"a classifier of {counted(len(labels), 'class', 'classes')}: {names:.200}{start}")
    for missing in run.suite.missing:
        if missing.evaluator:
            say(f"not evaluated: {missing.why}")
    for part in run.data.parts:
        _announce_part(loop, part)
    _announce_negatives(loop)
    for line in loop.lines:
        say(line)
    if loop.first >= run.config.steps:
        say(f"all {run.config.steps} steps were done before: nothing to train")
    elif loop.best.is_over:
        say(f"{loop.best.end(loop.first)}: nothing to train; raise config.early_stop to go on")
    elif run.weights:
        start = f"starting from {_described_weights(run.config.weights)}"
        say("; ".join(filter(None, [start, *run.weights.remarks])))
        for line in head_starts(run.weights.config if run.config.weights.path else None, run.model):
            say(line)
        old, new = (
            f"{c.vision.image_size} pixels and {c.text.context_length} tokens"
            for c in (run.weights.config, run.model)
        )
        if run.config.weights.resize and old != new:
            say(f"its positions are resized: {old} to {new}")
    elif loop.first:
        rate = float(trainer.schedule(loop.first))
        say(
            f"resuming after step {loop.first} of {run.config.steps}, at a learning rate of "
            f"{rate:.3g}"
        )


def head_starts(saved: CLIPConfig | None, model: CLIPConfig) -> Iterator[str]:
    """Yields which heads start from saved weights, which at random, and which are left out.

    The classifier has a line of its own.

    Args:
      saved: the architecture of the weights; None: files of single towers, without heads.
      model: the architecture of the run.
    """
    for name, head in model.heads:
        before = saved.head(name) if saved else None
        if name == classifier.NAME:
            continue
        if before is None:
            yield f"the weights have no head {name}: it starts at random"
        elif before == head:
            yield f"its {name} is taken, too"
        else:
            yield f"its {name} has other sizes{_differences(before, head)} and starts at random"
    unused = [name for name, _ in saved.heads if not model.head(name)] if saved else []
    if unused:
        are, them = ("is", "it") if len(unused) == 1 else ("are", "them")
        yield f"its {' and '.join(unused)} {are} left out: this run does not use {them}"


def _differences(before: Head, head: Head) -> str:
    """Returns the values that differ between two configs of a head: ` (width 192, here 128)`."""
    old, new = vars(before), vars(head)
    changed = [key for key in old if key in new and old[key] != new[key]]
    values = [f"{key} {old[key]!s:.40}, here {new[key]!s:.40}" for key in changed]
    return f" ({'; '.join(values)})" if values else ""


def _described_weights(weights: Weights) -> str:
    """Returns which weights a run starts from."""
    if weights.path:
        return f"the averaged weights of {weights.path}" if weights.ema else weights.path
    towers = [("image", weights.vision), ("text", weights.text)]
    return ", ".join(f"{path} ({side} tower)" for side, path in towers if path)


def _announce_negatives(loop: Loop) -> None:
    """Prints where a batch holds several pairs of one image, and what that does to negatives."""
    c, data, say = loop.trainer.run.config, loop.trainer.run.data, loop.progress.say
    multi_positive = c.loss.multi_positive
    if not {"contrastive", "coca"} & set(objective_names(c.objective)):
        if len(data) < c.batch_size:
            say(
                f"an epoch of {counted(len(data), 'pair')} is smaller than a batch of "
                f"{c.batch_size:,}: an image stands in a batch more than once; lower "
                "config.batch_size"
            )
        return
    if len(data) < c.batch_size:
        size = (
            f"an epoch of {counted(len(data), 'pair')} is smaller than a batch of "
            f"{c.batch_size:,}: a pair stands in a batch more than once, and "
        )
        say(
            f"{size}its copies count as positives"
            if multi_positive
            else f"{size}each image is then its own negative; lower config.batch_size"
        )
    if loop.first or not multihost.is_first():
        return  # no need to read images again
    for part in data.parts:
        prefix = f"{part.name}: " if part.name else ""
        shared = pipeline.pairs_per_picture(part.source)
        rows = c.batch_size * part.rows / len(data)
        others = (rows - 1) * (shared - 1) / max(1, len(part.source) - 1)
        if others < _FEW_OTHERS:
            continue
        count_as = (
            "positives"
            if multi_positive
            else "negatives; config.loss.multi_positive=True counts them as positives"
        )
        say(
            f"{prefix}an image has {shared:.3g} pairs: beside a pair, a batch holds on average "
            f"{others:.3g} others of its image, which count as {count_as}"
        )


def _announce_part(loop: Loop, part: mixture.Part) -> None:
    """Prints a source's share of a mixture, and what its opening and its filter left out."""
    source, prefix = part.source, f"{part.name}: " if part.name else ""
    if part.name:
        share = part.rows / len(source)
        loop.progress.say(
            f"{prefix}{counted(len(source), 'pair')}, {counted(part.rows, 'row')} an epoch "
            f"({share:.3g} of them)"
        )
    group = f"{part.name}/" if part.name else ""
    left_out = source.opening_report().metrics(f"data/left_out/{group}")
    if isinstance(source, filters.Selected):
        loop.progress.say(f"{prefix}the filter left out {filters.described(source)}")
        left_out |= {f"data/filtered/{group}{reason}": n for reason, n in source.left_out.items()}
    if left_out and not loop.first:
        loop.writer.write(0, left_out)


def announce_end(run: Run, step: int, stopped_by: int, best: BestCheckpoint) -> None:
    """Prints where a run ended, and what to do next.

    Args:
      run: the run.
      step: the step at which it ended.
      stopped_by: the number of the signal that stopped it, or 0.
      best: the best checkpoint.
    """
    if best.is_over and step < run.config.steps:
        print(best.end(step), file=sys.stderr)
    elif step < run.config.steps:
        where = f"saved at step {step}" if step else "before the first step"
        name = signal.Signals(stopped_by).name
        print(f"stopped by {name}, {where}: the same command goes on from there", file=sys.stderr)
        return
    folder = shlex.quote(str(run.workdir))
    used = folder
    if best.step is not None:
        used = shlex.quote(str(run.workdir / checkpointing.FOLDER / best_checkpoint.BEST))
    flags = _classify_flags(run)
    suggestions = []
    if flags is not None:
        suggestions.append(f"python -m clip_jax classify --checkpoint {used} IMAGE.png{flags}")
    if (page := run.workdir / results_lib.PAGE).exists():
        copied = f"{copy_command(page)} && " if is_bucket(page) else ""
        suggestions.append(f"{copied}open {page.name if copied else page} in a browser")
    if not is_bucket(run.workdir) and (run.workdir / "tensorboard").is_dir():
        install = "" if find_spec("tensorboard") else "pip install tensorboard && "
        suggestions.append(f"{install}tensorboard --logdir {folder}")
    if run.config.data.train.startswith(EMBEDDED):
        command = "the command of this run with"
        if objective_names(run.config.objective) == ("contrastive",):
            command = "python -m clip_jax.main --config quickstart"
        suggestions.append(
            f"train on your own tars: {command} --workdir runs/mine "
            "--config.data.train='/path/{00000..00099}.tar' "
            "--config.data.captions=\"('{caption}',)\""
        )
    lines = [
        f"done: {counted(step, 'step')} in {run.workdir}",
        "what to try next:",
        *(f"  {suggestion}" for suggestion in suggestions),
    ]
    print("\n".join(lines))


def _classify_flags(run: Run) -> str | None:
    """Returns the flags that `classify` needs for the model; None: it answers nothing."""
    if run.model.labels:
        return ""
    if run.model.head(DECODER) is not None:
        return " --caption"
    if scoring_head(run.model) or "text" not in untrained_towers(
        run.config, run.model, run.random_start
    ):
        return ' --labels "a cat,a dog"'
    return None
