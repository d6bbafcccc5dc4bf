"""Settings of glibc's allocator for training on a CPU."""

from __future__ import annotations

import os
import sys


def heap_settings() -> str:
    """Returns a value of GLIBC_TUNABLES that speeds up training on a CPU.

    It uses huge pages, and returns no memory to the kernel between steps. The arenas of threads are
    returned with any setting, so machines with few cores get a single arena. With many cores,
    threads that decode images would wait for each other in it.
    """
    settings = {
        "hugetlb": 1,
        "mmap_threshold": 1 << 32,
        "trim_threshold": 1 << 33,
        **({"arena_max": 1} if (os.cpu_count() or 1) <= 8 else {}),
    }
    return ":".join(f"glibc.malloc.{key}={value}" for key, value in settings.items())


def tune_allocator() -> None:
    """Restarts the running command with `heap_settings`.

    On a CPU each step allocates its activations anew. With the default settings the kernel zeroes
    them page by page (docs/benchmarks.md). glibc reads the settings only when a process starts.
    If the user set GLIBC_TUNABLES, nothing happens.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = heap_settings()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
