"""The loop: batch → step → metrics → evaluation → checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clip_jax import config, tokenizers
from clip_jax.data import filters, fingerprint, mixture, pipeline
from clip_jax.data.example import REASONS
from clip_jax.data.mixture import Mixture
from clip_jax.data.sources import Source
from clip_jax.distributed import global_batch as rows_lib
from clip_jax.distributed import hardware, multihost, sharding
from clip_jax.errors import UserError, counted
from clip_jax.evaluation import results as results_lib
from clip_jax.evaluation.features import Encoder
from clip_jax.evaluation.suite import Suite, table, write_sheets
from clip_jax.inference.saved_models import SavedModel, open_saved_model
from clip_jax.io import files
from clip_jax.io.paths import EMBEDDED
from clip_jax.losses.objectives import Contrastive
from clip_jax.models import architectures
from clip_jax.models.architectures import CLIPConfig
from clip_jax.models.clip import Variables, parameter_count
from clip_jax.tokenizers import Tokenizer, packing
from clip_jax.training import checkpointing, flops, metric_writers, setup, workdir_lock
from clip_jax.training import train_step as step_lib
from clip_jax.weights import library, positions


@dataclasses.dataclass
class Run:
    """What a config comes to once everything that it names has been opened and checked."""

    config: ConfigDict
    model: CLIPConfig
    objective: Contrastive
    tokenizer: Tokenizer
    data: Mixture
    suite: Suite
    workdir: Path
    weights: SavedModel | None = None

    @functools.cached_property
    def fingerprints(self) -> dict[str, Any]:
        """What the data and the tokenizer are, wherever they lie."""
        return {
            "version": fingerprint.VERSION,
            "data": fingerprint.of_mixture(self.data),
            "tokenizer": fingerprint.of_tokenizer(self.tokenizer),
        }


_FINGERPRINTS = "fingerprints.json"


def prepare(c: ConfigDict) -> Run:
    """Opens what a config names and finds its mistakes, before any device is touched."""
    model, objective = setup.checked(c, jax.device_count())
    if not c.workdir:
        raise UserError("no workdir given: --workdir=FOLDER says where the run is kept")
    tokenizer = tokenizers.load(c.tokenizer, model.text.context_length)
    setup.check_tokenizer(c.tokenizer, tokenizer, model.text)
    pictures: list[Source] = []
    suite = Suite(
        c.evaluate.to_dict(),
        tokenizer,
        library.preprocess_of(model),
        training=lambda: pictures,
    )
    fresh = not multihost.from_first(lambda: checkpointing.steps(c.workdir))
    weights = _weights(c, model) if fresh and c.weights.path else None
    # last: a filter may take long
    data = mixture.opened(c.data.to_dict(), _say_first)
    pictures.extend(part.source for part in data.parts)
    return Run(c, model, objective, tokenizer, data, suite, Path(c.workdir), weights)


def _say_first(line: str) -> None:
    if multihost.is_first():
        print(line, file=sys.stderr, flush=True)


def _weights(c: ConfigDict, model: CLIPConfig) -> SavedModel:
    """The saved model that a fresh run starts from, checked against the one that it is for."""
    # with resize its sizes need not be the file's
    name = None if c.weights.resize else architectures.name_of(model, any_activation=True)
    found = open_saved_model(c.weights.path, name, library.config_activation(model, name))
    how = "--config.weights.resize=True"
    positions.check_fits(found.config, model, c.weights.path, c.weights.resize, how)
    return found


class StopSignal:
    """Ctrl-C and SIGTERM as a wish to stop after the step; a Ctrl-C after it stops at once.

    Another SIGTERM is the same wish: a machine that shuts down tells a process, and so does the
    launcher of that process.
    """

    def __init__(self) -> None:
        self.number = 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number

    @contextmanager
    def watching(self) -> Iterator[StopSignal]:
        """Takes the two signals over while it lasts."""
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def claim_workdir(run: Run) -> None:
    """Writes config.json into a new workdir; in an old one checks that it is the same run.

    The first process does that for all, before any goes on.

    Raises:
      UserError: the folder belongs to a run of another config, or cannot be written.
    """
    multihost.from_first(lambda: _claim(run))
    if multihost.from_first(lambda: run.fingerprints) != run.fingerprints:
        raise UserError(
            "this process reads other data or another tokenizer than process 0: every host needs "
            "the same files"
        )


def _claim(run: Run) -> None:
    path, fingerprints = run.workdir / checkpointing.CONFIG, run.workdir / _FINGERPRINTS
    now, weights = run.fingerprints, run.config.weights.path
    if not path.exists():
        _write_claim(fingerprints, {**now, "weights": fingerprint.of_weights(weights)})
        with files.whole(path) as file:
            file.write(config.to_json(run.config).encode())
        return
    old = checkpointing.read_config(run.workdir)
    changed = config.changes(old, run.config.to_dict())
    before = _read_claim(fingerprints)
    moved = [key for key in changed if config.is_place(key)] if before else []
    if before and "weights.path" in changed and _are_moved(old, weights, before.get("weights")):
        moved.append("weights.path")
    if rest := [line for key, line in changed.items() if key not in moved]:
        raise UserError(
            f"{run.workdir} holds a run of another config ({'; '.join(rest)}): "
            "give another --workdir, or the values it was started with"
        )
    if before is None:
        _write_claim(fingerprints, now)
    elif any(before.get(key) != value for key, value in now.items()):
        raise UserError(
            f"{run.workdir} holds a run on {_different(before, now)}: give the data it began with, "
            "or another --workdir"
        )
    elif moved:
        with files.whole(path) as file:
            file.write(config.to_json(run.config).encode())


def _are_moved(old: dict[str, Any], path: str, before: Any) -> bool:
    """Whether weights at another path are those that the run began with.

    A resumed run does not read them: where they are gone, the last name of the path has to do.
    """
    now, group = fingerprint.of_weights(path) if path else "", old.get("weights")
    if before and now is not None:
        return bool(before == now)
    was = group.get("path") if isinstance(group, dict) else None
    return bool(was and path) and Path(str(was)).name == Path(path).name


def _read_claim(path: Path) -> dict[str, Any] | None:
    """The fingerprints in a run's folder; None where there are none, or an older version's."""
    if not path.exists():
        return None
    try:
        found = files.read_json(path, what="fingerprints")
    except UserError as error:
        raise UserError(
            f"{error}: it tells whether the data is what the run began with; delete it where you "
            "are sure of that"
        ) from None
    return found if found.get("version") == fingerprint.VERSION else None


def _write_claim(path: Path, fingerprints: dict[str, Any]) -> None:
    with files.whole(path) as file:
        file.write(json.dumps(fingerprints, indent=1, sort_keys=True).encode() + b"\n")


def _different(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What the fingerprints of a run's folder and of a command differ in."""
    old, new = before.get("data"), now["data"]
    if not isinstance(old, dict) or old == new:
        return "another tokenizer"
    name = min(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    pairs = [str(of.get(name, "0")).partition(" ")[0] for of in (old, new)]
    where = f"config.data.mix.{name}" if name else "config.data.train"
    return f"other pairs than {where} gives ({pairs[0]:.20} then, {pairs[1]} now)"


def _check_same_run(run: Run, step: int) -> None:
    """Raises UserError where a checkpoint is another run's that was put into this one's folder."""
    if (saved := checkpointing.read_saved_config(run.workdir, step)) is None:
        return  # an older version's; its arrays tell
    changed = config.changes(saved, run.config.to_dict())
    lines = [
        line
        for key, line in changed.items()
        if not (config.is_place(key) or key == "weights.path")  # they may have moved since
    ]
    if lines:
        raise UserError(
            f"{run.workdir / checkpointing.FOLDER / str(step)} is that of a run of another config "
            f"({'; '.join(lines)}): bring back the run's own, or move it away"
        )


def _check_room(state: Any, workdir: Path, keep: int) -> None:
    stat = os.statvfs(workdir)
    free, need = stat.f_bavail * stat.f_frsize, (keep + 1) * checkpointing.bytes_of(state)
    if free < need:
        raise UserError(
            f"{workdir} has {free / 2**30:.1f} GiB free, {keep + 1} checkpoints take "
            f"{need / 2**30:.1f}: make room, lower config.checkpoint.keep or choose another "
            "--workdir"
        )


class Trainer(setup.Recipe):
    """A run on its devices: the compiled step, the state, the data."""

    def __init__(self, run: Run) -> None:
        self.run = run
        mesh = sharding.make_mesh(run.config.mesh.to_dict())
        super().__init__(run.config, run.model, run.objective, mesh)

    def evaluate(self, variables: Variables) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The suite's results on a model's variables, and the pictures that they name."""
        run = self.run
        pad_id = run.tokenizer.pad_id if run.model.text.blind_to_padding else None
        size = run.config.evaluate.batch_size
        encoder = Encoder(self.graph, variables, self.mesh, size, pad_id)
        return run.suite.evaluate(encoder, float(nnx.merge(self.graph, *variables).scale))

    def report(
        self, results: dict[str, Any], pictures: dict[str, bytes], step: int, seconds: float
    ) -> None:
        """Puts the results' page and pictures into the run's folder."""
        run = self.run
        write_sheets(results, pictures, run.workdir / "pictures" / f"step_{step}")
        results["model"] = results_lib.model_facts(
            architectures.name_of(run.model, any_activation=True) or run.workdir.name,
            str(run.workdir),
            step,
            parameter_count(self.model),
            run.model.vision.image_size,
            run.config.dtype,
        )
        results["curves"] = results_lib.curves(metric_writers.read(run.workdir / "metrics.jsonl"))
        results["seconds"] = seconds
        results_lib.write(run.workdir, results, pictures)

    def state_from(self, found: SavedModel) -> step_lib.TrainState:
        """A fresh state around saved weights, in fp32, resized where the model asks it."""
        params, stats = jax.device_get(found.read("float32"))
        vision, text = self.run.model.vision, self.run.model.text
        params, _ = positions.resized(params, found.config, vision.image_size, text.context_length)
        return step_lib.state_of((params, stats), self.optimizer, self.mesh, **self.kept)

    def fresh(self) -> step_lib.TrainState:
        """A state of random numbers, or around the weights that the config names."""
        run = self.run
        if run.weights:
            return self.state_from(run.weights)
        seed = run.config.seed
        return step_lib.init_state(run.model, self.optimizer, seed, self.mesh, **self.kept)

    def data(self) -> pipeline.Batches:
        """The iterator over this process's batches."""
        c, run = self.run.config, self.run
        batches = pipeline.batches(
            run.data,
            pipeline.Prepare.of(c.data.to_dict(), run.tokenizer, run.model.vision.image_size),
            batch_size=c.batch_size,
            seed=c.seed,
            rows=rows_lib.process_rows(self.mesh, c.batch_size),
        )
        return pipeline.iterator(
            batches,
            threads=c.data.threads,
            workers=c.data.workers,
            prefetch=c.data.prefetch,
            max_bad_fraction=c.data.max_bad_fraction,
        )

    def place(self, rows: pipeline.Row) -> dict[str, jax.Array]:
        """This process's rows as the global batch, without columns that no text reaches."""
        # many processes would have to agree on the longest text
        if not multihost.many() and self.run.model.text.blind_to_padding:
            pad_id = self.run.tokenizer.pad_id
            rows = {**rows, "tokens": packing.trim(rows["tokens"], pad_id=pad_id)}
        return rows_lib.global_batch(rows, self.mesh)

    def compile(self, context_length: int) -> step_lib.TrainStep:
        """The step for texts of a width, compiled before the clock of images/s starts."""
        return self.lower(context_length).compile()


def _progress(mesh: Mesh, c: ConfigDict, done: int) -> metric_writers.Progress:
    chip = hardware.chip_of_device(mesh.devices.flat[0])
    return metric_writers.Progress(
        c.steps,
        done,
        c.batch_size,
        devices=mesh.size,
        peak=chip.peak if chip else None,
        mute=not multihost.is_first(),
    )


class Loop:
    """Steps until the end or a signal; says what happens on the way."""

    def __init__(
        self,
        trainer: Trainer,
        data: pipeline.Batches,
        stop: StopSignal,
        lock: workdir_lock.Lock | None = None,
    ) -> None:
        self.trainer, self.data, self.stop, self.lock = trainer, data, stop, lock
        self.any_stop = multihost.AnyOf(trainer.mesh) if multihost.many() else None
        self.stopped_by = 0  # the number of the signal
        self.config = c = trainer.run.config
        self.lines: list[str] = []  # about checkpoints that were passed over
        step = multihost.from_first(self._newest)
        self.checkpoints = checkpointing.Checkpoints(
            trainer.run.workdir, every=c.checkpoint.every, keep=c.checkpoint.keep
        )
        self.state, self.first = self._start(step)
        self.writer = (
            metric_writers.Writer(
                trainer.run.workdir, resume_step=self.first, tensorboard=c.log.tensorboard
            )
            if multihost.is_first()
            else metric_writers.Unwritten()
        )
        self.progress = _progress(trainer.mesh, c, self.first)
        self.flops = 0  # of the steps since the last line of the log
        self.compiled: dict[int, step_lib.TrainStep] = {}  # by the width of the texts
        self.parts = trainer.run.data.parts
        mixed = [f"data/source/{part.name}" for part in self.parts if part.name]
        self.counted = [*(f"data/skipped/{reason}" for reason in REASONS), *mixed]
        # pairs left out, and rows of each source, since they were last written
        self.counts = np.zeros(len(self.counted), np.int64)
        self.told = False  # of the first that was left out

    def _newest(self) -> int | None:
        """The step of the newest whole checkpoint; what is newer is moved out of the way."""
        workdir = self.trainer.run.workdir
        step = checkpointing.newest(workdir, self.lines.append)
        if step is None:
            logged = metric_writers.read(workdir / "metrics.jsonl")
            if last := max((line["step"] for line in logged), default=0):
                self.lines.append(
                    f"{workdir} holds metrics up to step {last} and no checkpoint: the run begins "
                    "anew, and does not write again what they hold"
                )
            return None
        _check_same_run(self.trainer.run, step)
        checkpointing.set_aside(workdir, after=step)
        return step

    def _start(self, step: int | None) -> tuple[step_lib.TrainState, int]:
        """The state to go on from and its step: a checkpoint's, or a fresh one's."""
        trainer = self.trainer
        if step is not None:
            state, position = self.checkpoints.restore(step, trainer.state_like)
            self.data.set_state(position)
            return state, step
        run = trainer.run
        if multihost.is_first():
            _check_room(trainer.state_like, run.workdir, self.config.checkpoint.keep)
        return trainer.fresh(), 0

    def _step_for(self, batch: dict[str, jax.Array]) -> step_lib.TrainStep:
        width = batch["tokens"].shape[1]
        if width not in self.compiled:
            began = time.monotonic()
            self.compiled[width] = self.trainer.compile(width)
            seconds = time.monotonic() - began
            self.progress.say(f"compiled the step for {width} tokens a text in {seconds:.0f} s")
            self.progress.leave_out(seconds)
        return self.compiled[width]

    def _log(self, step: int, tokens: int, counts: np.ndarray, out: dict[str, jax.Array]) -> None:
        """Reads a step's metrics, which waits for it.

        `tokens` is the width of its texts, `counts` what is counted of its data.
        """
        if self.any_stop:
            self.stopped_by = int(out.pop("stop"))
        values = {name: float(value) for name, value in out.items()}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {step}: lower "
                "config.optimizer.learning_rate or set config.optimizer.clip_norm=1.0; "
                "the checkpoints before it are kept"
            )
        run, batch_size = self.trainer.run, self.config.batch_size
        self.flops += flops.step(run.model, batch_size, tokens=tokens)
        self.counts = self.counts + counts
        if step % self.config.log.every and step != self.config.steps:
            return
        self.check_lock()
        rates = self.progress.rates(step, self.flops)
        self.flops = 0
        values |= self._counted()
        values |= {**rates, "epoch": step * batch_size / len(run.data)}
        values["learning_rate"] = float(self.trainer.schedule(step - 1))
        self.writer.write(step, values)
        self.progress.show(step, values["loss"], rates)

    def _of_batch(self) -> np.ndarray:
        """What is counted of the newest batch's rows in this process."""
        rows = np.bincount(self.data.source, minlength=len(self.parts))
        return np.concatenate([self.data.bad, rows])[: len(self.counted)]

    def _counted(self) -> dict[str, int]:
        """What all processes counted since it was last written."""
        found = multihost.total(self.counts)
        self.counts = np.zeros_like(found)
        return {name: int(n) for name, n in zip(self.counted, found, strict=True) if n}

    def _say_left_out(self) -> None:
        if not self.told and self.data.complaint:
            self.told = True
            self.progress.say(f"a pair is left out: {self.data.complaint}")
            self.progress.say("  such are counted as data/skipped/… in the metrics")

    def _evaluate(self, step: int) -> None:
        began = time.monotonic()
        results, pictures = self.trainer.evaluate(self.state.variables)
        found = results_lib.flat(results)
        self.writer.write(step, found)
        seconds = time.monotonic() - began
        if multihost.is_first():
            self.trainer.report(results, pictures, step, seconds)
        for path in sorted((self.trainer.run.workdir / "pictures" / f"step_{step}").glob("*.png")):
            self.writer.picture(step, f"pictures/{path.stem}", path)
        self.progress.say(f"evaluation at step {step} ({seconds:.0f} s)")
        self.progress.say(table(found))
        self.progress.leave_out(time.monotonic() - began)

    def check_lock(self) -> None:
        """Raises UserError where another run has taken the folder."""
        if self.lock:
            self.lock.check()

    def _save(self, step: int, force: bool = False) -> None:
        self.check_lock()
        if counted := self._counted():  # a run that goes on from here does not know them
            self.writer.write(step, counted)
        position = self.data.get_state()
        values = config.without_secrets(self.config.to_dict())
        self.checkpoints.save(step, self.state, position, values, force=force)

    def _stopping(self) -> bool:
        """Whether this is the last step; many processes learn it together, with the metrics."""
        if not self.any_stop:
            self.stopped_by = self.stop.number
        return bool(self.stopped_by)

    def run(self) -> int:
        """Trains; returns the step that it came to."""
        c, step = self.config, self.first
        if step >= c.steps:
            return step
        before: tuple[int, int, np.ndarray, dict[str, jax.Array]] | None = None
        while step < c.steps and not self._stopping():
            batch = self.trainer.place(next(self.data))
            self._say_left_out()
            train_step = self._step_for(batch)
            step += 1
            self.state, out = train_step(self.state, batch)
            if self.any_stop:
                out = {**out, "stop": self.any_stop(self.stop.number)}
            # step N + 1 is dispatched before N's metrics are read: the device never waits
            if before:
                self._log(*before)
            before = (step, batch["tokens"].shape[1], self._of_batch(), out)
            last = step == c.steps
            evaluating = self.trainer.run.suite and (last or step % c.evaluate.every == 0)
            saving = step % c.checkpoint.every == 0 and not last  # the last is saved below
            if evaluating or saving:
                self._log(*before)
                before = None
            if evaluating:
                self._evaluate(step)
            if saving:
                self._save(step)
            self.progress.advance()
        if before:
            self._log(*before)
        if step > self.first:
            self._save(step, force=True)
        return step

    def close(self, failed: bool = False) -> None:
        """Waits for the checkpoint under way; closes the files."""
        self.progress.close()
        self.data.close()
        if not (failed and multihost.many()):  # the others are not told yet
            self.checkpoints.close()
        self.writer.close()


