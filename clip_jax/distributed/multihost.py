"""Many hosts as one machine: how their processes meet, agree, and end together.

Every host runs the same command. `cluster_env.find` tells whether there are others, `joined` meets
them before JAX touches a device. A process that fails tells the others why;
of one that dies without a word process 0 notices that its sign of life is missing. Alone, all of
this does nothing. JAX is imported only when there is something to join.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from clip_jax.distributed.cluster_env import Place
from clip_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

T = TypeVar("T")
CONNECT_TIMEOUT, HEARTBEAT_TIMEOUT = 300.0, 60.0  # seconds
AGAIN = "start the same command again, it resumes"
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"
_LINGER = 3.0  # seconds that process 0, where all meet, outlives bad news
_WORDS, _BEATS, _NEWS, _END = (f"clip_jax/{key}" for key in ("words", "beats", "news", "end"))
_OF_A_PEER = re.compile(
    r"gloo|nccl|peer|socket|connection|unavailable|deadline|barrier|coordination", re.IGNORECASE
)


@contextlib.contextmanager
def joined(
    place: Place | None,
    connect_timeout: float = CONNECT_TIMEOUT,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
) -> Iterator[None]:
    """Meets the others and shares their fate: what fails inside ends all of them.

    Args:
      place: of this process; None does nothing at all.
      connect_timeout: seconds that all have to come.
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead.

    Raises:
      UserError: the others cannot be met.
    """
    global _bond
    if place is None:
        yield
        return
    _bond = _Bond(*_connect(place, connect_timeout, heartbeat_timeout), heartbeat_timeout)
    try:
        yield
    except BaseException as error:
        _bond.tell(error)
        raise
    _bond.part()


def leave(code: int) -> NoReturn:
    """Ends this process; one that failed among others does not wait for them."""
    if _bond and not _bond.parted:
        sys.stdout.flush()
        _bond.end("", code)
    sys.exit(code)


def many() -> bool:
    """Whether there is more than one process."""
    return _bond is not None


def is_first() -> bool:
    """Whether this process is the one that writes and speaks for all."""
    return _bond is None or _bond.index == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on the first process (JSON), on every one of them; the others wait."""
    return _bond.from_first(make) if _bond else make()


def total(numbers: Any) -> Any:
    """The sum of an array over all processes, each of which calls this; waits for them."""
    if not many():
        return numbers
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(numbers).sum(0)


class AnyOf:
    """The greatest of the processes' numbers, found on the devices while they work.

    Called once a step, in every process alike.
    """

    def __init__(self, mesh: Mesh) -> None:
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        self._shape = (mesh.size,)
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> Any:
        """Starts it; the result is an int32 array of no dimension."""
        import jax
        import numpy as np

        own = np.full(self._shape, number, np.int32)
        return self._max(jax.make_array_from_callback(own.shape, self._split, own.__getitem__))


def _connect(place: Place, timeout: float, heartbeat: float) -> tuple[Any, int, int]:
    """Starts `jax.distributed`; the client, this process's number and that of all."""
    import jax
    from jax._src.distributed import global_state

    _check_port(place)
    # SIGTERM is the training loop's to handle
    jax.config.update("jax_enable_preemption_service", False)
    _mind_abort()
    late = threading.Timer(timeout, lambda: _too_late(global_state, place, timeout))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            cluster_detection_method="deactivate" if place.known else None,
            # of these two JAX makes an abort: ours come first
            coordinator_bind_address=_bind_address(place),
            initialization_timeout=int(timeout) + 60,
            heartbeat_timeout_seconds=int(2 * heartbeat) + 60,
            shutdown_timeout_seconds=int(heartbeat) + 1,
        )
    except (RuntimeError, ValueError) as error:
        where = global_state.coordinator_address or place.coordinator
        raise UserError(f"the processes cannot meet at {where}: {error}") from None
    finally:
        late.cancel()
    return global_state.client, global_state.process_id, global_state.num_processes


def _check_port(place: Place) -> None:
    if place.process == 0 and place.coordinator and not os.environ.get(_BIND):
        try:
            host, port = _split(_bind_address(place) or place.coordinator)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            host = host if _bind_address(place) else ""
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            raise UserError(
                f"process 0 cannot let the others meet at {place.coordinator} "
                f"({error.strerror}): choose another port"
            ) from None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _bind_address(place: Place) -> str | None:
    """Where process 0 listens: at the named address, where that is one of this host's.

    None leaves it to JAX, which listens on all interfaces: of a cluster's own addresses, where
    JAX_COORDINATOR_BIND_ADDRESS says otherwise, and for a name that here alone means this host, as
    a host's own does in the /etc/hosts of Debian.
    """
    if place.process != 0 or not place.coordinator or os.environ.get(_BIND):
        return None
    host, port = _split(place.coordinator)
    try:
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        numbers = ipaddress.ip_address(address.partition("%")[0])
        named = address == host or host == "localhost"
        if numbers.is_unspecified or (numbers.is_loopback and not named):
            return None
        family = socket.AF_INET6 if numbers.version == 6 else socket.AF_INET
        socket.create_server((address, 0), family=family).close()
    except (OSError, ValueError):
        return None  # it is an address of a router's in front of this host
    return f"[{address}]:{port}" if numbers.version == 6 else f"{address}:{port}"


def _too_late(state: Any, place: Place, timeout: float) -> None:
    address = state.coordinator_address or place.coordinator or "the cluster's first host"
    why = f"not all of the {state.num_processes} processes came"
    if state.process_id:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 3).close()
        except (OSError, ValueError) as error:
            why = f"process 0 does not answer ({error})"
    _die(
        f"waited {timeout:g} s for the other processes at {address}: {why}; is every one "
        "started, with the same address, and its port open between them?",
        1,  # of a host that was only late a restart is the cure
    )


