"""Runs a curation with Beam, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_jax.curation import pool as pool_lib
from clip_jax.curation import storage
from clip_jax.curation.engine import worker
from clip_jax.curation.engine.job import Job
from clip_jax.errors import UserError
from clip_jax.io import remote

LOCAL = "DirectRunner"
_EVERY = 2.0  # seconds between two lines of progress
_GRACE = 5.0  # seconds in which Beam may tell by itself that a process died
_SHOWN = 1 << 16  # bytes of what a failing worker wrote
_COUNT = re.compile(r"[0-9a-f]{32}-([0-9]+)\.npz")  # the name of a file of facts
_DEAD = ("Channel closed prematurely", "Worker subprocess exited")  # how Beam reports it
_STEP = re.compile(r" \[while running .*\]")  # Beam adds it to errors
_FAULT = re.compile(r"clip_jax\.[\w.]*(?:UserError|PairError): (.*?)(?: \[while running|\n|$)")


def require_beam() -> None:
    """Checks that Apache Beam is installed, and silences its notes.

    Raises:
      UserError: it is not.
    """
    # Beam logs packages that are missing, each connection, and each error, which is raised anyway
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"curation runs on Apache Beam, which is not installed ({error}): "
            "pip install 'clip_jax[curate]'"
        ) from None


def run(
    job: Job,
    files: Sequence[str],
    *,
    workers: int = 0,
    runner: str = LOCAL,
    flags: Sequence[str] = (),
) -> None:
    """Runs a curation to its end; what an earlier run found out is reused.

    Args:
      job: the curation.
      files: the files of the pool.
      workers: the number of processes on this machine; 0: one for each core.
      runner: the name of Beam's runner.
      flags: further flags for Beam, such as those of another runner.

    Raises:
      UserError: the flags are wrong, or a worker found a mistake of the user.
    """
    require_beam()
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    from clip_jax.curation.engine import pipeline as graph

    kind: object = runner
    options = ["--default_sdk_harness_log_level=CRITICAL", *flags]
    workers = workers or _cores()
    quiet: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if runner == LOCAL and workers > 1:
        options.append(f"--direct_num_workers={workers}")
        kind = FnApiRunner(SubprocessSDKEnvironment(command_string=worker.command()))
        quiet = _quiet_workers()
    try:
        parsed = PipelineOptions(options)
        with storage.alone(job.out), quiet, _progress(job), _one_line(), _ended_by_dead_workers():
            pipeline = beam.Pipeline(runner=kind, options=parsed)
            graph.build(pipeline, job, files)
            pipeline.run().wait_until_finish()
    except SystemExit:  # argparse has printed what is wrong
        raise UserError(f"Beam does not take the flags {' '.join(options)}") from None


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _quiet_workers() -> Iterator[None]:
    """Shows what Beam's processes write to standard error only if they fail.

    They greet, and they print each error, which is raised in this process as well.
    """
    stderr, own = os.dup(2), sys.stderr
    with tempfile.TemporaryFile() as written, open(stderr, "w", buffering=1) as sys.stderr:
        own.flush()
        os.dup2(written.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except Exception:
            written.seek(max(0, os.fstat(written.fileno()).st_size - _SHOWN))
            sys.stderr.write(written.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(stderr, 2)
            sys.stderr = own


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turns a worker's UserError, which Beam returns as the text of a traceback, into one."""
    try:
        yield
    except UserError as error:
        raise UserError(_STEP.sub("", str(error))) from None
    except Exception as error:
        if found := _FAULT.findall(str(error)):
            raise UserError(found[-1].strip()) from None
        if isinstance(error, _WorkerDiedError) or _tells_death(error):
            raise UserError(
                "a process that curates died, perhaps for want of memory: lower --workers or "
                "--chunk, and start the same command again, it goes on"
            ) from None
        raise


class _WorkerDiedError(Exception):
    """A process of Beam died, and Beam goes on waiting for it."""


def _tells_death(error: BaseException | None) -> bool:
    return any(mark in str(error) for mark in _DEAD)


@contextlib.contextmanager
def _ended_by_dead_workers() -> Iterator[None]:
    """Ends a block some seconds after a process of Beam died.

    A process that dies before it connects, as for want of memory, only ends a thread of Beam, which
    waits for the process for ever. So a signal interrupts the main thread.

    Raises:
      _WorkerDiedError: a process died, and Beam did not tell.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    done, before, lock = threading.Event(), threading.excepthook, threading.Lock()

    def interrupt() -> None:
        done.wait(_GRACE)
        with lock:  # the signal ends a process that does not handle it
            if not done.is_set():
                os.kill(os.getpid(), signal.SIGUSR1)

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if _tells_death(arguments.exc_value):
            threading.Thread(target=interrupt, daemon=True).start()
        else:
            before(arguments)

    def end(*_: object) -> None:
        if not done.is_set():
            raise _WorkerDiedError

    own = signal.signal(signal.SIGUSR1, end)
    threading.excepthook = hook
    try:
        yield
    finally:
        with lock:
            done.set()
        threading.excepthook = before
        signal.signal(signal.SIGUSR1, own)


@contextlib.contextmanager
def _progress(job: Job) -> Iterator[None]:
    """Prints how many pairs were read, from the facts that workers write."""
    folder = Path(job.out) / "facts"
    if remote.is_remote(job.out):
        yield
        return
    done, began = threading.Event(), time.perf_counter()
    before = _pairs(folder)

    def report() -> None:
        shown, is_over = 0, False
        while not is_over:
            is_over = done.wait(_EVERY)
            pairs = _pairs(folder) - before
            if pairs != shown:
                shown, rate = pairs, pairs / (time.perf_counter() - began)
                print(f"read {pairs:,} pairs, {rate:,.0f} a second", file=sys.stderr, flush=True)
        if before and not shown:
            print("no pair is read again: facts/ has what is needed", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _pairs(folder: Path) -> int:
    """Returns the number of pairs whose facts are in a folder, by the names of the files."""
    names = (name for _, _, names in os.walk(folder) for name in names)
    return sum(int(found[1]) for name in names if (found := _COUNT.fullmatch(name)))


def check(job: Job, files: Sequence[str]) -> None:
    """Finds mistakes of the user before any worker starts: by the first file that can be opened.

    Raises:
      UserError: no file can be opened, the first pairs lack a caption or another field that is
        needed, annotations are missing or of other files, or a list of queries cannot be read.
    """
    from clip_jax.curation import facts, rules

    for _, path in job.extraction.queries:
        facts.query_table(path)
    for column, _, _ in job.columns.limits:
        folder = rules.folder_of(job.columns.folders, column)
        for file in files:
            rules.open_annotations(folder).entry(file)
    first_error: UserError | None = None
    for file in files[:8]:
        try:
            pool_lib.chunks(job.pool, 0, file)
            source, by_identity = job.pool.open(file), job.rules.compares_images
            facts.check_first_pairs(source, file, job.extraction, by_identity)
            return
        except UserError as error:
            first_error = first_error or error
    assert first_error
    raise first_error
