"""Processes that work for this one, and end with it."""

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
_work: Callable[[Any], Any]  # of a worker process


def end_with_parent(*_: int) -> None:
    """In a worker process: ends it when the one that it works for is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that it works for
    end_with_parent()


def _do(item: Any) -> Any:
    return _work(item)


@contextmanager
def mapping(
    work: Callable[[Any], T], threads: int, processes: int
) -> Iterator[Callable[[Iterable[Any]], Iterator[T]]]:
    """A `map` of `work` over items, in order, by threads, or by processes where there are any.

    For processes `work` is pickled once.

    Raises:
      UserError: a process died.
    """
    pool: Executor = ThreadPoolExecutor(threads)
    if processes:
        spawn = multiprocessing.get_context("spawn")  # threads, and those of JAX, do not fork
        pool = ProcessPoolExecutor(processes, spawn, _begin, (work,))
    try:
        with pool:
            yield lambda items: pool.map(_do if processes else work, items)
    except BrokenProcessPool:
        raise died(processes) from None


def died(processes: int) -> UserError:
    """What is to be said when one of some worker processes was killed."""
    return UserError(
        f"one of {processes} processes that read pairs died, perhaps for want of memory: lower "
        "config.data.workers"
    )
