"""The training loop: batch, step, metrics, evaluation, checkpoint."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import config as config_lib
from clip_jax.config.schema import Config
from clip_jax.data import pipeline
from clip_jax.data.example import REASONS
from clip_jax.distributed import hardware, multihost
from clip_jax.errors import UserError
from clip_jax.evaluation import results as results_lib
from clip_jax.io import buckets
from clip_jax.io.buckets import as_path
from clip_jax.models.clip import Variables
from clip_jax.training import checkpointing, metric_writers, trackers, workdir_lock
from clip_jax.training import train_step as step_lib
from clip_jax.training.announcements import announce, announce_end
from clip_jax.training.best_checkpoint import BestCheckpoint
from clip_jax.training.run import prepare
from clip_jax.training.run_identity import check_same_run, claim_workdir, release_workdir
from clip_jax.training.stop_signal import StopSignal
from clip_jax.training.trainer import Sizes, Trainer


def _check_room(state: Any, workdir: Path, c: Config) -> None:
    if buckets.is_bucket(workdir):
        return
    stat = os.statvfs(workdir)
    count = max(c.checkpoint.keep, 1) + bool(c.checkpoint.best) + 1
    free, need = stat.f_bavail * stat.f_frsize, count * checkpointing.bytes_of(state)
    if free < need:
        raise UserError(
            f"{workdir} has {free / 2**30:.1f} GiB free, {count} checkpoints take "
            f"{need / 2**30:.1f}: make room, lower config.checkpoint.keep or choose another "
            "--workdir"
        )


def _progress(mesh: Mesh, c: Config, done: int) -> metric_writers.Progress:
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
    """Runs the steps of training until the last one or a signal; logs, evaluates and saves."""

    def __init__(
        self,
        trainer: Trainer,
        data: pipeline.Batches,
        stop: StopSignal,
        lock: workdir_lock.Lock | None = None,
    ) -> None:
        self.trainer, self.data, self.stop, self.lock = trainer, data, stop, lock
        self.any_stop = (
            multihost.MaxOverProcesses(trainer.mesh) if multihost.is_multi_process() else None
        )
        self.stopped_by = 0  # the number of the signal that stopped the run
        self.config = c = trainer.run.config
        self.lines: list[str] = []  # about checkpoints that were skipped
        step = multihost.broadcast_from_first(self._newest)
        self.checkpoints = checkpointing.Checkpoints(
            trainer.run.workdir,
            every=c.checkpoint.every,
            keep=c.checkpoint.keep,
            keep_every=c.checkpoint.keep_every,
        )
        self.state, self.first = self._start(step)
        self.best = BestCheckpoint(c.checkpoint.best, c.early_stop, trainer.run.workdir)
        self.best.history = multihost.broadcast_from_first(lambda: self.best.read(self.first))
        self.checkpoints.preserve.best = self.best.step
        self.writer = (
            metric_writers.Writer(
                trainer.run.workdir,
                resume_step=self.first,
                tensorboard=c.log.tensorboard,
                trackers=trackers.open_trackers(
                    c, trainer.run.workdir, config_lib.without_secrets(c.to_dict())
                ),
            )
            if multihost.is_first()
            else metric_writers.Unwritten()
        )
        self.progress = _progress(trainer.mesh, c, self.first)
        self.flops = 0  # model FLOPs of the steps since the last line of the log
        self.compiled: dict[Sizes, step_lib.TrainStep] = {}
        self.parts = trainer.run.data.parts
        mixed = [f"data/source/{part.name}" for part in self.parts if part.name]
        self.counted = [*(f"data/skipped/{reason}" for reason in REASONS), *mixed]
        # skipped pairs, and rows of each source, since the last line of the log
        self.counts = np.zeros(len(self.counted), np.int64)
        self.told = False  # whether the first skipped pair was reported

    def _newest(self) -> int | None:
        """Returns the step of the newest intact checkpoint, and moves damaged newer ones aside."""
        workdir = self.trainer.run.workdir
        step = checkpointing.newest(workdir, self.lines.append)
        if step is None:
            logged = metric_writers.read_metrics(workdir / "metrics.jsonl")
            if last := max((line["step"] for line in logged), default=0):
                self.lines.append(
                    f"{workdir} holds metrics up to step {last} and no checkpoint: the run begins "
                    "anew, and does not write again what they hold"
                )
            return None
        check_same_run(self.trainer.run, step)
        checkpointing.set_aside(workdir, after=step)
        return step

    def _start(self, step: int | None) -> tuple[step_lib.TrainState, int]:
        """Returns the initial state and its step: from a checkpoint, or fresh."""
        trainer = self.trainer
        if step is not None:
            state, position = self.checkpoints.restore(step, trainer.state_like)
            self.data.set_state(position)
            return state, step
        run = trainer.run
        if multihost.is_first():
            _check_room(trainer.state_like, run.workdir, self.config)
        try:
            return trainer.fresh(), 0
        except UserError:
            release_workdir(run)
            raise

    def _step_for(self, batch: dict[str, jax.Array]) -> step_lib.TrainStep:
        sizes = self.trainer.sizes(batch)
        if sizes not in self.compiled:
            began = time.monotonic()
            self.compiled[sizes] = self.trainer.compile(*sizes)
            seconds = time.monotonic() - began
            of_images = f" and {sizes[1]} patches an image" if sizes[1] else ""
            self.progress.say(
                f"compiled the step for {sizes[0]} tokens a text{of_images} in {seconds:.0f} s"
            )
            self.progress.leave_out(seconds)
        return self.compiled[sizes]

    def _log(
        self,
        step: int,
        sizes: Sizes,
        counts: np.ndarray,
        out: dict[str, jax.Array],
    ) -> None:
        """Reads the metrics of a step, which waits for the step to complete.

        Args:
          step: the step.
          sizes: of its texts and images, see `Trainer.sizes`.
          counts: counts of its data, in the order of `counted`.
          out: its metrics on the devices.
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
        self.flops += self.trainer.step_flops(*sizes)
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

    def _batch_counts(self) -> np.ndarray:
        """Counts of the newest batch's rows in this process, in the order of `counted`."""
        rows = np.bincount(self.data.source, minlength=len(self.parts))
        return np.concatenate([self.data.bad, rows])[: len(self.counted)]

    def _counted(self) -> dict[str, int]:
        """Returns the counts of all processes since they were last written, by name."""
        totals = multihost.sum_over_processes(self.counts)
        self.counts = np.zeros_like(totals)
        return {name: int(n) for name, n in zip(self.counted, totals, strict=True) if n}

    def _report_first_skipped(self) -> None:
        if not self.told and self.data.complaint:
            self.told = True
            self.progress.say(f"a pair is left out: {self.data.complaint}")
            self.progress.say("  broken pairs are counted as data/skipped/… in the metrics")

    def _evaluate(self, step: int) -> bool:
        """Evaluates the model; returns whether it is the best so far."""
        began = time.monotonic()
        metrics = self._evaluate_variables(step, self.state.variables)
        if self.state.ema:
            metrics |= self._evaluate_variables(step, self.trainer.averaged(self.state), ema=True)
        self.progress.leave_out(time.monotonic() - began)
        is_best = self.best.add(step, metrics)
        self.checkpoints.preserve.best = self.best.step
        return is_best

    def _evaluate_variables(
        self, step: int, variables: Variables, *, ema: bool = False
    ) -> dict[str, float]:
        began = time.monotonic()
        results = self.trainer.evaluate(variables)
        prefix = f"{results_lib.EMA}/" if ema else ""
        metrics = {f"{prefix}{name}": value for name, value in results.metrics().items()}
        self.writer.write(step, metrics)
        self.writer.flush()
        seconds = time.monotonic() - began
        if multihost.is_first():
            pictures = self.trainer.report(results, step, seconds, ema=ema)
            for path in sorted(pictures.glob("*.png")):
                self.writer.picture(step, f"{prefix}pictures/{path.stem}", path)
            page = pictures.parent.parent / results_lib.PAGE
            self.writer.report(step, f"{prefix}report", page)
        weights = "averaged weights" if ema else "evaluation"
        self.progress.say(f"{weights} at step {step} ({seconds:.0f} s)")
        self.progress.say(results_lib.table(metrics))
        return metrics

    def check_lock(self) -> None:
        """Raises UserError if another run has taken the folder."""
        if self.lock:
            self.lock.check()

    def _save(self, step: int, force: bool = False) -> None:
        self.check_lock()
        if counted := self._counted():  # a run that resumes here starts its counts anew
            self.writer.write(step, counted)
        self.writer.flush()
        position = self.data.get_state()
        values = config_lib.without_secrets(self.config.to_dict())
        self.checkpoints.save(step, self.state, position, values, force=force)
        if multihost.is_first() and step == self.best.step:
            self.best.write()

    def _stopping(self) -> bool:
        """Returns whether a signal asks to stop.

        All processes learn it together, with the metrics.
        """
        if not self.any_stop:
            self.stopped_by = self.stop.number
        return bool(self.stopped_by)

    def run(self) -> int:
        """Trains, and returns the last step that was done."""
        c, step = self.config, self.first
        if step >= c.steps or self.best.is_over:
            return step
        pending: tuple[int, Sizes, np.ndarray, dict[str, jax.Array]] | None = None
        while step < c.steps and not self.best.is_over and not self._stopping():
            batch = self.trainer.place(next(self.data))
            self._report_first_skipped()
            train_step = self._step_for(batch)
            step += 1
            self.state, out = train_step(self.state, batch)
            if self.any_stop:
                out = {**out, "stop": self.any_stop(self.stop.number)}
            # Step N + 1 is dispatched before the metrics of N are read: the device never waits.
            if pending:
                self._log(*pending)
            pending = (step, self.trainer.sizes(batch), self._batch_counts(), out)
            last = step == c.steps
            due = last or step % c.evaluate.every == 0 or step in c.evaluate.at
            evaluating = self.trainer.run.suite and due
            saving = step % c.checkpoint.every == 0 and not last  # the last step is saved below
            if evaluating or saving:
                self._log(*pending)
                pending = None
            is_best = bool(evaluating) and self._evaluate(step)
            if saving or (is_best and not last):
                self._save(step, force=is_best)
            self.progress.advance()
        if pending:
            self._log(*pending)
        if step > self.first:
            self._save(step, force=True)
        return step

    def close(self, failed: bool = False) -> None:
        """Waits for unfinished saves and closes the files."""
        self.progress.close()
        self.data.close()
        if not (
            failed and multihost.is_multi_process()
        ):  # the other processes do not know yet, and would wait
            self.checkpoints.close()
        self.writer.close()


