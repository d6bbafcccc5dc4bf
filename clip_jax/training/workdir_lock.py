"""One trainer at a time in a run's folder: a file that says who trains there.

The file names the process and holds a number that the process raises while it lives, so that other
hosts, which cannot ask for a process, see whether it does. Nothing needs locks of the file system,
which shared disks and mounted buckets may not have. A killed trainer's file is taken over at once
on its own host, and elsewhere once its number stands still.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError

NAME = "in_use.json"
BEAT = 5.0  # seconds between two signs of life
STALE = 40.0  # seconds without one, after which the trainer of another host counts as dead
_MAX_BYTES = 1 << 14


class Lock:
    """A run's folder while this process trains in it. `check` tells whether it still does."""

    def __init__(self, workdir: Path, record: dict[str, Any]) -> None:
        self._path, self._record, self._beats = workdir / NAME, record, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises UserError where another trainer has taken the folder."""
        try:
            found = _read(self._path)
        except OSError:
            return  # a disk that is away for a moment, which shows elsewhere
        if found is not None and found.get("token") != self._record["token"]:
            raise UserError(
                f"{self._path.parent} was taken over by {_named(found)}: this run ends, and writes "
                "nothing more"
            )

    def release(self) -> None:
        """Removes the file, where it is still this process's."""
        self._over.set()
        self._thread.join()
        found = _read(self._path)
        if found is not None and found.get("token") == self._record["token"]:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._beats += 1
            # a disk that is away for a moment, or full, shows elsewhere
            with contextlib.suppress(OSError):
                self._write_beat()

    def _write_beat(self) -> None:
        """Into the file in place: one that another trainer has put there stays untouched."""
        with open(self._path, "r+b") as file:
            found = _parsed(file.read(_MAX_BYTES))
            if found and found.get("token") == self._record["token"]:
                file.seek(0)
                file.write(_serialized({**self._record, "beats": self._beats}))


@contextlib.contextmanager
def held(workdir: Path, force: bool, tell: Callable[[str], None]) -> Iterator[Lock]:
    """The folder for this process alone, until the block ends.

    Args:
      workdir: the run's folder, made where it is missing.
      force: take it from another trainer, which then ends.
      tell: takes a line before it has to wait.

    Raises:
      UserError: another trainer is at work there, or the folder cannot be written.
    """
    try:
        lock = Lock(workdir, _take(workdir, force, tell))
    except OSError as error:
        raise UserError(f"{workdir / NAME} cannot be written ({error.strerror})") from None
    try:
        yield lock
    finally:
        with contextlib.suppress(OSError, UserError):
            lock.release()


def refuse_in_use(workdir: Path, force: bool) -> None:
    """Raises UserError where a trainer of this host is surely at work: early, before a long start.

    What cannot be known at once is left to `held`.
    """
    found = _read(workdir / NAME)
    if found and not force and _is_alive(found):
        raise _in_use(workdir, found)


def _take(workdir: Path, force: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    workdir.mkdir(parents=True, exist_ok=True)
    path, record = workdir / NAME, _own_record()
    before = None
    while True:
        if (found := _read(path)) is not None:
            if force:
                before = found
            elif (living := _living(path, found, tell)) is not None:
                raise _in_use(workdir, living)
            path.unlink(missing_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue  # another was quicker
        with os.fdopen(descriptor, "wb") as file:
            file.write(_serialized(record))
            file.flush()
            os.fsync(file.fileno())
        # on a mounted bucket both of two that begin at once may have made the file
        if (found := _read(path)) is not None and found.get("token") == record["token"]:
            if before is not None:
                _await_end(workdir, before, tell)
            return record


def _await_end(workdir: Path, before: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Lets the trainer whose folder was taken see that, so that two never write at once."""
    if _is_alive(before) is False or before.get("pid") == os.getpid():
        return
    tell(f"{workdir} is taken from {_named(before)}: waiting up to {STALE:g} s for it to end")
    end = time.monotonic() + STALE
    while time.monotonic() < end and _is_alive(before) is not False:
        time.sleep(min(0.2, STALE / 10))


def _living(
    path: Path, found: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any] | None:
    """Who is at work there, or None where nobody is, for which another host has to be watched."""
    alive = _is_alive(found)
    if alive is not None:
        return found if alive else None
    tell(
        f"{path.parent} was last in use by {_named(found)}, whom this host cannot ask for: waiting "
        f"{STALE:g} s for a sign of life (--force takes it at once)"
    )
    end = time.monotonic() + STALE
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE / 10))
        now = _read(path)
        if now is None:
            return None
        if now != found:
            return now
    return None


def _in_use(workdir: Path, found: dict[str, Any]) -> UserError:
    return UserError(
        f"{workdir} is in use by {_named(found)}: end that run, or give another --workdir; "
        "--force takes it, and that run ends"
    )


def _named(found: dict[str, Any]) -> str:
    host, pid, since = (found.get(key, "unknown") for key in ("host", "pid", "since"))
    return f"{host!s:.80}, PID {pid!s:.20} since {since!s:.40}"


def _own_record() -> dict[str, Any]:
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
    """Within which process numbers are unique: a host since its start, or a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process began, in whatever units; empty where there is none, or a dead one."""
    try:
        # the name before it may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return ""
    with contextlib.suppress(OSError):
        asked = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return ""


def _is_alive(found: dict[str, Any]) -> bool | None:
    """Whether the process of a record lives; None where this one cannot tell."""
    pid, started = found.get("pid"), found.get("started")
    if found.get("space") != _process_space() or type(pid) is not int or not started:
        return None
    return _started(pid) == started


def _serialized(record: dict[str, Any]) -> bytes:
    """As many bytes for any number of beats."""
    return json.dumps({**record, "beats": f"{record['beats']:012}"}).encode() + b"\n"


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read(path: Path) -> dict[str, Any] | None:
    """The record in a file; an empty one where it is being written or damaged; None: no file."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # a link to nothing, or a pipe to wait for
            raise UserError(f"{path} is no plain file: remove it")
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    return _parsed(raw) or {}