def train(c: ConfigDict, force: bool = False) -> None:
    """Trains as a config says, from its newest checkpoint when there is one.

    force: also where another run is at work in the same folder, which then ends.

    Raises:
      UserError: the config or the data is wrong, the disk is full, the loss is not finite, or
        another run is at work in the folder.
    """
    if c.workdir:
        multihost.from_first(lambda: workdir_lock.refuse_in_use(Path(c.workdir), force))
    run = prepare(c)
    trainer = Trainer(run)
    with _locked(run.workdir, force) as lock:
        claim_workdir(run)
        with StopSignal().watching() as stop:
            loop = Loop(trainer, trainer.data(), stop, lock)
            _announce(loop)
            try:
                step = loop.run()
            except BaseException:
                try:
                    loop.close(failed=True)
                finally:
                    loop.check_lock()  # what fails may do so because another run took the folder
                raise
            loop.close()
    if multihost.is_first():
        _farewell(run, step, loop.stopped_by)


@contextmanager
def _locked(workdir: Path, force: bool) -> Iterator[workdir_lock.Lock | None]:
    """The first process takes the folder for all, before any goes on."""
    locks: list[workdir_lock.Lock] = []
    with ExitStack() as stack:
        multihost.from_first(
            lambda: locks.append(stack.enter_context(workdir_lock.held(workdir, force, _say_first)))
        )
        yield locks[0] if locks else None


