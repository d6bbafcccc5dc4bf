"""Experiment trackers: TensorBoard, Weights & Biases, trackio.

Each shows the numbers, the images and the reports of a run. Only the first process writes.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clip_jax.config.schema import Config, Log
from clip_jax.data.images.lettering import encodable
from clip_jax.errors import UserError
from clip_jax.io.buckets import Mirror, is_bucket
from clip_jax.io.files import JsonObject, atomic_write, cache_folder

_UPLOADED = 30.0  # seconds between two uploads of events into a bucket
_LARGE = 8 << 20  # bytes of a file of events, after which another one is begun there


class Tracker(Protocol):
    """The protocol of trackers, which show the metrics of a run besides metrics.jsonl."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of a step. A resumed run may repeat a step with equal numbers."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Logs a PNG file."""

    def report(self, step: int, name: str, path: Path) -> None:
        """Logs an HTML page."""

    def flush(self) -> None:
        """Makes sure that a kill loses nothing, as far as the tracker can."""

    def close(self) -> None:
        """Waits until everything is written."""


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch in a block that imports tensorboardX, which imports it where it is installed.

    That takes seconds and hundreds of MiB, and tensorboardX needs it only for values of torch.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


class TensorBoard:
    """A writer of TensorBoard events, which the calling thread writes and flushes.

    The writer of tensorboardX uses a thread of its own. If a full disk ends that thread, the run
    hangs forever.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        with _without_torch():
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._mirror = Mirror(folder)
        self._uploaded = time.monotonic()
        self._event = Event
        self._file = self._open()
        if resume_step:  # events of later steps will be written again
            log = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=resume_step + 1, session_log=log))

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        self._bytes = 0
        return EventsWriter(str(self._mirror.path / "events"), f".{time.time_ns()}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, scalar(encodable(name), value))
        self._file.flush()
        if time.monotonic() - self._uploaded >= _UPLOADED:
            with contextlib.suppress(OSError):  # the next attempt writes all
                self.flush()

    def flush(self) -> None:
        """Uploads the files, if the run is in a bucket."""
        self._file.flush()
        self._mirror.upload()
        self._uploaded = time.monotonic()
        if self._mirror.is_copy and self._bytes > _LARGE:  # else ever more is uploaded again
            self._file.close()
            self._file = self._open()

    def picture(self, step: int, name: str, path: Path) -> None:
        """Writes a PNG file."""
        import numpy as np
        from tensorboardX.summary import image

        with path.open("rb") as file, Image.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        self._write(step, image(name, pixels, dataformats="HWC"))
        self._file.flush()

    def _write(self, step: int, summary: Any) -> None:
        event = self._event(step=step, wall_time=time.time(), summary=summary)
        self._bytes += event.ByteSize()
        self._file.write_event(event)

    def report(self, step: int, name: str, path: Path) -> None:
        """Does nothing: TensorBoard cannot show HTML pages."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        self._mirror.close()


class WebTracker:
    """A tracker for Weights & Biases or trackio, whose functions have the same names.

    Args:
      library: the imported package.
      run: the result of the package's `init`.
    """

    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""
        self._log(step, values)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Uploads a PNG file."""
        image = Image.open(path.open("rb")) if is_bucket(path) else str(path)
        self._log(step, {name: self._library.Image(image)})

    def report(self, step: int, name: str, path: Path) -> None:
        """Uploads an HTML page."""
        self._log(step, {name: self._library.Html(path.read_text(encoding="utf-8"))})

    def flush(self) -> None:
        """Does nothing: the package sends or writes values as they come."""

    def close(self) -> None:
        """Waits until everything is sent, or written to disk if there is no connection."""
        self._run.finish()


class WandbTracker(WebTracker):
    """A tracker for Weights & Biases, which logs the step as an ordinary value.

    Weights & Biases ignores values whose step goes back, unless the step is an ordinary value.
    """

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **values})


LIBRARIES = ("wandb", "trackio")  # keys of config.log that name a project


def check_trackers(log: Log) -> None:
    """Raises UserError if a package that `config.log` asks for is not installed."""
    for name in LIBRARIES:
        project = getattr(log, name)
        if project and find_spec(name) is None:
            raise UserError(
                f"config.log.{name}={project!r:.80} needs the package {name}: pip install {name}"
            )


def open_trackers(c: Config, workdir: Path, config: JsonObject) -> list[Tracker]:
    """Opens the trackers that `c.log` asks for, besides TensorBoard.

    Args:
      c: the config.
      workdir: the run's folder.
      config: the config as it is shown: without secrets.
    """
    trackers: list[Tracker] = []
    common: dict[str, Any] = dict(name=workdir.absolute().name, config=config, resume="allow")
    if c.log.wandb:
        wandb = import_module("wandb")
        place = cache_folder("wandb") if is_bucket(workdir) else workdir
        place.mkdir(parents=True, exist_ok=True)
        run = wandb.init(project=c.log.wandb, id=_run_id(workdir), dir=str(place), **common)
        run.define_metric("*", step_metric="step")
        trackers.append(WandbTracker(wandb, run))
    if c.log.trackio:
        trackio = import_module("trackio")
        run = trackio.init(project=c.log.trackio, embed=False, **common)
        trackers.append(WebTracker(trackio, run))
    return trackers


def _run_id(workdir: Path) -> str:
    """Returns a name for the run, which is the same when the run resumes."""
    path = workdir / "wandb_id"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write(secrets.token_hex(8).encode())
    return path.read_text().strip()
