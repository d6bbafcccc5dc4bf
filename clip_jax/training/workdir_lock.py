"""A lock on a run's folder: at most one trainer writes into it.

The lock is a file that names the process and contains a counter that the process increments while
it runs, because other hosts cannot ask whether a process exists. File system locks are not used:
shared disks and mounted buckets may not support them. The lock of a killed trainer is taken over at
once on the same host, and on another host once the counter has stopped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.training.lock_files import NAME, LockFile, lock_file

ADVICE = "end that run, or give another --workdir; --force takes it, and that run ends"
BEAT = 5.0  # seconds between two increments of the counter
STALE = 40.0  # seconds without an increment until a trainer of another host counts as dead


class Lock:
    """The lock that this process has on a run's folder."""

    def __init__(self, workdir: Path, record: JsonObject) -> None:
        self._file, self._record, self._beats = lock_file(workdir), record, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError if another trainer has taken the folder."""
        try:
            record = self._file.read()
        except OSError:
            return  # the disk is unavailable for a moment; writes of the run itself report that
        if record is not None and record.get("token") != self._record["token"]:
            raise UserError(
                f"{self._file.path.parent} was taken over by {_named(record)}: this run ends, and "
                "writes nothing more"
            )

    def release(self) -> None:
        """Removes the lock file if it still belongs to this process."""
        self._over.set()
        self._thread.join()
        self._file.forget(self._record)
        record = self._file.read()
        if record is not None and record.get("token") == self._record["token"]:
            self._file.remove()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._beats += 1
            # a disk that is full or unavailable is reported by the run's own writes
            with contextlib.suppress(OSError):
                self._file.count(self._record, self._beats)


@contextlib.contextmanager
def locked(
    workdir: Path, force: bool, tell: Callable[[str], None], advice: str = ADVICE
) -> Iterator[Lock]:
    """Locks a folder for this process until the block ends.

    Args:
      workdir: the run's folder, which is created if it is missing.
      force: whether to take the folder from another trainer, which then ends.
      tell: called with a line before waiting.
      advice: how the error ends that says who is using the folder.

    Yields:
      The lock.

    Raises:
      UserError: another trainer is using the folder, or it cannot be written.
    """
    try:
        lock = Lock(workdir, _take(workdir, force, tell, advice))
    except OSError as error:
        raise UserError(f"{workdir / NAME} cannot be written ({error.strerror})") from None
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError, UserError):
            lock.release()


def refuse_in_use(workdir: Path, force: bool) -> None:
    """Raises UserError if a trainer of this host is certainly using the folder.

    This is an early check before a long start. `locked` decides all other cases.
    """
    record = lock_file(workdir).read()
    if record and not force and _is_alive(record):
        raise _in_use(workdir, record, ADVICE)


def _take(workdir: Path, force: bool, tell: Callable[[str], None], advice: str) -> JsonObject:
    """Creates the lock file; returns its record."""
    workdir.mkdir(parents=True, exist_ok=True)
    file, record = lock_file(workdir), _own_record()
    previous = None
    while True:
        if (other := file.read()) is not None:
            if force:
                previous = other
            elif (user := _current_user(file, other, tell)) is not None:
                raise _in_use(workdir, user, advice)
            file.remove()
        if not file.create(record):
            continue  # another process was faster
        # on a mounted bucket two processes that start together may both have created the file
        if (current := file.read()) is not None and current.get("token") == record["token"]:
            if previous is not None:
                _await_end(workdir, previous, tell)
            return record


def _await_end(workdir: Path, previous: JsonObject, tell: Callable[[str], None]) -> None:
    """Waits until the previous trainer has noticed and ended, so that two never write at once."""
    if _is_alive(previous) is False or previous.get("pid") == os.getpid():
        return
    tell(f"{workdir} is taken from {_named(previous)}: waiting up to {STALE:g} s for it to end")
    end = time.monotonic() + STALE
    while time.monotonic() < end and _is_alive(previous) is not False:
        time.sleep(min(0.2, STALE / 10))


def _current_user(
    file: LockFile, record: JsonObject, tell: Callable[[str], None]
) -> JsonObject | None:
    """Returns the record of the trainer that is using the folder; None if there is none.

    If the recorded process is on another host, this watches its counter for `STALE` seconds.
    """
    alive = _is_alive(record)
    if alive is not None:
        return record if alive else None
    tell(
        f"{file.path.parent} was last in use by {_named(record)}, on another host: waiting "
        f"{STALE:g} s for a sign of life (--force takes it at once)"
    )
    end, beats = time.monotonic() + STALE, file.beats(record)
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE / 10))
        now = file.read()
        if now is None:
            return None
        if now != record or file.beats(now) != beats:
            return now
    return None


def _in_use(workdir: Path, record: JsonObject, advice: str) -> UserError:
    return UserError(f"{workdir} is in use by {_named(record)}: {advice}")


def _named(record: JsonObject) -> str:
    host, pid, since = (record.get(key, "unknown") for key in ("host", "pid", "since"))
    return f"{host!s:.80}, PID {pid!s:.20} since {since!s:.40}"


def _own_record() -> JsonObject:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "space": _process_space(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
        "beats": 0,
    }


def _process_space() -> str:
    """Returns the scope of process numbers: a host since it booted, or a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """Returns when a process started, in the system's units.

    The result is empty if the process does not exist or is a zombie.
    """
    try:
        # the process name before it may contain spaces and parentheses
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return ""
    with contextlib.suppress(OSError):
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def _is_alive(record: JsonObject) -> bool | None:
    """Returns whether the process of a record exists; None if this process cannot know."""
    pid, started = record.get("pid"), record.get("started")
    if record.get("space") != _process_space() or type(pid) is not int or not started:
        return None
    return _started(pid) == started