def _of_processes() -> str:
    return f" of {jax.process_count()} processes" if multihost.many() else ""


def _announce(loop: Loop) -> None:
    run, trainer = loop.trainer.run, loop.trainer
    say = loop.progress.say
    devices = counted(jax.device_count(), f"{jax.devices()[0].platform} device")
    say(
        f"{counted(run.data.pairs, 'pair')}, {parameter_count(trainer.model):,} parameters, "
        f"batch {run.config.batch_size:,} on {devices}{_of_processes()}, {run.config.dtype}; "
        f"run folder {run.workdir}"
    )
    for part in run.data.parts:
        _announce_part(loop, part)
    if len(run.data) < run.config.batch_size:
        say(
            f"an epoch of {counted(len(run.data), 'pair')} is smaller than a batch of "
            f"{run.config.batch_size:,}: a pair stands in a batch more than once, and each picture "
            "is then its own negative; lower config.batch_size"
        )
    for line in loop.lines:
        say(line)
    if loop.first >= run.config.steps:
        say(f"all {run.config.steps} steps were done before: nothing to train")
    elif run.weights:
        start = f"starting from {run.config.weights.path}"
        say("; ".join(filter(None, [start, run.weights.guessed])))
        old, new = (
            f"{c.vision.image_size} pixels and {c.text.context_length} tokens"
            for c in (run.weights.config, run.model)
        )
        if run.config.weights.resize and old != new:
            say(f"its positions are resized: {old} to {new}")
    elif loop.first:
        say(f"resuming after step {loop.first} of {run.config.steps}")


