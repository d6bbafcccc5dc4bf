"""Output of a run: metrics.jsonl, TensorBoard files, and the progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from clip_jax.io.buckets import as_path
from clip_jax.training.metric_files import NAME, open_metrics, read_metrics
from clip_jax.training.trackers import TensorBoard, Tracker

__all__ = ["Progress", "Unwritten", "Writer", "duration", "read_metrics"]


class Writer:
    """Appends metrics to the metrics.jsonl of a run's folder, each metric of a step once.

    A resumed run repeats some steps that were logged before it was killed. Metrics that the file
    already contains are not written again, and an incomplete last line is removed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        resume_step: int = 0,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        folder = as_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._written: dict[int, set[str]] = {}
        for line in read_metrics(folder / NAME):
            self._written.setdefault(line["step"], set()).update(line)
        self._file = open_metrics(folder / NAME)
        self._trackers = list(trackers)
        if tensorboard:
            self._trackers.append(TensorBoard(folder / "tensorboard", resume_step))

    def has_metric(self, step: int, name: str) -> bool:
        """Returns whether a metric of a step has been written already."""
        return name in self._written.get(step, ())

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line with the metrics that are new for this step.

        Raises:
          OSError: the disk is full. The file then ends with its last complete line.
        """
        written = self._written.setdefault(step, set())
        values = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
        new = {name: value for name, value in values.items() if name not in written}
        if new:
            self._file.append(json.dumps({"step": step, **new}).encode() + b"\n")
            written.update(new)
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def flush(self) -> None:
        """Makes sure that a kill loses no line of metrics.jsonl, and that trackers show all."""
        self._file.flush()
        for tracker in self._trackers:
            tracker.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """Shows a PNG file of the run's folder in the trackers."""
        for tracker in self._trackers:
            tracker.picture(step, name, path)

    def report(self, step: int, name: str, path: Path) -> None:
        """Shows an HTML page of the run's folder in the trackers."""
        for tracker in self._trackers:
            tracker.report(step, name, path)

    def close(self) -> None:
        """Closes the trackers and the file."""
        try:
            for tracker in self._trackers:
                tracker.close()
        finally:
            self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Unwritten(Writer):
    """The writer of all processes but the first, which writes nothing."""

    def __init__(self) -> None:
        pass

    def has_metric(self, step: int, name: str) -> bool:
        """Returns False."""
        return False

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Does nothing."""

    def report(self, step: int, name: str, path: Path) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Progress:
    """A progress bar with loss, speed and time left; plain lines if stderr is not a terminal.

    Args:
      steps: the number of steps of the whole run.
      done: the number of steps that were done before this start.
      batch_size: images per step.
      devices: the number of devices that train.
      peak: the peak FLOP/s of a device; None if it is unknown.
      mute: whether to measure but print nothing.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        batch_size: int,
        *,
        devices: int = 1,
        peak: float | None = None,
        mute: bool = False,
    ) -> None:
        self._batch_size, self._devices, self._peak = batch_size, devices, peak
        self._since = time.monotonic()
        self._steps = done
        self._mute = mute
        self._quiet = mute or not sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=self._quiet,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n}/{total} "
            "[{elapsed}<{remaining}]{postfix}",
        )
        self._started, self._first = time.monotonic(), done
        self._total = steps

    def advance(self) -> None:
        """Counts one more dispatched step."""
        self._bar.update()

    def rates(self, step: int, flops: float) -> dict[str, float]:
        """Returns the speed of the steps since the last call.

        Args:
          step: the last of these steps.
          flops: the model FLOPs of these steps together, see `clip_jax.training.flops`.

        Returns:
          `images_per_second` of all devices, `tflops_per_second` of each one, and, if the peak is
          known, `mfu`: the share of it that the model FLOPs reach.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        images = (step - self._steps) * self._batch_size
        self._since, self._steps = now, step
        per_device = flops / seconds / self._devices
        rates = {"images_per_second": images / seconds, "tflops_per_second": per_device / 1e12}
        return rates if self._peak is None else {**rates, "mfu": per_device / self._peak}

    def leave_out(self, seconds: float) -> None:
        """Excludes seconds that were spent on compilation or evaluation from the rates."""
        self._started += seconds
        self._since += seconds

    def show(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """Shows the loss and the rates beside the bar."""
        text = f"loss {loss:.3f}, {rates['images_per_second']:,.0f} images/s"
        if "mfu" in rates:
            text += f", {100 * rates['mfu']:.1f} % MFU"
        if self._quiet:
            spent = time.monotonic() - self._started
            left = spent / max(step - self._first, 1) * (self._total - step)
            self.say(f"step {step}/{self._total}: {text}, {duration(left)} left")
        else:
            self._bar.set_postfix_str(text)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._mute:
            return
        if self._quiet:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar on the screen and ends its line."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Returns seconds as text: 75 is `1:15`, 3700 is `1:01:40`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
