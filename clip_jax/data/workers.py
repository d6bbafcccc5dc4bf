"""Worker processes that end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from clip_jax.errors import UserError

T = TypeVar("T")
_function: Callable[[Any], Any]  # of a worker process


def end_with_parent(*_: int) -> None:
    """Makes a worker process end when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent()


def _call(item: Any) -> Any:
    return _function(item)


@contextmanager
def mapping(
    function: Callable[[Any], T],
    threads: int,
    processes: int,
    key: str = "config.data.workers",
) -> Iterator[Callable[[Iterable[Any]], Iterator[T]]]:
    """Yields an ordered `map` of a function over items, run by a pool of threads or processes.

    Processes receive the function once, by pickle.

    Args:
      function: is called with each item.
      threads: the number of threads, if there are no processes.
      processes: the number of processes; 0 for threads.
      key: what sets the number of processes, for errors.

    Raises:
      UserError: a process died.
    """
    pool: Executor = ThreadPoolExecutor(threads)
    if processes:
        # a fork would copy the locks of threads, such as JAX's, without the threads
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(processes, spawn, _start_worker, (function,))
    try:
        with pool:
            yield lambda items: pool.map(_call if processes else function, items)
    except BrokenProcessPool:
        raise dead_worker_error(processes, key) from None


def dead_worker_error(processes: int, key: str = "config.data.workers") -> UserError:
    """Returns the error to raise when a worker process was killed.

    Args:
      processes: the number of worker processes.
      key: what sets this number.
    """
    return UserError(
        f"one of {processes} processes that read pairs died, perhaps for want of memory: lower "
        f"{key}"
    )