def _announce_part(loop: Loop, part: mixture.Part) -> None:
    """What of a mixture a source is, and what opening it and a filter left out."""
    source, of = part.source, f"{part.name}: " if part.name else ""
    if part.name:
        share = part.rows / len(source)
        loop.progress.say(
            f"{of}{counted(len(source), 'pair')}, {counted(part.rows, 'row')} an epoch "
            f"({share:.3g} of them)"
        )
    below = f"{part.name}/" if part.name else ""
    left_out = source.opening_report().metrics(f"data/left_out/{below}")
    if isinstance(source, filters.Selected):
        loop.progress.say(f"{of}the filter left out {filters.described(source)}")
        left_out |= {f"data/filtered/{below}{why}": n for why, n in source.left_out.items()}
    if left_out and not loop.first:
        loop.writer.write(0, left_out)


def _farewell(run: Run, step: int, stopped_by: int) -> None:
    if step < run.config.steps:
        where = f"saved at step {step}" if step else "before the first step"
        name = signal.Signals(stopped_by).name
        print(f"stopped by {name}, {where}: the same command goes on from there", file=sys.stderr)
        return
    folder = shlex.quote(str(run.workdir))
    tries = [
        f'python -m clip_jax classify --checkpoint {folder} PICTURE.png --labels "a cat,a dog"'
    ]
    if (page := run.workdir / results_lib.PAGE).exists():
        tries.append(f"open {page} in a browser")
    if (run.workdir / "tensorboard").is_dir():
        tries.append(f"tensorboard --logdir {folder}")
    if run.config.data.train.startswith(EMBEDDED):
        tries.append(
            "train on your own tars: --config.data.train='/path/{00000..00099}.tar' "
            "--workdir runs/mine"
        )
    lines = [
        f"done: {counted(step, 'step')} in {run.workdir}",
        "what to try next:",
        *(f"  {t}" for t in tries),
    ]
    print("\n".join(lines))
