"""What a run says of itself: metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from clip_jax.data.lettering import encodable
from clip_jax.errors import UserError


def read(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; a line that a crash cut short is left out.

    Raises:
      UserError: another line is damaged.
    """
    if not Path(path).is_file():  # a device, such as /dev/full, has no end
        return []
    found = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            values = json.loads(line) if line else None
            if values is not None:
                values["step"] = int(values["step"])
                found.append(values)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise UserError(f"{path}: line {number} is damaged: remove it") from None
    return found


class _Board:
    """TensorBoard's events, each flushed by whoever writes it.

    tensorboardX's own writer has a thread; once a full disk has ended that, a run hangs for good.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if resume_step:  # what was written of later steps is about to be written again
            log = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=resume_step + 1, session_log=log))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, scalar(encodable(name), value))
        self._file.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image
        from tensorboardX.summary import image

        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        self._write(step, image(name, pixels, dataformats="HWC"))
        self._file.flush()

    def _write(self, step: int, summary: Any) -> None:
        self._file.write_event(self._event(step=step, wall_time=time.time(), summary=summary))

    def close(self) -> None:
        self._file.close()


class Writer:
    """Appends metrics to a run's folder, a step's metric once.

    A resumed run does some steps again that were logged before it was killed. What stands in the
    file already is not written again, and half a line left by a crash is cut off.
    """

    def __init__(
        self, folder: str | Path, *, resume_step: int = 0, tensorboard: bool = True
    ) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._seen: dict[int, set[str]] = {}
        for line in read(self._path):
            self._seen.setdefault(line["step"], set()).update(line)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._cut_half_line()
        self._board = _Board(folder / "tensorboard", resume_step) if tensorboard else None

    def _cut_half_line(self) -> None:
        if os.path.isfile(self._path):
            whole = self._path.read_bytes().rfind(b"\n") + 1
            if whole < os.fstat(self._file).st_size:
                os.ftruncate(self._file, whole)

    def seen(self, step: int, name: str) -> bool:
        """Whether a metric of a step is written already."""
        return name in self._seen.get(step, ())

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of what is new for this step.

        Raises:
          OSError: the disk is full; the file then ends with its last whole line.
        """
        seen = self._seen.setdefault(step, set())
        values = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
        new = {name: value for name, value in values.items() if name not in seen}
        if new:
            self._append({"step": step, **new})
            seen.update(new)
        if self._board:
            self._board.scalars(step, values)

    def _append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(values).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.write(self._file, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG of the run's folder, shown in TensorBoard too."""
        if self._board:
            self._board.picture(step, name, path)

    def close(self) -> None:
        """Flush TensorBoard's events and let go of the file."""
        try:
            if self._board:
                self._board.close()
        finally:
            os.close(self._file)

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
    """What the processes beside the first write: nothing."""

    def __init__(self) -> None:
        pass

    def seen(self, step: int, name: str) -> bool:
        """False."""
        return False

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Progress:
    """A bar with loss, speed and the time left; plain lines where nobody watches a terminal.

    Args:
      steps: of the whole run.
      done: those before this start.
      batch_size: images of a step.
      devices: how many of them train.
      peak: FLOP/s that each can do at best; None where nobody knows.
      mute: only measure.
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
        """One more step was dispatched."""
        self._bar.update()

    def rates(self, step: int, flops: float) -> dict[str, float]:
        """How fast the steps since the last call were.

        Args:
          step: the last of them.
          flops: model FLOPs of all of them together, see `clip_jax.training.flops`.

        Returns:
          `images_per_second` of all devices, `tflops_per_second` of each, and `mfu`, the share that
          this is of its peak, where that is known.
        """
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        images = (step - self._steps) * self._batch_size
        self._since, self._steps = now, step
        each = flops / seconds / self._devices
        found = {"images_per_second": images / seconds, "tflops_per_second": each / 1e12}
        return found if self._peak is None else {**found, "mfu": each / self._peak}

    def leave_out(self, seconds: float) -> None:
        """Forget a time that went into compiling or evaluation, not into steps."""
        self._started += seconds
        self._since += seconds

    def show(self, step: int, loss: float, rates: Mapping[str, float]) -> None:
        """Loss and what `rates` found beside the bar."""
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
        """A line of its own, above the bar."""
        if self._mute:
            return
        if self._quiet:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        self._bar.close()


def duration(seconds: float) -> str:
    """`75` → `1:15`, `3700` → `1:01:40`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