class _Bond:
    """A process's ties to the others, over the key-value store that jax.distributed keeps."""

    def __init__(self, client: Any, index: int, count: int, timeout: float) -> None:
        self.index, self.count = index, count
        self._client, self._timeout = client, timeout
        self._said, self._telling, self._over = 0, False, threading.Event()
        watches = [self._listen, self._beat, *([self._look_after] if index == 0 else [])]
        self._threads = [threading.Thread(target=watch, daemon=True) for watch in watches]
        for thread in self._threads:
            thread.start()

    @property
    def parted(self) -> bool:
        """Whether the healthy end was reached."""
        return self._over.is_set()

    def from_first(self, make: Callable[[], Any]) -> Any:
        key = f"{_WORDS}/{self._said}"
        self._said += 1
        if self.index == 0:
            value = make()
            self._client.key_value_set(key, json.dumps(value))
            return value
        return json.loads(self._client.blocking_key_value_get(key, 1 << 40))

    def tell(self, error: BaseException) -> None:
        """Gives the others the reason; of what comes from another's end, waits for the reason."""
        if not isinstance(error, (UserError, KeyboardInterrupt)) and _OF_A_PEER.search(str(error)):
            time.sleep(self._timeout * 1.5 + 5)  # who listens ends this process before
        self._telling = True
        line = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error}"
        self._news(self.index, line, 2 if isinstance(error, UserError) else 1)

    def part(self) -> None:
        """The healthy end: once all are there, nobody is missed any more."""
        try:
            self._client.wait_at_barrier(_END, int(self._timeout * 1000))
        except RuntimeError:
            time.sleep(self._timeout / 2)
            raise UserError("the other processes did not end with this one") from None
        self._over.set()
        import jax

        jax.distributed.shutdown()
        for thread in self._threads:  # one that the interpreter's end finds in C++ would abort it
            thread.join()
        _at_signal(signal.SIGABRT, signal.SIG_DFL)

    def end(self, line: str, code: int) -> NoReturn:
        """Ends this process at once."""
        _die(line, code, _LINGER if self.index == 0 else 0)

    def _news(self, who: int, what: str, code: int = 1) -> None:
        with contextlib.suppress(RuntimeError):  # bad news is there already, or nobody to tell
            self._client.key_value_set(_NEWS, json.dumps([who, what, code]))

    def _listen(self) -> None:
        try:
            who, what, code = json.loads(self._client.blocking_key_value_get(_NEWS, 1 << 40))
        except RuntimeError as error:
            if self.parted:
                return
            reason = str(error).splitlines()[0]
            who, what, code = 0, f"died or cannot be reached ({reason}): {AGAIN}", 1
        if not self._telling:
            self.end(f"process {who} of {self.count} {what}", code)

    def _beat(self) -> None:
        """Gives signs of life."""
        with contextlib.suppress(RuntimeError):  # who listens tells
            while not self.parted:
                mark = f"{socket.gethostname()} {time.monotonic()}"
                self._client.key_value_set(f"{_BEATS}/{self.index}", mark, allow_overwrite=True)
                self._over.wait(self._timeout / 6)

    def _look_after(self) -> None:
        """Misses the signs of life of the others."""
        now = time.monotonic()
        seen = dict.fromkeys(range(1, self.count), ("", now))
        while not self.parted:
            before, now = now, time.monotonic()
            if now - before > self._timeout / 2:  # it was this process that slept
                seen = {i: (mark, now) for i, (mark, _) in seen.items()}
            try:
                found = self._client.key_value_dir_get(_BEATS)
            except RuntimeError:
                return
            for key, mark in found:
                i = int(key.rpartition("/")[2])
                if i in seen and seen[i][0] != mark:
                    seen[i] = mark, now
            for i, (mark, when) in seen.items():
                if now - when > self._timeout and not self.parted:
                    host = mark.rpartition(" ")[0] or "of an unknown host"
                    what = f"({host}) died or hangs, no sign of life for {self._timeout:g} s"
                    return self._news(i, f"{what}: {AGAIN}")
            self._over.wait(self._timeout / 6)


_bond: _Bond | None = None
_last_words = threading.Lock()


def _die(line: str, code: int, linger: float = 0) -> NoReturn:
    """The line, once, and the end of this process and of those that it started."""
    _last_words.acquire()  # never released: a second thread waits here for the end
    sys.stderr.flush()
    voice = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the runtime adds comes too late
    if line:
        os.write(voice, f"error: {' '.join(line.split())}\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    if linger:
        for number in (signal.SIGINT, signal.SIGTERM):  # a launcher's, whom the others' end told
            _at_signal(number, signal.SIG_IGN)
        time.sleep(linger)
    os._exit(code)


def _at_signal(number: int, handler: Any) -> None:
    """As `signal.signal`, from any thread."""
    if isinstance(handler, signal.Handlers):
        handler = ctypes.c_void_p(handler)
    ctypes.CDLL(None).signal(number, handler)


def _mind_abort() -> None:
    """One line as the last one where the runtime aborts, as it does when process 0 is gone."""

    def aborted(_: int) -> None:
        _die(
            "process 0, where all processes meet, died or cannot be reached, or this one was "
            f"aborted: {AGAIN}",
            1,
        )

    global _on_abort
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _at_signal(signal.SIGABRT, _on_abort)


_on_abort: Any = None  # C keeps no reference