def train(config: Any, force: bool = False) -> None:
    """Trains as a config says, from its newest checkpoint if there is one.

    Args:
      config: a `ConfigDict`, or a `Config`.
      force: whether to take the folder from another run that is using it, which then ends.

    Raises:
      UserError: the config or the data is wrong, the disk is full, the loss is not finite, or
        another run is using the folder.
    """
    c = config_lib.typed(config)
    if c.workdir:
        multihost.broadcast_from_first(lambda: _check_workdir(as_path(c.workdir), force))
    run = prepare(c)
    trainer = Trainer(run)
    with _locked(run.workdir, force) as lock:
        claim_workdir(run)
        with StopSignal().watching() as stop:
            loop = Loop(trainer, trainer.data(), stop, lock)
            announce(loop)
            try:
                if loop.first < c.steps:
                    trainer.fill_feature_cache(loop.state.variables, loop.progress.say)
                step = loop.run()
            except BaseException:
                try:
                    loop.close(failed=True)
                finally:
                    loop.check_lock()  # the failure may be because another run took the folder
                raise
            loop.close()
    if multihost.is_first():
        announce_end(run, step, loop.stopped_by, loop.best)


def _check_workdir(workdir: Path, force: bool) -> None:
    """Raises UserError early if a folder cannot be written, or another run is using it."""
    buckets.check_writable(workdir)
    workdir_lock.refuse_in_use(workdir, force)


@contextmanager
def _locked(workdir: Path, force: bool) -> Iterator[workdir_lock.Lock | None]:
    """Locks the folder in the first process for all processes, before any continues."""
    locks: list[workdir_lock.Lock] = []
    with ExitStack() as stack:
        multihost.broadcast_from_first(
            lambda: locks.append(
                stack.enter_context(workdir_lock.locked(workdir, force, multihost.say_first))
            )
        )
        yield locks[0] if locks else None
